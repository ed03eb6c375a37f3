"""Detections as a detector would make them, drawn at random from the right annotations: no network, no pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Simulated:
    """A simulated detector.

    Args:
        skill: mean log odds of the score of the right class; the larger, the better.
        spread: standard deviation of these log odds.
        confused: log odds of the other classes: mean below the right class.
        jitter: standard deviation of the corners, as a share of the size of the object.
        false: mean number of false detections in an image.
    """

    skill: float = 2.5
    spread: float = 2.0
    confused: float = 5.0
    jitter: float = 0.08
    false: float = 12.0


GOOD = Simulated(3.5, 1.5, 6.0, 0.05, 6.0)
MIDDLING = Simulated()
POOR = Simulated(1.0, 2.0, 3.0, 0.12, 25.0)


def simulate(
    targets: Sequence[Mapping[str, Tensor]],
    sizes: Sequence[tuple[int, int]],
    classes: int,
    detector: Simulated = MIDDLING,
    seed: int = 0,
) -> list[dict[str, Tensor]]:
    """Returns the detections of `detector` in images with the right annotations `targets`.

    Args:
        targets: boxes and labels of each image.
        sizes: (height, width) of each image.
        classes: number of classes.
        detector: how good it is.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    hard = random.normal(0, 0.7, classes)  # some classes are harder
    return [_in_image(t, size, classes, detector, hard, random) for t, size in zip(targets, sizes, strict=True)]


def _in_image(
    target: Mapping[str, Tensor],
    size: tuple[int, int],
    classes: int,
    detector: Simulated,
    hard: np.ndarray,
    random: np.random.Generator,
) -> dict[str, Tensor]:
    height, width = size
    boxes: list[np.ndarray] = []
    labels: list[int] = []
    logits: list[float] = []
    for box, label in zip(target["boxes"].numpy(), target["labels"].tolist(), strict=True):
        scale = np.tile(box[2:] - box[:2], 2)
        skill = detector.skill + hard[label - 1] + random.normal(0, detector.spread)
        for name in range(1, classes + 1):
            log_odds = skill if name == label else -abs(skill) - detector.confused + random.normal(0, 2.5) + 2
            if log_odds > -6:
                boxes.append(box + scale * random.normal(0, detector.jitter, 4))
                labels.append(name)
                logits.append(log_odds)
        for _ in range(random.poisson(1.5)):  # parts of the object, and boxes too large
            boxes.append(box + scale * random.normal(0, 0.3, 4))
            labels.append(label)
            logits.append(skill - 3 + random.normal(0, 1.5))
    for _ in range(random.poisson(detector.false)):
        wide, high = random.uniform(0.1, 0.5, 2) * (width, height)
        x, y = random.uniform(0, width - wide), random.uniform(0, height - high)
        boxes.append(np.array([x, y, x + wide, y + high]))
        labels.append(int(random.integers(1, classes + 1)))
        logits.append(random.normal(-4.5, 1.5))
    array = np.array(boxes, np.float32).reshape(-1, 4).clip(0, np.tile([width, height], 2))
    array[:, 2:] = np.maximum(array[:, 2:], array[:, :2] + 1)
    scores = 1 / (1 + np.exp(-np.array(logits, np.float32)))
    return {
        "boxes": torch.from_numpy(array),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.from_numpy(scores.astype(np.float32)),
    }
