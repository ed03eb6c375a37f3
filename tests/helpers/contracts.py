"""Contracts that every implementation of an interface of the project must pass: call them from your own tests."""

import copy
import math
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ohem.data.dataset import DetectionSet
from ohem.detection.backbones import Backbone, Normalisation
from ohem.integrations import with_ohem
from ohem.recorder import Recorder
from ohem.rois import RoIs, match
from ohem.samplers import (
    AllSampler,
    HierarchicalSampler,
    IoUBalancedSampler,
    NoiseAwareSampler,
    OHEMSampler,
    ProportionalSampler,
    RandomSampler,
    RankSampler,
    RatioSampler,
    RoISampler,
)
from tests.helpers.make_rois import make_rois, near, random_target

EVERY_SAMPLER: dict[str, RoISampler] = {
    "ohem": OHEMSampler(8),
    "joint": OHEMSampler(8, per_image=False),
    "release": OHEMSampler.release(8),
    "separate": OHEMSampler(8, nms_iou=None, fg_fraction=0.25),
    "separate_joint": OHEMSampler(8, per_image=False, fg_fraction=0.5, nms_iou=None),
    "mmdetection": OHEMSampler.mmdetection(8),
    "rfcn": OHEMSampler.rfcn(8),
    "tensorflow": OHEMSampler.tensorflow(8, negatives_per_positive=3.0, min_negatives=2),
    "suppress_label": OHEMSampler(8, suppress="label"),
    "nms_iou_0": OHEMSampler(8, nms_iou=0.0),
    "ratio": RatioSampler(),
    "ratio_nms": RatioSampler(nms_iou=0.7),
    "random": RandomSampler(8),
    "random_any_background": RandomSampler(16, bg_lo=0.0),
    "all": AllSampler(),
    "rank": RankSampler(8),
    "rank_uniform": RankSampler(30, pressure=1.0),
    "proportional": ProportionalSampler(30),
    "iou_balanced": IoUBalancedSampler(8),
    "iou_balanced_bins": IoUBalancedSampler(7, fg_fraction=0.5, bins=4),
    "noise_aware": NoiseAwareSampler(OHEMSampler(8), warmup=0),
    "hierarchical": HierarchicalSampler(8),
    "hierarchical_box": HierarchicalSampler(64, nms_iou=0.9, box_weight=1.0),
}
"""The samplers that every detector must train with. Most of them choose about eight RoIs per image."""
DetectorBatch = tuple[list[Tensor], list[dict[str, Tensor]]]


class TrainedDetector(NamedTuple):
    """A detector after a step, with its gradients, and the losses of the step."""

    model: nn.Module
    losses: dict[str, Tensor]


def check_backbone(backbone: Backbone) -> None:
    """Checks what `FastRCNN` requires of `backbone`. It runs and trains it on two small images of different sizes."""
    backbone.train()
    rng = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=rng) for h, w in ((96, 160), (128, 112))]
    _check_normalisation(backbone, images[0])
    _check_padding(backbone, images)
    _check_stride(backbone)
    _check_training(backbone, images)
    _check_state(backbone)


def _check_normalisation(backbone: Backbone, image: Tensor) -> None:
    blob = backbone.normalise(image)
    assert blob.dtype == torch.float32
    assert blob.shape == image.shape
    given = backbone.normalisation
    back = blob * torch.tensor(given.std)[:, None, None] + torch.tensor(given.mean)[:, None, None]
    torch.testing.assert_close(back.flip(0) if given.order == "bgr" else back, image.float(), atol=1e-3, rtol=0)


def _check_padding(backbone: Backbone, images: list[Tensor]) -> None:
    """Checks that each image lies at the top left of its blob, normalised, and that the rest is 0."""
    blobs: list[Tensor] = []
    hook = backbone.features.register_forward_pre_hook(lambda _, inputs: blobs.append(inputs[0].clone()))
    with torch.no_grad():
        backbone(images)
    hook.remove()
    height, width = (max(image.shape[i] for image in images) for i in (1, 2))
    assert blobs[0].shape == (len(images), 3, height, width)
    for blob, image in zip(blobs[0], images, strict=True):
        rest = blob.clone()
        torch.testing.assert_close(rest[:, : image.shape[1], : image.shape[2]], backbone.normalise(image))
        rest[:, : image.shape[1], : image.shape[2]] = 0
        assert not rest.any()


def _check_stride(backbone: Backbone) -> None:
    """Checks that 4 more strides of image give 4 more cells of feature map, and that the map covers the image."""
    with torch.no_grad():
        small, large = (backbone([torch.zeros(3, 128, 128 + 4 * n, dtype=torch.uint8)]) for n in (0, backbone.stride))
    assert large.shape[3] - small.shape[3] == 4
    assert abs(small.shape[2] - 128 / backbone.stride) <= 2
    assert abs(small.shape[3] - 128 / backbone.stride) <= 2


def _check_training(backbone: Backbone, images: list[Tensor]) -> None:
    """Checks the shapes, that frozen parameters alone get no gradient, and that no statistic changes."""
    before = copy.deepcopy(dict(backbone.named_buffers()))
    features = backbone(images)
    assert features.dtype == torch.float32
    assert features.shape[:2] == (len(images), backbone.channels)
    size = backbone.pool_size
    hidden = backbone.roi_head(torch.nn.functional.adaptive_max_pool2d(features, size))
    assert hidden.shape == (len(images), backbone.dim)
    hidden.sum().backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert any(p.requires_grad for p in backbone.features.parameters())
    assert all(p.requires_grad for p in backbone.roi_head.parameters())
    for name, buffer in backbone.named_buffers():
        assert torch.equal(buffer, before[name]), name
    trained = [p.requires_grad for p in backbone.features.parameters()]
    assert trained == sorted(trained), "a frozen layer lies behind a trained one"


def _check_state(backbone: Backbone) -> None:
    """Checks that the state dict carries the normalisation."""
    given = backbone.normalisation
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items() if name.startswith("input_")}
    backbone.normalisation = Normalisation("rgb" if given.order == "bgr" else "bgr", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert backbone.normalisation != given
    backbone.load_state_dict(state, strict=False)
    assert backbone.normalisation == given


def check_sampler(sampler: RoISampler, most: int | None = None) -> None:
    """Checks that `FastRCNN` may train on what `sampler` chooses from usual and unusual mini-batches.

    Args:
        sampler: Any sampler.
        most: The largest number of RoIs of an image that it may choose, if it has a limit. It must choose at
            least one RoI where there is one.
    """
    for name, rois in mini_batches().items():
        losses = torch.rand(len(rois), generator=torch.Generator().manual_seed(0))
        before = losses.clone()
        chosen, again = (_seeded(sampler, rois, losses) for _ in range(2))
        assert chosen.dtype == torch.int64, name
        assert chosen.dim() == 1, name
        assert torch.equal(chosen, again), f"{name}: not the same for the same seed"
        assert torch.equal(losses, before), f"{name}: the losses are changed"
        assert len(chosen.unique()) == len(chosen), f"{name}: a RoI is chosen twice"
        assert ((chosen >= 0) & (chosen < len(rois))).all(), name
        assert (rois.labels[chosen] != -1).all(), f"{name}: an ignored RoI is chosen"
        assert len(chosen) > 0 or (rois.labels == -1).all(), f"{name}: nothing is chosen"
        assert most is None or len(chosen) <= most * rois.num_images, f"{name}: too many are chosen"


def _seeded(sampler: RoISampler, rois: RoIs, losses: Tensor) -> Tensor:
    torch.default_generator.manual_seed(0)
    return sampler(rois, lambda cls_weight=1.0, box_weight=1.0: losses)


def mini_batches() -> dict[str, RoIs]:
    """Returns labelled RoIs by the name of what is special about them."""
    rng = torch.Generator().manual_seed(0)
    truths = [random_target(rng, 3, objects=4, ignored=ignored) for ignored in (0, 2)]
    proposals = [near(truth, 100, rng) for truth in truths]
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return {
        "two images": match(proposals, truths),
        "no object": match(proposals[:1], [nothing]),
        "only foreground": match([truths[0]["boxes"]], [truths[0]]),
        "only ignored": make_rois([-1, -1]),
        "no background in range": make_rois([1, 0, 0, 0, -1], ious=[0.9, 0.0, 0.01, 0.0, 0.3]),
        "one foreground": make_rois([2]),
        "one background": make_rois([0]),
        "no RoI": match([torch.zeros(0, 4)], [nothing]),
        "the second image has no object": match(proposals, [truths[0], nothing]),
        "the second image has no RoI": match([proposals[0], torch.zeros(0, 4)], [truths[0], nothing]),
        "only the second image has RoIs": match([torch.zeros(0, 4), proposals[1]], [nothing, truths[1]]),
        "duplicates": make_rois([0] * 6, boxes=[[0.0, 0.0, 10.0, 10.0]] * 6),
    }


def check_dataset(data: DetectionSet) -> None:
    """Checks what the loader, the proposals and the evaluation require of `data`. It reads every image."""
    count = len(data)
    assert count == len(data.ids) == len(set(data.ids)) > 0
    assert len(set(data.classes)) == len(data.classes)
    assert [i for source in data.sources for i in range(count)[source.indices]] == list(range(count))
    for source in data.sources:
        assert len(source.ids) == len(set(source.ids)) == len(data.ids[source.indices])
        assert source.folder.is_dir()
        assert source.name
    for i in range(count):
        image, target = data[i]
        height, width = data.size(i)
        assert data.path(i).is_file()
        assert (image.dtype, image.shape) == (torch.uint8, (3, height, width))
        _check_target(target, height, width, len(data.classes))
        target["boxes"].zero_()
        assert not len(target["boxes"]) or data.target(i)["boxes"].any(), "a target shares memory with the data set"


def _check_target(target: dict[str, Tensor], height: int, width: int, classes: int) -> None:
    boxes, labels = target["boxes"], target["labels"]
    assert (boxes.dtype, boxes.shape) == (torch.float32, (len(labels), 4))
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert (labels.dtype, labels.dim()) == (torch.int64, 1)
    assert ((labels >= 1) & (labels <= classes)).all()
    assert (target["ignore"].dtype, target["ignore"].shape) == (torch.bool, labels.shape)
    if "area" in target:
        assert (target["area"].dtype, target["area"].shape) == (torch.float32, labels.shape)
        assert (target["area"] >= 0).all()


def check_detector(
    make: Callable[[], nn.Module],
    sampler: RoISampler,
    batches: Mapping[str, DetectorBatch],
    known: dict[str, TrainedDetector] | None = None,
    **options: Any,
) -> None:
    """Checks that `with_ohem` changes nothing of a torchvision detector but what it is trained on.

    Args:
        make: Makes the detector without mining, with the same weights at every call.
        sampler: Chooses the RoIs.
        batches: (images, targets) by name. The first has objects. The detector is trained on one after another.
        known: What was trained without mining, by batch. A dict that all samplers get saves these trainings.
        options: Further options of `with_ohem`.
    """
    mine = partial(with_ohem, sampler=sampler, **options)
    known = {} if known is None else known
    _check_state_and_detections(make, mine, batches)
    for name, batch in batches.items():
        if name not in known:
            plain = make()
            known[name] = TrainedDetector(plain, _trained(plain, batch))
        plain, expected = known[name]
        mined = mine(make())
        actual = _trained(mined, batch)
        assert actual.keys() == expected.keys(), name
        assert all(loss.dim() == 0 and loss.isfinite() for loss in actual.values()), name
        assert _with_gradient(plain) <= _with_gradient(mined), name
        for parameter_name, parameter in mined.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), f"{name}: {parameter_name}"
        for recorder in _recorders(mined):
            numbers = recorder.statistics()
            assert all(type(number) is float and math.isfinite(number) for number in numbers.values()), name
            assert {"rois", "chosen", "foreground"} <= numbers.keys(), name
            assert sum(recorder.iou_histogram()) == numbers["chosen"], name
        again = mine(make())
        assert _trained(again, batch) == actual, f"{name}: not the same for the same seed"
        assert all(map(_equal_gradients, mined.parameters(), again.parameters())), name
        _check_buffers(plain, mined)
    _check_copies(mine(make()), next(iter(batches.values())))


def _check_state_and_detections(
    make: Callable[[], nn.Module], mine: Callable[[nn.Module], nn.Module], batches: Mapping[str, DetectorBatch]
) -> None:
    """Checks that checkpoints fit the detector with and without mining, and that both detect the same."""
    images, targets = next(iter(batches.values()))
    plain, mined = make(), make()
    assert mine(mined) is mined
    assert list(mined.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in mined.named_modules()] == [name for name, _ in plain.named_modules()]
    optimizer = torch.optim.SGD(mined.parameters(), lr=1e-3)
    sum(mined(images, targets).values()).backward()
    optimizer.step()
    plain.load_state_dict(mined.state_dict())
    mine(make()).load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected, actual = plain.eval()(images), mined.eval()(images)
    assert any(len(detections["boxes"]) for detections in expected), "nothing is detected: there is nothing to compare"
    for detections, other in zip(expected, actual, strict=True):
        assert detections.keys() == other.keys()
        assert all(torch.equal(detections[key], other[key]) for key in detections)


def _check_copies(mined: nn.Module, batch: DetectorBatch) -> None:
    """Checks that copies and pickles train like the original, have their own recorders, and keep no mini-batch."""
    empty = len(pickle.dumps(mined))
    buffers = copy.deepcopy(dict(mined.named_buffers()))
    expected = _trained(mined, batch)
    mined.zero_grad(set_to_none=True)
    mined.load_state_dict(buffers, strict=False)
    assert len(pickle.dumps(mined)) < empty + 4096
    twins = copy.deepcopy(mined), pickle.loads(pickle.dumps(mined))
    for twin in twins:
        pairs = list(zip(_recorders(twin), _recorders(mined), strict=True))
        assert pairs
        for copied, original in pairs:
            assert copied is not original
            assert copied.statistics() == {}
        assert _trained(twin, batch) == expected
        for copied, original in pairs:
            assert copied.statistics() == original.statistics()
    assert all(map(_equal_gradients, *(twin.parameters() for twin in twins)))


def _recorders(model: nn.Module) -> list[Recorder]:
    """Returns what a user can print: the `mining` of the model and of its parts."""
    return [vars(part)["mining"] for part in model.modules() if "mining" in vars(part)]


def _check_buffers(plain: nn.Module, mined: nn.Module) -> None:
    """Checks that ranking leaves no trace in buffers: batch norm has counted one mini-batch with or without mining."""
    after = dict(plain.named_buffers())
    for name, buffer in mined.named_buffers():
        assert not name.endswith("num_batches_tracked") or torch.equal(buffer, after[name]), name


def _trained(model: nn.Module, batch: DetectorBatch) -> dict[str, Tensor]:
    """Runs a step in train mode, which leaves the gradients; returns its losses."""
    torch.default_generator.manual_seed(0)
    losses: dict[str, Tensor] = model.train()(*batch)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    return {name: loss.detach() for name, loss in losses.items()}


def _with_gradient(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def _equal_gradients(one: nn.Parameter, other: nn.Parameter) -> bool:
    if one.grad is None or other.grad is None:
        return one.grad is other.grad
    return torch.equal(one.grad, other.grad)
