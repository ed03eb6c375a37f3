"""What the processes of a training exchange, so that together they train as one process does.

The images of a mini-batch are dealt to the processes in turns (`positions`): image j of process r is image
j x processes + r of the mini-batch. With gradients accumulated image by image, each image is a mini-batch of its own,
unless the RoIs of all are ranked first.

Shapes: R: RoIs of this process
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from ohem.config.schema import Recipe
from ohem.data.loader import Example, Stream, seed_of
from ohem.detection.detector import Detector
from ohem.detection.windows import sizes_of
from ohem.draws import seed, seeded_images
from ohem.models.shared_batch import share_batch_norm
from ohem.recorder import Recorder
from ohem.rois import RoIs
from ohem.samplers import Losses, NoiseAwareSampler, OHEMSampler, RoISampler
from ohem.training.distributed import Fabric
from ohem.training.joint import PyramidSampler


class WholeBatch:
    """The mini-batch of all processes.

    Args:
        recipe: of the training.
        fabric: devices and processes.
        detector: the detector that is trained.
    """

    def __init__(self, recipe: Recipe, fabric: Fabric, detector: Detector) -> None:
        self.recipe, self.fabric, self.detector = recipe, fabric, detector
        solver = recipe.solver
        self.shared = fabric.world_size > 1 and (not solver.accumulate or solver.rank_first)
        self.pyramid: PyramidSampler | None = None
        if fabric.world_size > 1:
            share_batch_norm(detector, one_by_one=solver.accumulate)

    def sampler(self, sampler: RoISampler) -> RoISampler:
        """Returns `sampler`, or what lets it choose among the RoIs of all processes if it compares those of images."""
        shared = GatheredSampler(sampler, self.fabric) if self.shared and _compares_images(sampler) else sampler
        if not self.recipe.data.pyramid:
            return shared
        self.pyramid = PyramidSampler(shared)
        return self.pyramid

    @contextmanager
    def step(self, examples: Sequence[Example], batch: Sequence[Example] = ()) -> Iterator[None]:
        """Begins the random numbers of each of `examples`, and pads them as in the whole mini-batch.

        Images of `batch`, of this process, pass one by one, but are padded as if they passed together.
        """
        seeds = [seed_of(self.recipe.solver.seed, Stream.STEP, example.position) for example in examples]
        seed(seeds[0], self.fabric.device)
        if self.pyramid:
            self.pyramid.begin(examples)
        if self.shared or batch:
            resized = [self.detector.network_size(size) for size in sizes_of([e.image for e in batch or examples])]
            sizes = torch.tensor(resized).amax(dim=0)
            largest = cast(Tensor, self.fabric.all_reduce(sizes.to(self.fabric.device), reduce_op="max"))
            self.detector.least_size = (int(largest[0]), int(largest[1]))
        try:
            with seeded_images(seeds):
                yield
        finally:
            self.detector.least_size = (0, 0)  # images of an evaluation or a measurement are alone

    def weighted(
        self, losses: Mapping[str, Tensor], trained_on: int | None = None, passes: int = 1
    ) -> dict[str, Tensor]:
        """Weights the losses of this process, so that their mean over the processes is that of the whole mini-batch.

        Args:
            losses: of a pass, each divided by the number of RoIs or anchors that it is a sum over.
            trained_on: number of RoIs that this process trains on in `passes` passes over the mini-batch, of which this
                is one; None: a pass has a mini-batch of its own.
            passes: their number, equal in all processes.
        """
        if trained_on is None and not self.shared:
            return dict(losses)
        counts = [torch.as_tensor(self.detector.number_trained_on(name), device=self.fabric.device) for name in losses]
        own = torch.stack(counts).double()
        total = own.clone() if trained_on is None else torch.full_like(own, trained_on / passes)
        mean = cast(Tensor, self.fabric.all_reduce(total, reduce_op="mean")).clamp(min=1 / self.fabric.world_size)
        weights = (own.clamp(min=1) / mean).tolist()
        return {name: value * weight for (name, value), weight in zip(losses.items(), weights, strict=True)}

    def mean(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Returns the mean of numbers over the processes."""
        if self.fabric.world_size == 1:
            return dict(numbers)
        own = torch.tensor(list(numbers.values()), dtype=torch.float64, device=self.fabric.device)
        means = cast(Tensor, self.fabric.all_reduce(own, reduce_op="mean"))
        return dict(zip(numbers, means.tolist(), strict=True))

    def statistics(self, recorder: Recorder) -> dict[str, float]:
        """Returns the statistics of the last mini-batch over all processes, all of which must call it."""
        if not self.shared or recorder.rois is None or recorder.chosen is None:
            return self.mean(recorder.statistics())
        # Those of a pyramid are of another frame than its NMS, whose survivors are not counted.
        whole = Recorder(self.pyramid or plain_sampler(recorder.sampler))
        gathered = _Gathered(recorder.rois, self.fabric)
        whole.rois = gathered.rois
        whole.chosen = gathered.join(_mask(recorder.chosen, recorder.rois)).nonzero().squeeze(1)
        whole.losses = None if recorder.losses is None else gathered.join(recorder.losses)
        return whole.statistics()


class GatheredSampler:
    """A sampler that lets another one choose among the RoIs of all processes, and returns the chosen of its process.

    Args:
        sampler: it must not draw random numbers, so that every process chooses the same.
        fabric: the processes.
    """

    def __init__(self, sampler: RoISampler, fabric: Fabric) -> None:
        self.sampler, self.fabric = sampler, fabric

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        gathered = _Gathered(rois, self.fabric)

        def compute(cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
            return gathered.join(losses(cls_weight, box_weight))

        own = gathered.own[self.sampler(gathered.rois, compute)]
        return own[own >= 0]


def plain_sampler(sampler: RoISampler) -> RoISampler:
    """Returns the sampler of the recipe, without those around it."""
    while isinstance(sampler, GatheredSampler | PyramidSampler):
        sampler = sampler.sampler
    return sampler


def _compares_images(sampler: RoISampler) -> bool:
    if isinstance(sampler, NoiseAwareSampler):
        return _compares_images(sampler.sampler)
    return isinstance(sampler, OHEMSampler) and not sampler.per_image


class _Gathered:
    """The RoIs of all processes, in the order that they have in one process."""

    rois: RoIs
    own: Tensor
    """int64 for each of `rois`: its index in this process, -1 if it is another's."""

    def __init__(self, rois: RoIs, fabric: Fabric) -> None:
        self.fabric = fabric
        world, rank = fabric.world_size, fabric.global_rank
        parts = self._gather((rois.boxes, rois.images, rois.labels, rois.targets, rois.ious))
        images = torch.cat([part[1] * world + r for r, part in enumerate(parts)])
        self.order = images.argsort(stable=True)
        boxes, _, labels, targets, ious = (torch.cat(column)[self.order] for column in zip(*parts, strict=True))
        count = int(fabric.all_reduce(torch.tensor(rois.num_images, device=fabric.device), reduce_op="sum"))  # type: ignore[arg-type]
        self.rois = RoIs(boxes, images[self.order], labels, targets, ious, count)
        numbers = [
            torch.arange(len(part[1])) if r == rank else torch.full((len(part[1]),), -1) for r, part in enumerate(parts)
        ]
        self.own = torch.cat(numbers)[self.order.cpu()].to(boxes.device)

    def join(self, values: Tensor) -> Tensor:
        """Returns `values` (R,) of all processes, in the order of `rois`."""
        return torch.cat([part for (part,) in self._gather((values,))])[self.order]

    def _gather(self, values: tuple[Tensor, ...]) -> list[Any]:
        gathered: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(gathered, tuple(value.detach().cpu() for value in values))
        return [tuple(value.to(self.fabric.device) for value in part) for part in gathered]


def _mask(chosen: Tensor, rois: RoIs) -> Tensor:
    return torch.zeros(len(rois), dtype=torch.bool, device=chosen.device).index_fill(0, chosen, True)
