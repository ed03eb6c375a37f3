"""Other ways to rank annotations by the same detections, as suspects of the same form.

- confidence: a given box by 1 - the highest score of its class on it, a missing box by its score.
- loss: a given box by its loss as the label of the detection that overlaps it most, cross entropy and smooth L1 of its
  corners; a missing box by the loss of the detection as background. This is our statement, for detections, of Schubert
  et al. 2023 (arXiv 2303.06999), who sum the losses of both stages of a detector over its proposals.
- objectlab: the scores of cleanlab.object_detection (ObjectLab) for overlooked, badly located and swapped boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ohem.boxes import pairwise_iou


@dataclass(frozen=True)
class Ranked:
    """A suspect of a peer; the fields are those of `ohem.insight.Suspect`."""

    image: int
    kind: str
    score: float
    given: int | None
    proposed_box: tuple[float, ...] | None


Peer = list[Ranked]


def confidence(targets: Sequence[Mapping[str, Tensor]], detections: Sequence[Mapping[str, Tensor]]) -> Peer:
    """Ranks by plain detector confidence."""
    ranked = []
    for image, (target, detected) in enumerate(zip(targets, detections, strict=True)):
        iou = pairwise_iou(target["boxes"], detected["boxes"])
        same = target["labels"][:, None] == detected["labels"]
        best = (detected["scores"] * (iou >= 0.5) * same).amax(1) if iou.shape[1] else torch.zeros(len(iou))
        ranked += [Ranked(image, "box", 1 - float(score), i, None) for i, score in enumerate(best)]
        ranked += _unmatched(image, detected, iou, detected["scores"])
    return _sorted(ranked)


def loss(targets: Sequence[Mapping[str, Tensor]], detections: Sequence[Mapping[str, Tensor]]) -> Peer:
    """Ranks by loss inspection."""
    ranked = []
    for image, (target, detected) in enumerate(zip(targets, detections, strict=True)):
        iou = pairwise_iou(target["boxes"], detected["boxes"])
        for i, box in enumerate(target["boxes"]):
            on = iou[i] >= 0.5
            same = on & (detected["labels"] == target["labels"][i])
            score = detected["scores"][same].max() if same.any() else torch.tensor(0.0)
            value = -score.clamp(min=1e-4).log()
            if iou.shape[1] and iou[i].max() > 0:
                size = (box[2:] - box[:2]).repeat(2)
                nearest = detected["boxes"][same][detected["scores"][same].argmax()] if same.any() else None
                nearest = detected["boxes"][iou[i].argmax()] if nearest is None else nearest
                value = value + torch.nn.functional.smooth_l1_loss(nearest / size * 10, box / size * 10)
            ranked.append(Ranked(image, "box", float(value), i, None))
        ranked += _unmatched(image, detected, iou, -(1 - detected["scores"]).clamp(min=1e-4).log())
    return _sorted(ranked)


def objectlab(
    targets: Sequence[Mapping[str, Tensor]], detections: Sequence[Mapping[str, Tensor]], classes: int
) -> Peer:
    """Ranks by the box scores of ObjectLab, 1 - score for each of its kinds; a given box by the higher of two."""
    from cleanlab.object_detection import rank

    labels = [
        {"bboxes": t["boxes"].numpy().astype(float), "labels": t["labels"].numpy().astype(int) - 1} for t in targets
    ]
    predictions = [
        np.array(
            [torch.cat([d["boxes"], d["scores"][:, None]], 1)[d["labels"] == k].numpy() for k in range(1, classes + 1)]
            + [None],
            dtype=object,
        )[:-1]
        for d in detections
    ]
    overlooked = rank.compute_overlooked_box_scores(labels=labels, predictions=predictions)
    badloc = rank.compute_badloc_box_scores(labels=labels, predictions=predictions)
    swap = rank.compute_swap_box_scores(labels=labels, predictions=predictions)
    ranked: Peer = []
    for image, target in enumerate(targets):
        for i in range(len(target["labels"])):
            scores = {"place": 1 - float(badloc[image][i]), "class": 1 - float(swap[image][i])}
            kind = max(scores, key=lambda name: scores[name])
            ranked.append(Ranked(image, kind, scores[kind], i, None))
        # Its scores are in the order of the classes, then of the detections of each.
        boxes = np.concatenate([p[:, :4] for p in predictions[image]])
        for box, value in zip(boxes, np.asarray(overlooked[image], float), strict=True):
            if not np.isnan(value):
                ranked.append(Ranked(image, "missing", 1 - float(value), None, tuple(box.tolist())))
    return _sorted(ranked)


def _unmatched(image: int, detections: Mapping[str, Tensor], iou: Tensor, scores: Tensor) -> Peer:
    """Returns the detections that overlap no given box, each with its score."""
    alone = (iou.amax(0) if len(iou) else torch.zeros(iou.shape[1])) < 0.5
    return [
        Ranked(image, "missing", float(scores[i]), None, tuple(detections["boxes"][i].tolist()))
        for i in torch.nonzero(alone).flatten().tolist()
    ]


def _sorted(ranked: Peer) -> Peer:
    return sorted(ranked, key=lambda suspect: -suspect.score)


METHODS: dict[str, Any] = {"confidence": confidence, "loss": loss}
"""Peers that need no number of classes."""
