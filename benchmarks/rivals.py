"""Other ways to mine, re-stated from their descriptions to be timed beside ours: same network, RoIs and weights.

They differ in which RoIs go through the RoI network, how often, and in what is chosen; none is tuned against.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, roi_pool

from ohem.detection.fast_rcnn import FastRCNN
from ohem.experiments.bench.arms import Arm
from ohem.experiments.bench.training import Training, training
from ohem.layers import forwards
from ohem.losses import detection_loss, roi_losses, weighted
from ohem.mining import hard_examples
from ohem.rois import RoIs
from ohem.samplers import Losses, RoISampler
from ohem.samplers.base import by_image
from ohem.training.config import Recipe


@dataclass(frozen=True)
class WholeNMS:
    """Suppression of all RoIs by torchvision, then the hardest of what is left."""

    batch_size: int

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        values = losses()
        return torch.cat([here[self._survivors(rois, values, here)][: self.batch_size] for here in by_image(rois)])

    def _survivors(self, rois: RoIs, losses: Tensor, here: Tensor) -> Tensor:
        kept: Tensor = batched_nms(rois.boxes[here], losses[here], rois.images[here], 0.7)
        return kept


@dataclass(frozen=True)
class ClassLossApart:
    """mmdetection's `OHEMSampler`: foreground and background apart, by the class loss alone, no NMS."""

    batch_size: int
    fg_fraction: float = 0.25

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        values = losses(1.0, 0.0)
        return torch.cat([self._image(rois, values, here) for here in by_image(rois)])

    def _image(self, rois: RoIs, losses: Tensor, here: Tensor) -> Tensor:
        foreground = rois.foreground[here]
        objects, background = here[foreground], here[~foreground]
        most = int(self.batch_size * self.fg_fraction)
        chosen = objects[hard_examples(losses[objects], most)]
        return torch.cat([chosen, background[hard_examples(losses[background], self.batch_size - len(chosen))]])


class Plain(FastRCNN):
    """The paper's two passes as they are written down: every RoI is pooled by torchvision and run, alike or not.

    Its linear layers are PyTorch's own: our training and detection make them faster, those of others do not.
    """

    def head(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        with forwards(self, {nn.Linear: lambda layer: partial(nn.Linear.forward, layer)}):
            return super().head(features, rois)

    def _pooled(self, features: Tensor, windows: Tensor, chunk: int) -> Iterator[Tensor]:
        size = self.backbone.pool_size
        return (roi_pool(features, part, (size, size)) for part in torch.split(windows.to(features), chunk))

    def _all_outputs(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        return self.head(features, rois)

    @torch.no_grad()
    def read_only_parts(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        return roi_losses(*self._all_outputs(features, rois), rois)


class PerImage(Plain):
    """mmdetection runs the RoIs of each image, foreground and background apart, through the head without gradient."""

    def read_only_losses(self, features: Tensor, rois: RoIs, classifier: float = 1.0, box_reg: float = 1.0) -> Tensor:
        losses = torch.zeros(len(rois))
        for here in by_image(rois):
            for part in (here[rois.foreground[here]], here[~rois.foreground[here]]):
                losses[part] = super().read_only_losses(features, rois[part], classifier, box_reg)
        return losses


class Gathered(Plain):
    """chainercv's example of OHEM: one pass of all RoIs with gradient, the losses of the chosen gathered from it."""

    def _loss_layer(self, features: Tensor, rois: RoIs) -> dict[str, Tensor]:
        scores, deltas = self.head(features, rois)
        keep = self.sampler(rois, partial(weighted, roi_losses(scores.detach(), deltas.detach(), rois)))
        return detection_loss(scores[keep], deltas[keep], rois[keep])


class Rival(NamedTuple):
    """Another way to mine."""

    network: type[FastRCNN]
    sampler: Callable[[int], RoISampler]
    like: Arm
    """The arm of `ohem bench` whose recipe it has."""


RIVALS = {
    "plain": Rival(Plain, WholeNMS, "ohem"),
    "mmdetection": Rival(PerImage, ClassLossApart, "ohem"),
    "chainercv": Rival(Gathered, WholeNMS, "ohem-loss-layer"),
}


@contextmanager
def rival(name: str, recipe: Recipe, folder: Path, steps: int) -> Iterator[Training]:
    """The first `steps` steps of `recipe`, done as `name` does it."""
    with training(recipe, folder, steps) as workload:
        workload.trainer.detector.__class__ = RIVALS[name].network
        workload.trainer.recorder.sampler = RIVALS[name].sampler(recipe.sampler.batch_size)
        yield workload
