"""Targets of users: what torchvision trains on is trained on with mining too, or is refused with a sentence."""

from typing import Any

import pytest
import torch
from torch import nn

from ohem import OHEMSampler, with_ohem
from tests.helpers import one_stage, tiny_rcnn

ONE = {"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([1])}
NONE = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
TRAINS: dict[str, dict[str, Any]] = {
    "no object, a label": {**NONE, "labels": torch.zeros(1, dtype=torch.int64)},
    "no object, labels (1, 1)": {**NONE, "labels": torch.zeros(1, 1, dtype=torch.int64)},
    "no object, boxes (0,)": {**NONE, "boxes": torch.zeros(0)},
    "no object, marks": {**NONE, "iscrowd": torch.zeros(1, dtype=torch.int64)},
    "empty marks": {**ONE, "iscrowd": torch.zeros(0, dtype=torch.int64)},
    "marks of a list": {**ONE, "iscrowd": [0]},
    "marks (1, 1)": {**ONE, "ignore": torch.zeros(1, 1)},
    "marks of uint8": {**ONE, "iscrowd": torch.ones(1, dtype=torch.uint8)},
    "marks of None": {**ONE, "iscrowd": None},
    "labels of int32": {**ONE, "labels": torch.tensor([1], dtype=torch.int32)},
    "boxes of float64": {**ONE, "boxes": ONE["boxes"].double()},
    "boxes of integers": {**ONE, "boxes": ONE["boxes"].long()},
    "other keys": {**ONE, "image_id": 7, "name": "a.jpg", "area": torch.tensor([1225.0])},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "labels of more": ({**ONE, "labels": torch.ones(3, dtype=torch.int64)}, r"\['labels'\] must be of shape \(1,\)"),
    "marks of more": ({**ONE, "iscrowd": torch.zeros(3)}, r"\['iscrowd'\] must be of shape \(1,\)"),
    "marks that are none": ({**ONE, "ignore": torch.tensor([2])}, r"\['ignore'\] must be a bool, 0 or 1"),
    "labels of floats": ({**ONE, "labels": torch.tensor([1.0])}, r"\['labels'\] must be a tensor of integer dtype"),
    "boxes of NaN": ({**ONE, "boxes": ONE["boxes"] * torch.nan}, r"\['boxes'\] must be finite"),
    "boxes without area": (
        {**ONE, "boxes": torch.tensor([[5.0, 5, 5, 40]])},
        r"\['boxes'\] must be \[x1, y1, x2, y2\]",
    ),
    "boxes (1, 5)": ({**ONE, "boxes": torch.zeros(1, 5)}, r"\['boxes'\] must be of shape \(G, 4\)"),
    "no labels": ({"boxes": ONE["boxes"]}, "has no 'labels'"),
    "a label too high": ({**ONE, "labels": torch.tensor([9])}, r"\['labels'\] must be from . to ., not 9"),
}
KINDS = ["rcnn", *one_stage.MAKE]


def make(kind: str) -> nn.Module:
    model: nn.Module = tiny_rcnn.faster_rcnn() if kind == "rcnn" else one_stage.make(kind)
    return with_ohem(model, OHEMSampler(8, nms_iou=None)).train()


def images() -> list[torch.Tensor]:
    return [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAINS)
def test_valid_target_is_trained_on(name: str, kind: str) -> None:
    losses = make(kind)(images(), [dict(TRAINS[name]), ONE])
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_message_about_an_invalid_target_names_it_and_its_key(name: str, kind: str) -> None:
    target, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=rf"^targets\[1\].*{message}|^targets\[1\] {message}"):
        make(kind)(images(), [ONE, target])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [[ONE], None, [ONE, ONE, ONE]])
def test_number_of_targets_must_be_that_of_images(targets: Any, kind: str) -> None:
    with pytest.raises((ValueError, AssertionError)):
        make(kind)(images(), targets)


# --- heads that are compiled, or that wait for other processes


@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own code
def test_compiled_box_head_gives_the_same_losses() -> None:
    model = make("rcnn")
    model.roi_heads.box_head.compile(backend="eager", fullgraph=True, dynamic=True)
    plain = make("rcnn")
    torch.manual_seed(0)
    losses = model(*tiny_rcnn.mini_batch())
    torch.manual_seed(0)
    expected = plain(*tiny_rcnn.mini_batch())
    assert all(torch.allclose(losses[name], expected[name], rtol=1e-4) for name in expected)


@pytest.mark.parametrize("chunk", [4, 512])
def test_every_process_runs_the_same_number_of_forward_passes(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every forward pass, a head with sharded weights waits for the other processes."""
    monkeypatch.setattr("ohem.integrations.rcnn.waits_for_others", lambda *_: True)
    counts = []
    for objects in ((3,), (3, 1), (0, 0)):
        model = make("rcnn")
        model.roi_heads.chunk = chunk
        forwards: list[int] = []
        model.roi_heads.box_head.register_forward_hook(lambda *_, counted=forwards: counted.append(1))
        model(*tiny_rcnn.mini_batch(objects))
        counts.append(len(forwards))
    assert counts == [2, 2, 2]
