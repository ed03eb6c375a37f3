"""The loss over all RoIs of images, counted by hand, and the file that keeps it."""

import math
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ohem.data.loader import Example
from ohem.detection.backbones import Normalisation, tiny
from ohem.detection.backbones.base import Backbone
from ohem.detection.fast_rcnn import FastRCNN
from ohem.errors import InputError
from ohem.samplers import AllSampler
from ohem.training import roi_loss
from ohem.training.roi_loss import LossRow, MeanLoss, loss_over_all
from tests.helpers.make_rois import near, random_target

ROW = LossRow(20, "toy:train", 6, 70, 0.25, 0.5, 0.75, "d0", "w0")


def example(proposals: list[list[float]], ignored: list[list[float]] | None = None) -> Example:
    """Returns a grey image of 80 x 64 pixels with an object of class 2; the ground truth is also a RoI."""
    boxes = [[8.0, 8.0, 40.0, 40.0], *(ignored or [])]
    target = {
        "boxes": torch.tensor(boxes),
        "labels": torch.tensor([2] * len(boxes)),
        "ignore": torch.arange(len(boxes)) >= 1,
    }
    image = torch.full((3, 64, 80), 100, dtype=torch.uint8)
    return Example("a", 0, image, torch.tensor(proposals).reshape(-1, 4), target, 1.0)


def indifferent(delta: float = 0.0) -> FastRCNN:
    """Returns a detector with score 0 for each of two classes and background, and box regressions of `delta`."""
    model = FastRCNN(tiny(), 3, AllSampler())
    for layer in (model.scores, model.deltas):
        nn.init.zeros_(layer.weight)
    nn.init.constant_(model.deltas.bias, delta)
    return model


BACKGROUND = [50.0, 4.0, 70.0, 30.0]


def test_background_counts_in_both_means() -> None:
    # Of 4 RoIs the object alone is foreground: 4 coordinates at a distance of 0.5, smooth L1 0.125 each.
    mean = loss_over_all(indifferent(0.5), [example([BACKGROUND] * 3)])
    assert (mean.images, mean.rois) == (1, 4)
    assert mean.loss_classifier == pytest.approx(math.log(3))
    assert mean.loss_box_reg == pytest.approx(4 * 0.125 / 4)
    assert mean.loss == pytest.approx(mean.loss_classifier + mean.loss_box_reg)


def test_ignored_rois_do_not_count() -> None:
    ignored = [48.0, 2.0, 72.0, 34.0]
    mean = loss_over_all(indifferent(0.5), [example([BACKGROUND] * 3, [ignored])])
    assert mean == MeanLoss(1, 1, pytest.approx(math.log(3)), pytest.approx(0.5), pytest.approx(math.log(3) + 0.5))


def test_it_is_a_mean_over_rois_not_over_images() -> None:
    few, many = example([]), example([BACKGROUND] * 9)
    mean = loss_over_all(indifferent(0.5), [few, many])
    assert (mean.images, mean.rois) == (2, 11)
    assert mean.loss_box_reg == pytest.approx(2 * 0.5 / 11)


def test_no_image_has_no_loss() -> None:
    assert loss_over_all(indifferent(), []) == MeanLoss(0, 0, 0.0, 0.0, 0.0)


def test_it_leaves_no_trace() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    features = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.BatchNorm2d(4))
    normalisation = Normalisation("rgb", (128.0,) * 3, (64.0,) * 3)
    backbone = Backbone(features, head, stride=8, channels=4, pool_size=2, dim=8, normalisation=normalisation)
    model = FastRCNN(backbone, 3, AllSampler()).train()
    features[1].eval()  # a layer that is in evaluation mode during training
    rng = torch.Generator().manual_seed(2)
    target = random_target(rng, 2)
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8, generator=rng)
    examples = [Example("a", 0, image, near(target, 30, rng), target, 1.0)]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()

    first, second = loss_over_all(model, examples), loss_over_all(model, examples)

    assert first == second  # with dropout they would differ
    assert first.loss > 0
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad and not p.is_inference() for p in model.parameters())


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert roi_loss.read(tmp_path) == []
    earlier, other = replace(ROW, step=10), replace(ROW, data="other, with a comma", data_digest="d1")
    for row in (ROW, other, earlier):
        roi_loss.add_row(tmp_path, row)
    assert roi_loss.read(tmp_path) == [other, earlier, ROW]
    header = (tmp_path / roi_loss.NAME).read_text().splitlines()[0]
    assert header.startswith("step,data,images,rois,loss_classifier,loss_box_reg,loss,")


def test_a_row_takes_the_place_of_one_of_the_same_step_and_data(tmp_path: Path) -> None:
    same_name, same_data = replace(ROW, data_digest="d1"), replace(ROW, data="toy:again", weights_digest="w1")
    for row in (same_name, same_data):
        roi_loss.add_row(tmp_path, ROW)
        roi_loss.add_row(tmp_path, row)
        assert roi_loss.read(tmp_path) == [row]
        (tmp_path / roi_loss.NAME).unlink()


def test_known_is_what_was_measured_of_these_weights_on_these_data(tmp_path: Path) -> None:
    roi_loss.add_row(tmp_path, ROW)
    assert roi_loss.is_measured(tmp_path, 20, "d0", "w0")
    for step, data, weights in ((10, "d0", "w0"), (20, "d1", "w0"), (20, "d0", "w1")):
        assert not roi_loss.is_measured(tmp_path, step, data, weights)


def test_rows_behind_a_step_are_dropped(tmp_path: Path) -> None:
    roi_loss.drop_after(tmp_path, 0)
    assert not (tmp_path / roi_loss.NAME).exists()
    for step in (10, 20, 30):
        roi_loss.add_row(tmp_path, replace(ROW, step=step))
    roi_loss.drop_after(tmp_path, 20)
    assert [row.step for row in roi_loss.read(tmp_path)] == [10, 20]


HEADER = "step,data,images,rois,loss_classifier,loss_box_reg,loss,data_digest,weights_digest"
LINE = "20,toy:train,6,70,0.25,0.5,0.75,d0,w0"


def test_a_file_of_an_older_version_has_no_crc(tmp_path: Path) -> None:
    (tmp_path / roi_loss.NAME).write_text(f"{HEADER}\n{LINE}\n")
    assert roi_loss.read(tmp_path) == [ROW]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x00", b"\xff\n", b"a spreadsheet\n1,2\n", b"step,loss\n20,0.5\n", f"{HEADER}\n".encode(),
        f"{HEADER}\n{LINE}".encode(),
        f"{HEADER}\n{LINE}\n{LINE}\n".encode(),
        f"{HEADER}\n{LINE},\n".encode(),
        f"{HEADER},crc\n{LINE},00000000\n".encode(),
        *(
            f"{HEADER}\n{LINE.replace(old, new)}\n".encode()
            for old, new in (
                ("20", "-20"), ("20", "2.5"), ("0.75", "nan"), ("0.75", "inf"), ("0.75", "-0.75"), ("70", ""),
                ("w0", ""), ("6", "six"), ("0.5", "0_5"), ("d0", "d\x00"), (",w0", ""), ("20", '"20'),
            )
        ),
    ],
)  # fmt: skip
def test_what_is_not_whole_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / roi_loss.NAME).write_bytes(content)
    with pytest.raises(InputError, match=r"loss_all\.csv cannot be read"):
        roi_loss.read(tmp_path)


@pytest.mark.parametrize("removed", [[1], [2], [3], [1, 2], [2, 3]])
def test_a_removed_line_is_noticed(tmp_path: Path, removed: list[int]) -> None:
    for step in (10, 20, 30):
        roi_loss.add_row(tmp_path, replace(ROW, step=step))
    path = tmp_path / roi_loss.NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for number, line in enumerate(lines) if number not in removed))
    with pytest.raises(InputError, match="was changed after it was written, or a line before it was removed"):
        roi_loss.read(tmp_path)


def test_a_file_of_an_older_version_has_a_last_crc_with_seed_1(tmp_path: Path) -> None:
    lines = [LINE, LINE.replace("20,", "30,", 1)]
    crcs = [zlib.crc32(line.encode(), seed) for seed, line in enumerate(lines)]
    rows = "".join(f"{line},{crc:08x}\n" for line, crc in zip(lines, crcs, strict=True))
    (tmp_path / roi_loss.NAME).write_text(f"{HEADER},crc\n{rows}")
    assert [row.step for row in roi_loss.read(tmp_path)] == [20, 30]
