"""What was mined: a sampler that wraps a sampler and remembers its last choice."""

from collections.abc import Callable

from torch import Tensor

from ohem.rois import IGNORE, RoIs
from ohem.samplers import OHEMSampler, RoISampler

# RoIs this far from every object are the easy background that mining is meant to leave out (paper, section 3.1).
FAR = 0.1
# To count what NMS leaves takes time with the square of the RoIs: seconds for so many, minutes for the anchors of some.
MOST_COUNTED = 30_000


class Recorder:
    """Wraps a sampler; `statistics` tells about its last call.

    Args:
        sampler: the strategy whose choices are recorded; they are passed on unchanged.
    """

    def __init__(self, sampler: RoISampler) -> None:
        self.sampler = sampler
        self.rois: RoIs | None = None
        self.chosen: Tensor | None = None
        self.losses: Tensor | None = None

    def __call__(self, rois: RoIs, losses: Callable[[], Tensor]) -> Tensor:
        self.losses = None

        def remembered() -> Tensor:
            if self.losses is None:
                self.losses = losses()
            return self.losses

        self.rois, self.chosen = rois, self.sampler(rois, remembered)
        return self.chosen

    def statistics(self) -> dict[str, float]:
        """Plain numbers to log, of the last mini-batch; empty before the first.

        `rois`: RoIs that could be chosen; `chosen`: how many were; `foreground`, `far`: share of the chosen that is
        foreground, and that has IoU < 0.1; and, if the sampler looked at the losses, `survivors` of NMS (of at
        most 30 000 RoIs), `loss_chosen`, `loss_all`: mean loss of the chosen and of all in the read-only pass; `nan`:
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
