"""Evidence from the mining log of a run that was trained on the annotations: which boxes stayed hard.

A detector that has learnt the errors of its annotations no longer contradicts them; its losses during the training did.

Background RoIs that were mined and taken for an object are no evidence of missing boxes here: in a fit to planted
errors their weight was negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ohem.data.dataset import DetectionSet
from ohem.insight.suspects.evidence import logit, sigmoid
from ohem.insight.suspects.scores import LEAST, Suspect, audit
from ohem.metrics.inputs import Floats, Ints
from ohem.mining_log.tables import Columns, read_tables

_DEEPER = 0.01
"""The log may raise the scores of suspects that are less likely by this factor than those that are kept."""
_LEAST_LOSS = 0.05
"""Added to losses, so that small ones do not differ much."""
COEFFICIENTS = (0.48, 1.20, 1.33)
"""Offset, weight of the log odds by detections, weight of the relative loss: `python -m benchmarks.audit.mined`."""
Mined = Mapping[int, Floats]
"""Index of an image -> (G,) for its given boxes, log of the loss of their chosen RoIs in a visit, against the median of
the class."""


def read_mined(run: Path, data: DetectionSet) -> Mined:
    """Reads the mining log of a run about the images of `data`, by index; those that it does not have are missing.

    An image whose number of given boxes has changed since is left out, and so are all where the sampler used no losses.

    Raises:
        InputError: a table of the log is damaged.
    """
    tables = read_tables(run, "ohem audit", ["images"])
    if tables is None:
        return {}
    losses = _losses(tables["images"], {name: index for index, name in enumerate(data.ids)})
    labels: dict[int, Ints] = {index: data.target(index)["labels"].numpy() for index in losses}
    losses = {index: values for index, values in losses.items() if len(values) == len(labels[index])}
    if not any(values.any() for values in losses.values()):
        return {}
    usual = _usual(losses, labels)
    return {index: np.log(values + _LEAST_LOSS) - usual[labels[index]] for index, values in losses.items()}


def audit_mined(
    targets: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
    mined: Mined,
    *,
    least: float = LEAST,
) -> list[Suspect]:
    """Does what `audit` does, with scores that also take the mining log into account; arguments as there."""
    suspects = audit(targets, predictions, least=least * _DEEPER if mined else least)
    weighed = [_weigh(suspect, mined[suspect.image]) if suspect.image in mined else suspect for suspect in suspects]
    return sorted((s for s in weighed if s.score >= least), key=lambda suspect: -suspect.score)


def _weigh(suspect: Suspect, loss: Floats) -> Suspect:
    if suspect.given is None:
        return suspect
    offset, odds, weight = COEFFICIENTS
    log_odds = offset + odds * logit(suspect.score) + weight * loss[suspect.given]
    return replace(suspect, score=float(sigmoid(log_odds)))


def _losses(table: Columns, indices: Mapping[str, int]) -> dict[int, Floats]:
    """Returns the loss of a visit of each given box of each image."""
    losses: dict[int, list[float]] = {}
    for name, place, seen, loss in zip(*(table[key] for key in ("image", "object", "visits", "loss")), strict=True):
        index = indices.get(name)
        if index is None or not seen:
            continue
        of_image = losses.setdefault(index, [])
        if place >= 0:
            of_image.append(loss / seen)
    return {index: np.asarray(values, dtype=np.float64) for index, values in losses.items()}


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
