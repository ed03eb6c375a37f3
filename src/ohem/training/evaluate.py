"""What became of a run: its detector, its detections, its mAP, and its loss over all RoIs."""

import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ohem.console import make_console
from ohem.data.dataset import DetectionSet
from ohem.data.loader import Picture
from ohem.data.voc import VOCDetection
from ohem.detection.detector import Detector
from ohem.errors import InputError
from ohem.evaluation.submission import write_submission
from ohem.samplers import AllSampler
from ohem.training import checkpoint
from ohem.training.build import build_data, build_examples, build_pictures, build_proposals, check
from ohem.training.config import Metric, Recipe, TestConfig
from ohem.training.detectors import as_fast_rcnn, build_model
from ohem.training.digests import digest_of_examples, digest_of_weights
from ohem.training.loss_all import loss_over_all
from ohem.training.metrics import tracked
from ohem.training.report import NAME, as_annotated, check_outputs, is_report
from ohem.training.report import read_report as read_report
from ohem.training.report import write_report as write_report
from ohem.training.runs import read_run
from ohem.training.scores import score, usual_metric


def load_detector(
    run: Path, test: TestConfig | None = None, accelerator: str | None = None
) -> tuple[Detector, Recipe, int]:
    """The detector of a run in eval mode, its recipe, and the step of its newest checkpoint.

    `test` and `accelerator` take the place of what the recipe says about testing and where to compute.

    Raises:
        InputError: the folder is not a run, or has no checkpoint, or one of another detector, or `test` makes no sense.
    """
    recipe = read_run(run)
    state = checkpoint.load(run)
    if state is None:
        raise InputError(f"{run} has no checkpoint yet: let `ohem train` reach its first (run.checkpoint_every)")
    recipe = replace(recipe, test=test or recipe.test)
    check(recipe)
    model = build_model(recipe, AllSampler())
    checkpoint.restore(model, state, run)
    model.eval().to(_device(run, accelerator or recipe.run.accelerator))
    return model, recipe, state["step"]


def _device(run: Path, accelerator: str) -> torch.device:
    try:
        return Fabric(accelerator=accelerator, devices=1).device
    except (ValueError, RuntimeError):
        found = Fabric(accelerator="auto", devices=1).device
        warnings.warn(f"{run} was trained on {accelerator}, which is not here: it is tested on {found}", stacklevel=3)
        return found


@torch.inference_mode()
def detect(model: Detector, pictures: Iterable[Picture]) -> Iterator[dict[str, Tensor]]:
    """Per image its detections on the CPU, boxes in pixels of the image as it was before it was resized."""
    for shown in pictures:
        images = [image.to(model.device) for image in shown.images]
        found = model.detect(images, shown.scales, shown.proposals.to(model.device), shown.size)
        yield {name: value.cpu() for name, value in found.items()}


def evaluate_run(
    run: Path,
    sources: Sequence[str] = (),
    metric: Metric | None = None,
    loss: bool = False,
    test: TestConfig | None = None,
    submit: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluates the newest checkpoint of `run` on `sources` (its test data if empty) and writes `out`, RUN/eval.json.

    The metric is by default that of the data's kind; detections in COCO data are also written, as detections.json
    beside RUN/eval.json, or NAME-detections.json beside `out`, NAME.json.
    `loss` adds the mean loss over all RoIs of the training images; `test` takes the place of the recipe's. `submit`
    gets the result files of the VOC server, whose test images may be without annotations: then nothing is scored.

    Raises:
        InputError: the run, the data or `test` is of no use, `submit` is given with COCO data, or `out` or `submit`
            would overwrite something else than earlier results.
    """
    if out and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--out {out} is a folder, or in one that does not exist: name a file in a folder that does")
    if out and out.exists() and not is_report(out):
        raise InputError(f"--out {out} exists and is no report of `ohem eval`: name another file")
    if submit and submit.exists() and not submit.is_dir():
        raise InputError(f"--submit {submit} is no folder: name another")
    model, recipe, step = load_detector(run, test)
    measured = as_fast_rcnn(model, "--loss") if loss else None
    classes, skip = recipe.data.classes, recipe.data.skip_others
    data = build_data(sources or recipe.data.test, classes, "--data", annotated=submit is None, skip_others=skip)
    report_path = out or run / NAME
    check_outputs(report_path, submit, data)
    stems = _stems(data) if submit else []
    found, made = detect_all(model, data, recipe)
    report = {"step": step, **made}
    if submit:
        write_submission(submit, stems, as_annotated(found, data), data.classes)
        print(f"{submit}: the detections in {len(data)} images, one file for each of {len(data.classes)} classes")
    if not data.annotated:
        print("some images have no annotation: nothing is scored")
        return report
    figures, table = score(found, data, metric or usual_metric(data))
    report = figures | report
    if measured:
        trained = build_data(recipe.data.train, classes, "--data.train", skip_others=skip)
        shown = build_examples(trained, build_proposals(trained, recipe.proposals), recipe)
        report["loss_all_rois"] = loss_over_all(measured, tracked(shown, "loss over all RoIs")).loss
    write_report(report_path, report, found, data)
    make_console().print(table)
    return report


def detect_all(model: Detector, data: DetectionSet, recipe: Recipe) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """The detections in every image of `data`, and what a report says of how they were made."""
    proposals = build_proposals(data, recipe.proposals)
    made_of = {
        "weights": digest_of_weights(model.state_dict()),
        "data": digest_of_examples(build_examples(data, proposals, recipe)),
    }
    pictures = build_pictures(data, proposals, recipe)
    started = time.perf_counter()
    found = list(detect(model, tracked(pictures, "evaluating")))
    seconds = time.perf_counter() - started
    return found, {
        "images": len(data),
        "seconds_per_image": seconds / max(len(data), 1),
        "test": asdict(recipe.test),
        **made_of,
    }


def _stems(data: DetectionSet) -> list[str]:
    """The ids by which the VOC server knows the images."""
    if not isinstance(data, VOCDetection):
        raise InputError(
            "--submit writes the files of the VOC server, and the data are in COCO's format: leave it out, "
            "COCO's result file is always written, as RUN/detections.json"
        )
    stems = [stem for source in data.sources for stem in source.ids]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise InputError(f"two images have the id {twice[0]}, which is all that --submit tells: give one data set")
    return stems
