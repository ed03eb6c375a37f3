"""The mining log of a run: RUN/mining, and its part of the checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from ohem.config.schema import Recipe
from ohem.data.loader import Example
from ohem.detection.detector import Detector
from ohem.detection.fast_rcnn import FastRCNN
from ohem.extras import import_extra
from ohem.integrations.rcnn import OHEMRoIHeads
from ohem.mining_log import LoggedImage, MiningLog
from ohem.models.build import build_sampler
from ohem.recorder import Recorder
from ohem.samplers import NoiseAwareSampler
from ohem.training.whole_batch import plain_sampler

FOLDER = "mining"


def make_recorder(recipe: Recipe, run: Path) -> Recorder:
    """Returns the sampler of `recipe` in a mining log, or in a plain recorder without `run.mining_log`."""
    sampler = build_sampler(recipe.sampler)
    if not recipe.run.mining_log:
        return Recorder(sampler)
    log = MiningLog(sampler, run / FOLDER)
    log.continues = True  # the folder is that of the run
    return log


def check_mining_log(recipe: Recipe) -> None:
    """Raises `InputError` if a mining log is wanted, and the package that writes it is not installed."""
    if recipe.run.mining_log:
        import_extra("pyarrow", "--run.mining-log")


def watch_classifier(recorder: Recorder, detector: Detector) -> None:
    """Lets a mining log also log what the RoIs are taken for, in Fast, Faster, Mask and Keypoint R-CNN."""
    if not isinstance(recorder, MiningLog):
        return
    if isinstance(detector, FastRCNN):
        recorder.watch(detector.scores)
    for module in detector.modules():
        if isinstance(module, OHEMRoIHeads):
            recorder.watch(module.box_predictor, ascending=True)


def begin_step(recorder: Recorder, detector: Detector, examples: Sequence[Example], step: int) -> None:
    """Announces the next step to the samplers that count steps, and its images to a mining log."""
    sampler = plain_sampler(recorder.sampler)
    if isinstance(sampler, NoiseAwareSampler):
        sampler.begin_step(step)
    if isinstance(recorder, MiningLog):
        recorder.begin_step([_logged(detector, example) for example in examples], step)


def state_of(recorder: Recorder, fabric: Fabric) -> dict[str, Any] | None:
    """Returns the state of the mining log of all processes; None in processes that are not the first, or without a log.

    All processes must call it. The logs of the others begin anew, since the first one has what they logged.
    """
    if not isinstance(recorder, MiningLog):
        return None
    if fabric.world_size > 1:
        states: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(states, recorder.state_dict())
        if not fabric.is_global_zero:
            recorder.clear()
            return None
        for state in states[1:]:
            recorder.merge(state)
    return recorder.state_dict()


def restore(recorder: Recorder, state: dict[str, Any] | None, fabric: Fabric) -> None:
    """Continues the log of a checkpoint in the first process; older checkpoints have none."""
    if isinstance(recorder, MiningLog) and fabric.is_global_zero and state is not None:
        recorder.load_state_dict(state)


def save(recorder: Recorder) -> None:
    """Writes the tables of a mining log that has any row."""
    if isinstance(recorder, MiningLog) and recorder.step:
        recorder.save()


def _logged(detector: Detector, example: Example) -> LoggedImage:
    height, width = example.image.shape[-2:]
    network_height, network_width = detector.network_size((height, width))
    scale = network_width / width, network_height / height
    boxes = example.target["boxes"] * example.target["boxes"].new_tensor(scale * 2)
    x, y = (factor * example.scale for factor in scale)
    return LoggedImage(example.id, boxes, (x, y), example.mirrored_width)
