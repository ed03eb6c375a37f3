"""What was mined: a sampler that wraps a sampler and remembers its last choice."""

from typing import Any

import torch
from torch import Tensor

from ohem.rois import IGNORE, RoIs
from ohem.samplers import Losses, OHEMSampler, RoISampler, ask
from ohem.samplers.base import check_chosen, check_sampler

# RoIs this far from every object are the easy background that mining is meant to leave out (paper, section 3.1).
FAR = 0.1
# To count what NMS leaves takes time with the square of the RoIs: minutes for the anchors of some detectors.
MOST_COUNTED = 10_000


class Recorder:
    """Wraps a sampler; `statistics` tells about its last call.

    Args:
        sampler: the strategy whose choices are recorded; they are passed on unchanged.

    Raises:
        TypeError: it cannot be called.
    """

    def __init__(self, sampler: RoISampler) -> None:
        check_sampler(sampler)
        self.sampler = sampler
        self.rois: RoIs | None = None
        self.chosen: Tensor | None = None
        self.losses: Tensor | None = None

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        self.losses = None

        known: dict[tuple[float, float], Tensor] = {}

        def remembered(classifier: float = 1.0, box_reg: float = 1.0) -> Tensor:
            weights = classifier, box_reg
            self.losses = known[weights] if weights in known else ask(losses, *weights)
            known[weights] = self.losses
            return self.losses

        chosen = check_chosen(self.sampler(rois, remembered), rois, self.sampler)
        self.rois, self.chosen = rois, chosen
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        """Copies, pickles and checkpoints hold the strategy, and not the tensors of the last mini-batch."""
        return {**vars(self), "rois": None, "chosen": None, "losses": None}

    def statistics(self) -> dict[str, float]:
        """Plain numbers to log, of the last mini-batch; empty before the first.

        `rois`: RoIs that could be chosen; `chosen`: how many were; `foreground`, `far`: share of the chosen that is
        foreground, and that has IoU < 0.1; and, if the sampler looked at the losses, `survivors` of NMS (of at
        most 10 000 RoIs), `loss_chosen`, `loss_all`: mean loss of the chosen and of all in the read-only pass; `nan`:
        losses that are NaN.
        """
        if self.rois is None or self.chosen is None:
            return {}
        picked = self.rois[self.chosen]
        minable = self.rois.labels != IGNORE
        count = max(len(picked), 1)
        numbers = {
            "rois": float(minable.sum()),
            "chosen": float(len(picked)),
            "foreground": float(picked.foreground.sum()) / count,
            "far": float((picked.ious < FAR).sum()) / count,
        }
        if self.losses is not None:
            numbers["loss_chosen"] = float(self.losses[self.chosen].sum()) / count
            numbers["loss_all"] = float(self.losses[minable].mean()) if numbers["rois"] else 0.0
            numbers["nan"] = float(self.losses.isnan().sum())
            if isinstance(self.sampler, OHEMSampler) and len(self.rois) <= MOST_COUNTED:
                numbers["survivors"] = float(self.sampler.survivors(self.rois, self.losses))
        return numbers

    def iou_histogram(self) -> list[int]:
        """How many of the chosen have an IoU in [0, 0.1), [0.1, 0.2), ..., [0.9, 1]; empty before the first call."""
        if self.rois is None or self.chosen is None:
            return []
        tenths = (self.rois.ious[self.chosen].float() * 10).long().clamp(0, 9)
        return torch.bincount(tenths, minlength=10).tolist()
