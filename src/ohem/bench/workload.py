"""The training of a detector as a workload: the steps of `ohem train`, without its logs and checkpoints."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ohem.config.schema import Recipe
from ohem.data.loader import Example
from ohem.inputs.examples import open_training_examples
from ohem.models.build import as_fast_rcnn
from ohem.rois import match
from ohem.training.distributed import launched
from ohem.training.loop import Trainer


@contextmanager
def training_workload(recipe: Recipe, folder: Path, steps: int) -> Iterator["Training"]:
    """Makes a workload of the first `steps` steps of a training.

    Args:
        recipe: recipe of the training, with its `data.classes`.
        folder: folder for the files of a step whose loss is not finite.
        steps: number of steps.
    """
    with launched(recipe.run) as fabric:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the data: the parent process has printed them
            examples = open_training_examples(recipe)
        yield Training(Trainer(recipe, folder, examples, fabric), steps)


class Training:
    """A workload of the next `steps` steps of `trainer`."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        self.trainer = trainer
        self.batches = trainer.batches(trainer.step + steps)
        self.batch: list[Example] = []

    @property
    def device(self) -> str:
        return str(self.trainer.fabric.device)

    def load(self, step: int) -> dict[str, Any]:
        """Reads the mini-batch; returns its images, their sizes, and their numbers of RoIs and of distinct RoIs."""
        self.batch = next(self.batches)
        if self.trainer.update.shortlist:
            self.trainer.update.rank(self.batch)  # so that the measured step is a later visit of its images
        counts = [self._count(example) for example in self.batch]
        return {
            "images": [example.id for example in self.batch],
            "sizes": [list(example.image.shape[1:]) for example in self.batch],
            "rois": [rois for rois, _ in counts],
            "distinct": [distinct for _, distinct in counts],
            "digest": _digest(self.batch),
        }

    def run(self) -> None:
        self.trainer.train_step(self.batch, statistics=False)

    def _count(self, example: Example) -> tuple[int, int]:
        rois = match([example.proposals], [example.target])
        return len(rois), len(torch.unique(as_fast_rcnn(self.trainer.detector, "ohem bench").windows(rois), dim=0))


def _digest(batch: list[Example]) -> str:
    """Returns a digest of pixels, proposals and ground truth, equal for methods that have the same mini-batch."""
    digest = hashlib.sha256()
    for example in batch:
        for tensor in (example.image, example.proposals, *example.target.values()):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]
