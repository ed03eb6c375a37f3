"""Selection over the sizes of an image, and before the passes over images one by one, counted by hand."""

import torch
from torch import Tensor

from ohem.data.loader import Example
from ohem.detection.backbones import tiny
from ohem.detection.fast_rcnn import FastRCNN
from ohem.draws import begin_image, seeded_images
from ohem.recorder import Recorder
from ohem.rois import RoIs
from ohem.samplers import OHEMSampler
from ohem.samplers.base import Losses, images_to_draw
from ohem.training.joint import PyramidSampler, choose, replayed
from tests.helpers.make_rois import make_rois


def in_size(position: int, scale: float) -> Example:
    empty = torch.zeros(0, 4)
    return Example(f"{position}", position, torch.zeros(3, 4, 4, dtype=torch.uint8), empty, {"boxes": empty}, scale)


SIZES = [in_size(7, 1.0), in_size(7, 2.0), in_size(9, 0.5), in_size(9, 4.0)]
# Images 0 and 1 are one image in two sizes: RoIs 0 and 2 are the same box there, and 1 and 3 are others.
BOXES = [[0, 0, 10, 10], [30, 30, 40, 40], [0, 0, 20, 20], [100, 0, 120, 20], [1, 1, 6, 6], [8, 8, 48, 48]]
ROIS = make_rois([0, 0, 0, 0, 1, 0], boxes=BOXES, images=[0, 0, 1, 1, 2, 3], num_images=4)
LOSSES = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.2, 0.4])


def test_the_hardest_of_all_sizes_are_chosen() -> None:
    """RoI 2 suppresses RoI 0, the same box in the other size; RoIs 4 and 5 are of the second image, nearly one box."""
    sampler = PyramidSampler(OHEMSampler(batch_size=2, nms_iou=0.7))
    sampler.begin(SIZES)
    assert sampler(ROIS, lambda *_: LOSSES).tolist() == [2, 3, 5]
    without_nms = PyramidSampler(OHEMSampler(batch_size=2, nms_iou=None))
    without_nms.begin(SIZES)
    assert without_nms(ROIS, lambda *_: LOSSES).tolist() == [2, 0, 5, 4]
    jointly = PyramidSampler(OHEMSampler(batch_size=1, nms_iou=0.7, per_image=False))
    jointly.begin(SIZES)
    assert jointly(ROIS, lambda *_: LOSSES).tolist() == [2, 5]


def test_an_image_in_one_size_is_mined_as_without_a_pyramid() -> None:
    sampler, inner = PyramidSampler(OHEMSampler(1)), OHEMSampler(1)
    sampler.begin([in_size(number, 1.0) for number in range(4)])
    assert sampler(ROIS, lambda *_: LOSSES).tolist() == inner(ROIS, lambda *_: LOSSES).tolist()


def test_random_numbers_are_those_of_the_image() -> None:
    """Each image has one seed in the sampler, and each size its own in the read-only pass."""
    drawn: dict[str, list[int]] = {"sampler": [], "losses": []}

    def losses(*_: float) -> Tensor:
        for image in range(4):
            begin_image(image, 1, torch.device("cpu"))  # type: ignore[arg-type]
            drawn["losses"].append(torch.initial_seed())
        return LOSSES

    def draw(rois: RoIs, losses: Losses) -> Tensor:
        losses()
        drawn["sampler"] = [torch.initial_seed() for _ in images_to_draw(rois)]
        return torch.tensor([0])

    sampler = PyramidSampler(draw)
    sampler.begin(SIZES)
    with seeded_images([10, 11, 20, 21]):
        sampler(ROIS, losses)
    assert drawn == {"sampler": [10, 20], "losses": [11, 12, 21, 22]}


def test_images_are_ranked_alone_and_chosen_together() -> None:
    """The losses are those of passes of one image, and the two hardest RoIs of all images are chosen."""
    torch.manual_seed(0)
    images = [torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8) for _ in range(3)]
    proposals = [torch.tensor([[0.0, 0, 20, 20], [5, 5, 40, 30]])[: 2 - i % 2] for i in range(3)]
    targets = [{"boxes": torch.tensor([[2.0, 2, 22, 18]]), "labels": torch.tensor([1])} for _ in range(3)]
    sampler = Recorder(OHEMSampler(batch_size=1, nms_iou=None, per_image=False))
    model = FastRCNN(tiny(), 3, sampler).train()
    model.backbone.roi_head.eval()  # no dropout
    together = model(images, proposals, targets)
    assert sampler.losses is not None
    assert sampler.chosen is not None
    losses, chosen = sampler.losses, sampler.chosen
    seen: list[int] = []
    model.backbone.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    choice = choose(model, images, proposals, targets)
    assert seen == [False] * 3
    assert choice.trained_on == len(chosen) == 3
    torch.testing.assert_close(sampler.losses, losses)
    starts = [0, 3, 5]  # with the object of each image
    assert sorted(int(i) + start for keep, start in zip(choice.keep, starts, strict=True) for i in keep) == sorted(
        chosen.tolist()
    )
    total = 0.0
    for i, keep in enumerate(choice.keep):
        with replayed(model, keep):
            alone = model(images[i : i + 1], proposals[i : i + 1], targets[i : i + 1])
        total += (
            sum(float(value.detach()) for value in alone.values()) * len(keep) / choice.trained_on if len(keep) else 0
        )
    assert model.sampler is sampler
    torch.testing.assert_close(torch.tensor(total), sum(together.values(), torch.tensor(0.0)).detach())
