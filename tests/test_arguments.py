"""Every public class and function checks its arguments.

The first test fails if a public name, or an argument of one, has no entry here.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import ohem
from ohem.detection.backbones import tiny
from ohem.detection.box_refinement import BoxRefinement
from ohem.detection.post_process import PostProcess
from ohem.rois import RoIs

NAN, INF = math.nan, math.inf
NOT_INTEGERS: tuple[Any, ...] = (2.0, "2", None, True, torch.tensor(2), [2])
NOT_NUMBERS: tuple[Any, ...] = ("0.5", True, torch.tensor(0.5), [0.5])
NOT_BOOLS: tuple[Any, ...] = (0, 1, "no", None)
NOT_CALLABLE: tuple[Any, ...] = (3, "ohem", ohem.OHEMSampler)
COUNT = (0, -1, *NOT_INTEGERS)
COUNT_OR_0 = (-1, *NOT_INTEGERS)
SHARE = (-0.1, 1.1, NAN, INF, None, *NOT_NUMBERS)
SHARE_OR_NONE = (-0.1, 1.1, NAN, INF, *NOT_NUMBERS)
WEIGHT = (-1, NAN, INF, None, *NOT_NUMBERS)
TENSOR: tuple[Any, ...] = (None, 3, [1.0], "x", np.zeros(4))
FLOATS, INTS = torch.rand(4), torch.zeros(4, dtype=torch.int64)
BOXES = torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 4)
TARGET = {"boxes": BOXES[:1], "labels": torch.tensor([1])}
WRONG_TARGETS: tuple[Any, ...] = (
    None,
    TARGET,
    [None],
    [{}],
    [{"boxes": BOXES[:1]}],
    [{**TARGET, "labels": torch.tensor([0])}],
    [{**TARGET, "labels": torch.tensor([1.0])}],
    [{**TARGET, "labels": torch.tensor([1, 1])}],
    [{**TARGET, "labels": [1]}],
    [{**TARGET, "boxes": BOXES[:1, :3]}],
    [{**TARGET, "boxes": BOXES[:1].tolist()}],
    [{**TARGET, "boxes": BOXES[:1] * NAN}],
    [{**TARGET, "boxes": BOXES[:1].flip(1)}],
    [{**TARGET, "iscrowd": torch.tensor([2])}],
    [{**TARGET, "ignore": torch.zeros(3)}],
    [TARGET, TARGET],
)


class Entry(NamedTuple):
    """Valid and invalid arguments of a public name that can be called."""

    good: Mapping[str, Any]
    """Valid values of the required arguments."""
    wrong: Mapping[str, Sequence[Any]]
    """Invalid values by argument."""


def detector() -> nn.Module:
    return fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3)  # type: ignore[no-any-return]


MINING = {"batch_size": COUNT}
RANKING = {"cls_weight": WEIGHT, "box_weight": WEIGHT}
ROIS = {"boxes": BOXES, "images": INTS, "labels": INTS, "targets": BOXES, "ious": FLOATS, "num_images": 1}
ENTRIES: dict[str, Entry] = {
    "AllSampler": Entry({}, {}),
    "RandomSampler": Entry(
        {},
        {
            **MINING,
            "fg_fraction": SHARE,
            "fg_iou": SHARE,
            "bg_lo": (-0.1, 1.1, 0.6, NAN, None, "ab"),
            "bg_hi": (-0.1, 0.05, 1.1, NAN, None, "ab"),
        },
    ),
    "IoUBalancedSampler": Entry({}, {**MINING, "fg_fraction": SHARE, "bins": COUNT, "max_iou": (0, *SHARE)}),
    "OHEMSampler": Entry(
        {},
        {
            **MINING,
            **RANKING,
            "nms_iou": SHARE_OR_NONE,
            "per_image": NOT_BOOLS,
            "suppress": ("class", None, 3),
            "inclusive": NOT_BOOLS,
            "fg_fraction": SHARE_OR_NONE,
            "negatives_per_positive": (-1, NAN, INF, *NOT_NUMBERS),
            "min_negatives": COUNT_OR_0,
        },
    ),
    "NoiseAwareSampler": Entry(
        {},
        {"sampler": (None, *NOT_CALLABLE), "confidence": SHARE, "far": SHARE, "warmup": COUNT_OR_0},
    ),
    "HierarchicalSampler": Entry({}, {**MINING, **RANKING, "nms_iou": SHARE}),
    "RankSampler": Entry({}, {**MINING, "pressure": (0.5, NAN, INF, None, *NOT_NUMBERS)}),
    "ProportionalSampler": Entry({}, MINING),
    "RatioSampler": Entry(
        {}, {"negatives_per_positive": WEIGHT, "min_negatives": COUNT_OR_0, "nms_iou": SHARE_OR_NONE}
    ),
    "OHEMLoss": Entry(
        {"criterion": nn.CrossEntropyLoss(reduction="none")},
        {
            "criterion": (None, nn.CrossEntropyLoss, nn.CrossEntropyLoss(), "x"),
            "keep": SHARE,
            "min_kept": (1e5, *COUNT_OR_0),
            "threshold": (NAN, INF, *NOT_NUMBERS),
            "per_image": NOT_BOOLS,
            "ignore_index": (2.0, "2", True, [2]),
            "global_batch": NOT_BOOLS,
            "rank_by": (3, nn.CrossEntropyLoss, nn.CrossEntropyLoss()),
        },
    ),
    "Recorder": Entry({"sampler": ohem.OHEMSampler()}, {"sampler": (None, *NOT_CALLABLE)}),
    "RoIs": Entry(
        ROIS,
        {
            "boxes": (BOXES[:3], BOXES[:, :3], BOXES.long(), *TENSOR),
            "images": (FLOATS, INTS[:3], *TENSOR),
            "labels": (FLOATS, INTS[:3], *TENSOR),
            "targets": (BOXES[:3], BOXES[:, :3], *TENSOR),
            "ious": (INTS, FLOATS[:3], *TENSOR),
            "num_images": COUNT_OR_0,
        },
    ),
    "match": Entry(
        {"proposals": [BOXES], "targets": [TARGET]},
        {
            "proposals": (None, BOXES[0], [], [BOXES, BOXES], [BOXES * NAN], [BOXES[:, :3]], [BOXES.tolist()]),
            "targets": WRONG_TARGETS,
            "mean": (None, (0.0,), "abcd", (0.0, 0.0, 0.0, NAN)),
            "std": (None, (1.0,), (1.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, -1.0)),
            "fg_iou": SHARE,
            "add_ground_truth": NOT_BOOLS,
        },
    ),
    "hard_examples": Entry({"losses": FLOATS, "k": 2}, {"losses": (INTS, FLOATS[None], *TENSOR), "k": COUNT_OR_0}),
    "hard_negatives": Entry(
        {"anchors": BOXES, "positives": BOXES, "pool": BOXES, "k": 2},
        {
            "anchors": (BOXES[:3], BOXES[:, :3], BOXES.long(), *TENSOR),
            "positives": (BOXES[:3], BOXES[:, :3], BOXES.long(), *TENSOR),
            "pool": (BOXES[:, :3], BOXES.long(), *TENSOR),
            "k": COUNT_OR_0,
            "allowed": (BOXES, torch.ones(2, 2, dtype=torch.bool), *(wrong for wrong in TENSOR if wrong is not None)),
            "margin": ("1", None, NAN, True),
        },
    ),
    "triplet_losses": Entry(
        {"anchors": BOXES, "positives": BOXES, "negatives": BOXES[:, None]},
        {
            "anchors": (BOXES[:3], BOXES[:, :3], BOXES.long(), *TENSOR),
            "positives": (BOXES[:3], BOXES[:, :3], BOXES.long(), *TENSOR),
            "negatives": (BOXES, BOXES[:3, None], BOXES[:, None].long(), *TENSOR),
            "margin": ("1", None, NAN, True),
        },
    ),
    "hard_rois": Entry(
        {"losses": FLOATS, "boxes": BOXES, "groups": INTS, "k": 2},
        {
            "losses": (INTS, FLOATS[:3], FLOATS[None], *TENSOR),
            "boxes": (BOXES[:3], BOXES[:, :3], BOXES.long(), BOXES * NAN, *TENSOR),
            "groups": (FLOATS, INTS[:3], *TENSOR),
            "k": COUNT_OR_0,
            "nms_iou": SHARE_OR_NONE,
        },
    ),
    "LoggedImage": Entry(
        {"name": "a.jpg"},
        {
            "name": (None, 3, TENSOR),
            "boxes": (3, [1.0], "x", FLOATS),
            "scale": (1.0, (1.0,), (0.0, 1.0), ("1", "2"), [1.0, 1.0], (NAN, 1.0)),
            "mirrored_width": (-1, "9", NAN),
        },
    ),
    "MiningLog": Entry(
        {"sampler": ohem.OHEMSampler(), "path": "log"},
        {"sampler": (None, *NOT_CALLABLE), "path": (None, 3), "size": (63, *NOT_INTEGERS)},
    ),
    "with_ohem": Entry(
        {"model": detector()},
        {"model": (None, nn.Linear(2, 2), "fasterrcnn"), "sampler": NOT_CALLABLE},
    ),
    "FastRCNN": Entry(
        {"backbone": tiny(), "num_classes": 3, "sampler": ohem.OHEMSampler()},
        {
            "backbone": (None, nn.Linear(2, 2), tiny),
            "num_classes": (1, *COUNT),
            "sampler": (None, *NOT_CALLABLE),
            "implementation": ("both", None, 3),
            "regions": (3, "mr_cnn", ("left",)),
            "rescore_top": COUNT_OR_0,
            "shortlist": COUNT_OR_0,
            "post_process": (3, PostProcess),
            "refinement": (3, BoxRefinement),
            "merge": (None, "union"),
            "probabilities": (3, "softmax"),
            "box_mean": (None, (0.0,), "abcd", torch.zeros(2, 4)),
            "box_std": (None, (1.0,), (1.0, 1.0, 1.0, 0.0), torch.ones(2, 4)),
        },
    ),
}
TYPES = {"InputError", "RoISampler"}
"""Public names that a user does not call."""
PARTS: dict[str, tuple[Callable[..., Any], Entry]] = {
    "PostProcess": (
        PostProcess,
        Entry({}, {"score": SHARE, "nms_iou": SHARE, "max_detections": COUNT}),
    ),
    "BoxRefinement": (
        BoxRefinement,
        Entry(
            {},
            {
                "iterations": COUNT,
                "rescore_score": SHARE,
                "first_nms_iou": SHARE_OR_NONE,
                "first_top": (0, -1, 2.0, "2", True),
                "voting": NOT_BOOLS,
                "vote_iou": SHARE,
                "vote_at_least": NOT_BOOLS,
                "vote_added": (NAN, INF, None, *NOT_NUMBERS),
                "voters": ("none", None),
            },
        ),
    ),
}
"""Classes whose instances are arguments of public names."""
CALLS: dict[str, tuple[Callable[..., Any], Entry]] = {
    **{name: (getattr(ohem, name), entry) for name, entry in ENTRIES.items()},
    **PARTS,
}


def test_every_public_name_and_argument_has_an_entry() -> None:
    assert set(ohem.__all__) == set(ENTRIES) | TYPES
    for name, (function, entry) in CALLS.items():
        called = type(function).__call__ if name == "with_ohem" else function
        parameters = inspect.signature(called).parameters.values()
        names = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"}
        assert set(entry.wrong) == names, name


@pytest.mark.parametrize("name", CALLS)
def test_valid_arguments_are_accepted(name: str) -> None:
    function, entry = CALLS[name]
    function(**entry.good)


CASES = [
    pytest.param(name, argument, value, id=f"{name}-{argument}-{number}")
    for name, (_, entry) in CALLS.items()
    for argument, values in entry.wrong.items()
    for number, value in enumerate(values)
]


@pytest.mark.parametrize(("name", "argument", "value"), CASES)
def test_invalid_arguments_are_refused_with_a_sentence_that_names_them(name: str, argument: str, value: Any) -> None:
    function, entry = CALLS[name]
    with pytest.raises((TypeError, ValueError)) as refused:
        function(**{**entry.good, argument: value})
    text = str(refused.value)
    assert "\n" not in text
    # If two arguments disagree, the message may name either of them.
    assert any(part in text for part in (argument, argument.rstrip("s"), *entry.good)) or argument == "model", text
    assert refused.traceback[-1].path.is_relative_to(inspect.getfile(ohem).removesuffix("__init__.py")), text


@pytest.mark.parametrize("number", [np.int64(3), np.int32(3), 3])
def test_numpy_integers_are_accepted(number: Any) -> None:
    assert ohem.OHEMSampler(number).batch_size == 3
    assert len(ohem.hard_examples(FLOATS, number)) == 3


@pytest.mark.parametrize("label", [0, 3, 6, -2])
@pytest.mark.parametrize("kind", ["FastRCNN", "with_ohem"])
def test_message_about_a_label_names_target_key_and_range(label: int, kind: str) -> None:
    target = {"boxes": torch.tensor([[5.0, 5.0, 60.0, 60.0]]), "labels": torch.tensor([label])}
    good = {**target, "labels": torch.tensor([1])}
    model: Any = ohem.FastRCNN(tiny(), 3, ohem.OHEMSampler(4))
    images, proposals = [torch.zeros(3, 64, 64, dtype=torch.uint8)] * 2, ([target["boxes"]] * 2,)
    if kind == "with_ohem":
        model, images, proposals = ohem.with_ohem(detector()).train(), [torch.rand(3, 64, 64)] * 2, ()
    with pytest.raises(ValueError, match=rf"targets\[1\]\['labels'\] must be from 1 to 2, not {label}"):
        model(images, *proposals, [good, target])


def test_rois_cannot_be_indexed_by_a_number() -> None:
    rois = RoIs(**ROIS)
    with pytest.raises(TypeError, match="RoIs must be indexed by"):
        rois[0]  # type: ignore[index]
