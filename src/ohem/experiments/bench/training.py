"""A detector's training as a workload: the very steps of `ohem train`, without its logs and checkpoints."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ohem.data.loader import Example
from ohem.rois import match
from ohem.training.build import build_data, build_examples, build_proposals
from ohem.training.config import Recipe
from ohem.training.detectors import as_fast_rcnn
from ohem.training.launch import launched
from ohem.training.loop import Trainer


@contextmanager
def training(recipe: Recipe, folder: Path, steps: int) -> Iterator["Training"]:
    """The first `steps` steps of `recipe`, whose `data.classes` are filled in.

    `folder` gets what a step leaves behind whose loss is not finite.
    """
    with launched(recipe.run) as fabric:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the data: the process that started us has told
            data = build_data(
                recipe.data.train, recipe.data.classes, "--data.train", skip_others=recipe.data.skip_others
            )
            examples = build_examples(data, build_proposals(data, recipe.proposals), recipe)
        yield Training(Trainer(recipe, folder, examples, fabric), steps)


class Training:
    """The next `steps` steps of `trainer`."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        self.trainer = trainer
        self.batches = trainer.batches(trainer.step + steps)
        self.batch: list[Example] = []

    @property
    def device(self) -> str:
        return str(self.trainer.fabric.device)

    def load(self, step: int) -> dict[str, Any]:
        """Reads the mini-batch: its images with their sizes, RoIs, and RoIs that differ on the feature map."""
        self.batch = next(self.batches)
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
    """Of pixels, proposals and ground truth: equal for two arms that see the same."""
    digest = hashlib.sha256()
    for example in batch:
        for tensor in (example.image, example.proposals, *example.target.values()):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]
