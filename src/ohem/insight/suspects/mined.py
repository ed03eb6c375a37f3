"""Evidence from the mining log of a run that was trained on the annotations: what stayed hard or resembled an object.

A detector that has learnt the errors of its annotations no longer contradicts them; its losses during the training did.

Shapes: G: given boxes of an image   M: logged background RoIs of an image
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ohem.data.dataset import DetectionSet
from ohem.insight.mining_tables import Columns, read_tables
from ohem.insight.suspects.evidence import iou_and_shared, logit, sigmoid
from ohem.insight.suspects.scores import LEAST, Suspect, audit
from ohem.metrics.inputs import Floats, Ints

OVERLAP = 0.5
"""IoU from which a logged RoI is about a missing box."""
_DEEPER = 0.01
"""The log may raise the scores of suspects that are less likely by this factor than those that are kept."""
_LEAST_LOSS = 0.05
"""Added to losses, so that small ones do not differ much."""
GIVEN = (0.0, 1.0, 0.0)
"""Offset, weight of the log odds by detections, weight of the relative loss."""
MISSING = (0.0, 1.0, 0.0)
"""Offset, weight of the log odds by detections, weight of the share of visits."""


@dataclass(frozen=True)
class MinedImage:
    """What the mining log has of an image."""

    loss: Floats
    """(G,) log of the loss of the chosen RoIs of each given box in a visit, against the median of its class."""
    boxes: Floats
    """(M, 4) background RoIs that were chosen and taken for an object."""
    taken_for: Ints
    """(M,) the label."""
    share: Floats
    """(M,) probability of that label, divided by the number of visits of the image."""
    step: Ints
    """(M,) the step."""


def read_mined(run: Path, data: DetectionSet) -> dict[int, MinedImage]:
    """Reads the mining log of a run about the images of `data`, by index; those that it does not have are missing.

    An image whose number of given boxes has changed since is left out.

    Raises:
        InputError: a table of the log is damaged.
    """
    tables = read_tables(run, "ohem audit")
    if tables is None:
        return {}
    indices = {name: index for index, name in enumerate(data.ids)}
    losses, visits = _losses(tables["images"], indices)
    targets = {index: data.target(index)["labels"].numpy() for index in losses}
    losses = {index: values for index, values in losses.items() if len(values) == len(targets[index])}
    usual = _usual(losses, targets)
    rows = _background(tables["rows"], indices)
    mined = {}
    for index, values in losses.items():
        here = rows.get(index, np.zeros((0, 7)))
        relative = np.log(values + _LEAST_LOSS) - usual[targets[index]]
        mined[index] = MinedImage(
            relative, here[:, :4], here[:, 4].astype(np.int64), here[:, 5] / visits[index], here[:, 6].astype(np.int64)
        )
    return mined


def audit_mined(
    targets: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
    mined: Mapping[int, MinedImage],
    *,
    least: float = LEAST,
) -> list[Suspect]:
    """Does what `audit` does, with scores that also take the mining log into account; arguments as there."""
    suspects = audit(targets, predictions, least=least * _DEEPER if mined else least)
    weighed = [_weigh(suspect, mined[suspect.image]) if suspect.image in mined else suspect for suspect in suspects]
    return sorted((s for s in weighed if s.score >= least), key=lambda suspect: -suspect.score)


def feature(suspect: Suspect, mined: MinedImage) -> float:
    """Returns the evidence about a suspect: relative loss of a given box, share of visits of a missing one."""
    if suspect.given is not None:
        return float(mined.loss[suspect.given])
    overlap, _ = iou_and_shared(mined.boxes, np.asarray([suspect.proposed_box], dtype=np.float64))
    about = (overlap[:, 0] >= OVERLAP) & (mined.taken_for == suspect.proposed_label)
    if not about.any():
        return 0.0
    steps, place = np.unique(mined.step[about], return_inverse=True)
    highest = np.zeros(len(steps))
    np.maximum.at(highest, place, mined.share[about])
    return float(highest.sum())


def _weigh(suspect: Suspect, mined: MinedImage) -> Suspect:
    offset, odds, weight = MISSING if suspect.given is None else GIVEN
    log_odds = offset + odds * logit(suspect.score) + weight * feature(suspect, mined)
    return replace(suspect, score=float(sigmoid(np.asarray(log_odds))))


def _losses(table: Columns, indices: Mapping[str, int]) -> tuple[dict[int, Floats], dict[int, int]]:
    """Returns the loss of a visit of each given box, and the number of visits, of each image."""
    losses: dict[int, list[float]] = {}
    visits: dict[int, int] = {}
    for name, place, seen, loss in zip(*(table[key] for key in ("image", "object", "visits", "loss")), strict=True):
        index = indices.get(name)
        if index is None or not seen:
            continue
        visits[index] = seen
        of_image = losses.setdefault(index, [])
        if place >= 0:
            of_image.append(loss / seen)
    return {index: np.asarray(values, dtype=np.float64) for index, values in losses.items()}, visits


def _usual(losses: Mapping[int, Floats], labels: Mapping[int, Ints]) -> Floats:
    """Returns the median log loss of each label; that of all boxes where a class has fewer than five."""
    everything = np.concatenate([np.zeros(0), *losses.values()])
    of = np.concatenate([np.zeros(0, np.int64), *(labels[index] for index in losses)])
    logs = np.log(everything + _LEAST_LOSS)
    whole = float(np.median(logs)) if len(logs) else 0.0
    usual = np.full(int(of.max(initial=0)) + 1, whole)
    for label in np.unique(of):
        own = logs[of == label]
        if len(own) >= 5:
            usual[label] = np.median(own)
    return usual


def _background(table: Columns, indices: Mapping[str, int]) -> dict[int, Floats]:
    """Returns the logged background RoIs of each image: box, label that it was taken for, probability, step."""
    rows: dict[int, list[list[float]]] = {}
    keys = ("image", "placed", "label", "x1", "y1", "x2", "y2", "taken_for", "taken_score", "step")
    for name, placed, label, *values in zip(*(table[key] for key in keys), strict=True):
        index = indices.get(name)
        if index is not None and placed and label == 0 and values[4] > 0:
            rows.setdefault(index, []).append(values)
    return {index: np.asarray(values, dtype=np.float64) for index, values in rows.items()}
