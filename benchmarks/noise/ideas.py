"""Other ways to leave missing boxes alone than that of `NoiseAwareSampler`, and `ohem` with one of them in its place.

    python -m benchmarks.noise.ideas trimmed train runs/trimmed --recipe demo-ohem --sampler.name noise_aware ...

trimmed: a top share of the background losses of each image, 1 - confidence, to which it grows over `warmup` steps.
visits: RoIs that were taken for an object, as in `NoiseAwareSampler`, at this visit of the image and at the last one.
"""

import sys
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import ohem.samplers
from ohem.cli import main
from ohem.mining import hard_examples
from ohem.rois import BACKGROUND, IGNORE, RoIs
from ohem.samplers import SAMPLERS, NamedSampler, NoiseAwareSampler, OHEMSampler
from ohem.samplers.base import Losses, by_image, call_losses


@dataclass(frozen=True)
class Trimmed(NoiseAwareSampler):
    """Sets aside the top share of the losses of isolated background, which grows to 1 - `confidence`."""

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        self._steps[0] += 1
        values = call_losses(losses)
        labels = rois.labels.masked_fill(self.set_aside(rois, values), IGNORE)
        return self.sampler(replace(rois, labels=labels), lambda *_: values)

    def set_aside(self, rois: RoIs, losses: Tensor) -> Tensor:
        """Returns (R,) bool, the isolated background of the highest losses."""
        share = (1 - self.confidence) * min(1.0, self._steps[0] / max(self.warmup, 1))
        isolated = (rois.labels == BACKGROUND) & (rois.ious < self.far)
        aside = torch.zeros_like(isolated)
        for image in by_image(rois):
            here = image[isolated[image]]
            aside[here[hard_examples(losses[here], round(share * len(here)))]] = True
        return aside


@dataclass(frozen=True)
class Visits(NoiseAwareSampler):
    """Sets aside what was taken for an object at two visits of the image, which are recognised by their RoIs."""

    before: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def suspects(self, rois: RoIs, losses: Tensor) -> Tensor:
        """Returns (R,) bool, the RoIs that are suspects now and at the last visit."""
        now = super().suspects(rois, losses)
        both = torch.zeros_like(now)
        for number in range(rois.num_images):
            here = rois.images == number
            key = hash(rois.boxes[here].numpy().tobytes())
            both[here] = now[here] & self.before.get(key, torch.zeros_like(now[here]))
            self.before[key] = now[here]
        return both


IDEAS = {"trimmed": Trimmed, "visits": Visits}


def run(name: str, arguments: list[str]) -> None:
    """Runs `ohem` with the sampler of an idea under the name noise_aware."""
    make = IDEAS[name]
    known = dict(SAMPLERS)
    known["noise_aware"] = NamedSampler(
        lambda batch_size=64, nms_iou=0.7, confidence=0.5, far=0.1, warmup=1000: make(
            OHEMSampler(batch_size, nms_iou), confidence, far, warmup
        ),
        SAMPLERS["noise_aware"].options,
    )
    ohem.samplers.SAMPLERS = known
    main(arguments)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
