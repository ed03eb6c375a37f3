"""Other ways to mine, written from their descriptions, to be measured next to ours: same network, RoIs and weights.

They differ in which RoIs go through the RoI network, how often, and in the choice.
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

from ohem.bench.methods import BenchMethod
from ohem.bench.workload import Training, training_workload
from ohem.config.methods import B_OVER_N
from ohem.config.schema import Recipe
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.roi_networks import RoINetworks
from ohem.kernels.fast_linear import forwards
from ohem.losses import detection_loss, roi_losses, weighted
from ohem.mining import hard_examples
from ohem.rois import RoIs
from ohem.samplers import Losses, RoISampler
from ohem.samplers.base import by_image


@dataclass(frozen=True)
class WholeNMS:
    """A sampler: NMS of torchvision among all RoIs of an image, then the hardest of those that are left."""

    batch_size: int

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        values = losses()
        return torch.cat([here[self._survivors(rois, values, here)][: self.batch_size] for here in by_image(rois)])

    def _survivors(self, rois: RoIs, losses: Tensor, here: Tensor) -> Tensor:
        kept: Tensor = batched_nms(rois.boxes[here].to(losses), losses[here], rois.images[here], 0.7)
        return kept


@dataclass(frozen=True)
class ClassLossSampler:
    """mmdetection's `OHEMSampler`: foreground and background separately, by the class loss alone, without NMS."""

    batch_size: int
    fg_fraction: float = 0.25

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        values = losses(1.0, 0.0)
        return torch.cat([self._image(rois, values, here) for here in by_image(rois)])

    def _image(self, rois: RoIs, losses: Tensor, here: Tensor) -> Tensor:
        foreground = rois.foreground[here]
        objects, background = here[foreground], here[~foreground]
        limit = int(self.batch_size * self.fg_fraction)
        chosen = objects[hard_examples(losses[objects], limit)]
        return torch.cat([chosen, background[hard_examples(losses[background], self.batch_size - len(chosen))]])


class PlainlyPooled(RoINetworks):
    """RoI networks whose windows are pooled by torchvision, every one of them."""

    def pools(self, features: Tensor, region: int, windows: Tensor, chunk: int) -> Iterator[Tensor]:
        size = self.backbone.pool_size
        return (roi_pool(features, part, (size, size)) for part in torch.split(windows.to(features), chunk))


class Plain(FastRCNN):
    """The two passes of the paper without our optimisations: torchvision pools every RoI, and every RoI is run.

    Its linear layers are those of PyTorch. Our training and detection replace them by faster ones.
    """

    def head(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        with forwards(self, {nn.Linear: lambda layer: partial(nn.Linear.forward, layer)}):
            return super().head(features, rois)

    def roi_networks(self) -> RoINetworks:
        return PlainlyPooled(**vars(super().roi_networks()))

    def _all_outputs(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        return self.head(features, rois)

    @torch.no_grad()
    def read_only_parts(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        return roi_losses(*self._all_outputs(features, rois), rois)


class PerImage(Plain):
    """mmdetection: the RoIs of each image pass the head without gradient, foreground and background separately."""

    def read_only_losses(
        self, features: Tensor, rois: RoIs, cls_weight: float = 1.0, box_weight: float = 1.0
    ) -> Tensor:
        losses = features.new_zeros(len(rois), dtype=torch.promote_types(features.dtype, torch.float32))
        for here in by_image(rois):
            for part in (here[rois.foreground[here]], here[~rois.foreground[here]]):
                losses[part] = super().read_only_losses(features, rois[part], cls_weight, box_weight)
        return losses


class Gathered(Plain):
    """The OHEM example of chainercv: one pass of all RoIs with gradient; the losses of the chosen are taken from it."""

    def _loss_layer(self, features: Tensor, rois: RoIs, always: RoIs | None) -> tuple[dict[str, Tensor], RoIs]:
        assert always is None  # no recipe of a benchmark has such regions
        scores, deltas = self.head(features, rois)
        keep = self.sampler(rois, partial(weighted, roi_losses(scores.detach(), deltas.detach(), rois)))
        return detection_loss(scores[keep], deltas[keep], rois[keep]), rois[keep]


class Rival(NamedTuple):
    """Another way to mine."""

    network: type[FastRCNN]
    sampler: Callable[[int], RoISampler]
    like: BenchMethod
    """Method of `ohem bench` with the same recipe."""


RIVALS = {
    "plain": Rival(Plain, WholeNMS, "ohem"),
    "mmdetection": Rival(PerImage, ClassLossSampler, "ohem"),
    "chainercv": Rival(Gathered, WholeNMS, "ohem-loss-layer"),
}


@contextmanager
def rival(name: str, recipe: Recipe, folder: Path, steps: int) -> Iterator[Training]:
    """Makes a workload of the first `steps` steps of `recipe`, with the network and the sampler of the rival `name`."""
    with training_workload(recipe, folder, steps) as workload:
        workload.trainer.detector.__class__ = RIVALS[name].network
        workload.trainer.recorder.sampler = RIVALS[name].sampler(recipe.sampler.batch_size or B_OVER_N)
        yield workload
