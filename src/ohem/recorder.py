"""Statistics of what was mined: a sampler that wraps a sampler and remembers its last choice."""

from typing import Any

import torch
from torch import Tensor

from ohem.rois import IGNORE, RoIs
from ohem.samplers import Losses, NoiseAwareSampler, OHEMSampler, RoISampler, call_losses
from ohem.samplers.base import check_chosen, check_sampler

# The easy background that mining is meant to leave out (paper, section 3.1) has a lower IoU with every object.
FAR = 0.1
# The time to count the survivors of NMS is quadratic in the number of RoIs: minutes for the anchors of some detectors.
MOST_COUNTED = 10_000

STATISTICS: dict[str, str] = {
    "rois": "number of RoIs that could be chosen: all except the ignored ones",
    "chosen": "number of RoIs that were chosen",
    "foreground": "share of the chosen RoIs that are foreground",
    "far": f"share of the chosen RoIs whose IoU with every object is below {FAR}",
    "set_aside": "number of RoIs that a `NoiseAwareSampler` set aside",
    "survivors": "number of RoIs that NMS left, before the hardest of them were chosen",
    "loss_chosen": "mean loss of the chosen RoIs, as used for the ranking",
    "loss_all": "mean loss of all RoIs that could be chosen, as used for the ranking",
    "nan": "number of RoIs whose loss is NaN",
}
"""Every key that `Recorder.statistics` can have, and what it means."""


class Recorder:
    """A sampler that wraps another sampler and records its last call. `print` it to see the statistics.

    Args:
        sampler: the sampler whose choices are recorded and returned unchanged.

    Raises:
        TypeError: `sampler` cannot be called.
    """

    def __init__(self, sampler: RoISampler) -> None:
        check_sampler(sampler)
        self.sampler = sampler
        self.rois: RoIs | None = None
        self.chosen: Tensor | None = None
        self.losses: Tensor | None = None

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        # Without a reset, an exception in the sampler would leave the losses of one mini-batch and the RoIs of another.
        self.rois = self.chosen = self.losses = None
        computed: dict[tuple[float, float], Tensor] = {}

        def compute_once(cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
            weights = cls_weight, box_weight
            self.losses = computed[weights] if weights in computed else call_losses(losses, *weights)
            computed[weights] = self.losses
            return self.losses

        chosen = check_chosen(self.sampler(rois, compute_once), rois, self.sampler)
        self.rois, self.chosen = rois, chosen
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state for copies, pickles and checkpoints: the sampler, without tensors of the mini-batch."""
        return {**vars(self), "rois": None, "chosen": None, "losses": None}

    def __repr__(self) -> str:
        """Returns the sampler and a line for each statistic of the last mini-batch."""
        numbers = self.statistics()
        if not numbers:
            return f"Recorder({self.sampler!r}): nothing mined yet"
        lines = [f"    {key:<11} {numbers[key]:>10.6g}  {STATISTICS[key]}" for key in STATISTICS if key in numbers]
        return "\n".join([f"Recorder({self.sampler!r}), last mini-batch:", *lines])

    def statistics(self) -> dict[str, float]:
        """Returns numbers to log about the last mini-batch: those of `STATISTICS` that are known.

        The dict is empty before the first call. `loss_chosen`, `loss_all` and `nan` are known if the sampler called the
        losses: they are those of the read-only pass. `survivors` is known if, besides, the sampler is an `OHEMSampler`
        and there were at most 10 000 RoIs; `set_aside` if it is a `NoiseAwareSampler`.
        """
        if self.rois is None or self.chosen is None:
            return {}
        chosen = self.rois[self.chosen]
        minable = self.rois.labels != IGNORE
        count = max(len(chosen), 1)
        numbers = {
            "rois": float(minable.sum()),
            "chosen": float(len(chosen)),
            "foreground": float(chosen.foreground.sum()) / count,
            "far": float((chosen.ious < FAR).sum()) / count,
        }
        if self.losses is not None:
            numbers["loss_chosen"] = float(self.losses[self.chosen].sum()) / count
            numbers["loss_all"] = float(self.losses[minable].mean()) if numbers["rois"] else 0.0
            numbers["nan"] = float(self.losses.isnan().sum())
            if isinstance(self.sampler, OHEMSampler) and len(self.rois) <= MOST_COUNTED:
                numbers["survivors"] = float(self.sampler.survivors(self.rois, self.losses))
            if isinstance(self.sampler, NoiseAwareSampler):
                numbers["set_aside"] = float(self.sampler.set_aside(self.rois, self.losses).sum())
        return numbers

    def iou_histogram(self) -> list[int]:
        """Returns how many of the chosen RoIs have an IoU in [0, 0.1), [0.1, 0.2), ..., [0.9, 1].

        The list is empty before the first call.
        """
        if self.rois is None or self.chosen is None:
            return []
        tenths = (self.rois.ious[self.chosen].float() * 10).long().clamp(0, 9)
        return torch.bincount(tenths, minlength=10).tolist()
