"""Errors planted in annotations, and which suspects point at them.

A planted error is a dropped box, another class, a box that was moved, a box of background, or a second box of an
object.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ohem.boxes import pairwise_iou

KINDS = ("missing", "class", "place", "background")
"""Kinds of the figures, a quarter each; the names are those of `ohem.insight.suspects.KINDS`."""
MOVED = (0.4, 0.7)
"""A box is moved by this share of its size, in a random direction."""
TRIES = 100
Target = dict[str, Tensor]


@dataclass(frozen=True)
class Planted:
    """An error in the annotations of an image.

    Args:
        image: index of the image.
        kind: its kind.
        given: index of the wrong box in the planted target; None for a dropped one.
        box: the wrong box, or the one that was dropped, (4,).
    """

    image: int
    kind: str
    given: int | None
    box: Tensor


def plant(
    targets: Sequence[Mapping[str, Tensor]],
    sizes: Sequence[tuple[int, int]],
    classes: int,
    *,
    share: float = 0.1,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
) -> tuple[list[Target], list[Planted]]:
    """Plants errors in a share of all objects, as many of each kind, at most one in an object.

    Args:
        targets: the right annotations.
        sizes: (height, width) of each image.
        classes: number of classes.
        share: number of errors, as a share of the objects.
        seed: of the random numbers.
        kinds: kinds to plant.

    Returns:
        The annotations with errors, and the errors.
    """
    random = np.random.default_rng(seed)
    objects = [(i, j) for i, target in enumerate(targets) for j in range(len(target["labels"]))]
    chosen = random.permutation(len(objects))[: round(share * len(objects))]
    errors: dict[int, dict[int, str]] = {}
    for number, place in enumerate(chosen):
        image, thing = objects[place]
        errors.setdefault(image, {})[thing] = kinds[number % len(kinds)]
    wrong: list[Target] = []
    planted: list[Planted] = []
    for image, target in enumerate(targets):
        changed, here = _change(target, sizes[image], errors.get(image, {}), classes, random)
        wrong.append(changed)
        planted += [Planted(image, kind, given, box) for kind, given, box in here]
    return wrong, planted


def _change(
    target: Mapping[str, Tensor],
    size: tuple[int, int],
    errors: Mapping[int, str],
    classes: int,
    random: np.random.Generator,
) -> tuple[Target, list[tuple[str, int | None, Tensor]]]:
    """Returns the target of one image with its errors, and these: kind, index of the wrong box, wrong box."""
    boxes, labels = list(target["boxes"]), target["labels"].tolist()
    everything, planted, dropped = torch.stack(boxes) if boxes else torch.zeros(0, 4), [], set()
    for thing, kind in errors.items():
        box, label = target["boxes"][thing], labels[thing]
        if kind == "missing":
            dropped.add(thing)
            planted.append((kind, thing, box))
        elif kind == "class":
            labels[thing] = int(random.choice([other for other in range(1, classes + 1) if other != label]))
            planted.append((kind, thing, box))
        elif kind == "place":
            boxes[thing] = _moved(box, size, MOVED, random)
            planted.append((kind, thing, boxes[thing]))
        else:
            new = _background(everything, box, size, random) if kind == "background" else _jittered(box, size, random)
            boxes.append(new)
            labels.append(int(random.integers(1, classes + 1)) if kind == "background" else label)
            planted.append((kind, len(boxes) - 1, new))
    kept = [i for i in range(len(boxes)) if i not in dropped]
    place = {old: new for new, old in enumerate(kept)}
    result = {
        "boxes": torch.stack([boxes[i] for i in kept]) if kept else torch.zeros(0, 4),
        "labels": torch.tensor([labels[i] for i in kept], dtype=torch.int64),
    }
    return result, [(kind, place.get(index), box) for kind, index, box in planted]


def _moved(box: Tensor, size: tuple[int, int], by: tuple[float, float], random: np.random.Generator) -> Tensor:
    """Moves a box in a direction in which most of it stays in the image; clips it."""
    x1, y1, x2, y2 = box.tolist()
    width, height = x2 - x1, y2 - y1
    best, most = box, -1.0
    for _ in range(TRIES):
        angle, far = random.uniform(0, 2 * np.pi), random.uniform(*by)
        dx, dy = far * width * np.cos(angle), far * height * np.sin(angle)
        new = _clipped([x1 + dx, y1 + dy, x2 + dx, y2 + dy], size)
        inside = float((new[2:] - new[:2]).clamp(min=0).prod()) / (width * height)
        if inside > most:
            best, most = new, inside
        if inside > 0.8:
            break
    return best


def _jittered(box: Tensor, size: tuple[int, int], random: np.random.Generator) -> Tensor:
    """Returns a box with an IoU of about 0.8 with `box`."""
    scale = (box[2:] - box[:2]).repeat(2).numpy()
    return _clipped((box.numpy() + scale * random.uniform(-0.05, 0.05, 4)).tolist(), size)


def _background(boxes: Tensor, like: Tensor, size: tuple[int, int], random: np.random.Generator) -> Tensor:
    """Returns a box about as large as `like` that overlaps all `boxes` little; the best of some at random."""
    height, width = size
    best, lowest = like, 2.0
    for _ in range(TRIES):
        wide, high = ((like[2:] - like[:2]).numpy() * random.uniform(0.5, 1.1, 2)).tolist()
        wide, high = min(wide, width - 1.0), min(high, height - 1.0)
        x, y = random.uniform(0, width - wide), random.uniform(0, height - high)
        new = torch.tensor([x, y, x + wide, y + high])
        overlap = float(pairwise_iou(new[None], boxes).max()) if len(boxes) else 0.0
        if overlap < lowest:
            best, lowest = new, overlap
        if overlap < 0.1:
            break
    return best


def _clipped(box: Sequence[float], size: tuple[int, int]) -> Tensor:
    height, width = size
    return torch.tensor([max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height)])


def flags(suspects: Sequence[Any], planted: Sequence[Planted], iou: float = 0.5) -> list[Planted | None]:
    """Returns for each suspect the error that it points at, None where there is none.

    A suspect with a given box points at the error of this box, whatever kind it states. One without (a missing box)
    points at a dropped box that it overlaps with at least `iou`, each only once.
    """
    wrong = {(error.image, error.given): error for error in planted if error.given is not None}
    dropped: dict[int, list[Planted]] = {}
    for error in planted:
        if error.given is None:
            dropped.setdefault(error.image, []).append(error)
    hits: list[Planted | None] = []
    for suspect in suspects:
        if suspect.given is not None:
            hits.append(wrong.pop((suspect.image, suspect.given), None))
            continue
        near = dropped.get(suspect.image, [])
        overlaps = [float(pairwise_iou(error.box[None], torch.tensor([suspect.proposed_box]))) for error in near]
        best = int(np.argmax(overlaps)) if overlaps else -1
        hits.append(near.pop(best) if best >= 0 and overlaps[best] >= iou else None)
    return hits
