"""`ohem eval`: the detections of a run, their scores, and the loss over all RoIs."""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from ohem.config.recipe_file import read_run
from ohem.config.schema import MetricName, Recipe, RunConfig, TestConfig
from ohem.config.validation import check_recipe
from ohem.data.dataset import DetectionSet
from ohem.data.loader import Examples, ImagePyramid, ImagePyramids
from ohem.data.voc import VOCDetection
from ohem.detection.detector import Detector
from ohem.detection.fast_rcnn import FastRCNN
from ohem.errors import InputError
from ohem.evaluation.report import NAME, as_annotated, check_outputs, is_report
from ohem.evaluation.report import read_report as read_report
from ohem.evaluation.report import write_report as write_report
from ohem.evaluation.score_report import score, usual_metric
from ohem.evaluation.submission import write_submission
from ohem.inputs.examples import build_examples, build_pyramids, open_recipe_data, open_training_examples
from ohem.io.console import make_console
from ohem.io.progress import tracked
from ohem.models.build import as_fast_rcnn, build_model
from ohem.samplers import AllSampler
from ohem.training import checkpoint
from ohem.training.distributed import Fabric, compute_shared, first_process_first, launched, reported_once
from ohem.training.fingerprints import digest_of_examples, digest_of_weights
from ohem.training.roi_loss import loss_over_all
from ohem.training.run_folder import check_sources


def load_detector(
    run: Path, test: TestConfig | None = None, accelerator: str | None = None
) -> tuple[Detector, Recipe, int]:
    """Loads the newest checkpoint of a run.

    Args:
        run: folder of the run.
        test: replaces the test options of the recipe.
        accelerator: replaces `run.accelerator` of the recipe.

    Returns:
        The detector in eval mode, the recipe, and the step of the checkpoint.

    Raises:
        InputError: the folder is no run, has no checkpoint or one of another detector, or `test` is impossible.
    """
    recipe = read_run(run)
    state = checkpoint.load(run)
    if state is None:
        raise InputError(f"{run} has no checkpoint yet: let `ohem train` reach its first (run.checkpoint_every)")
    recipe = replace(recipe, test=test or recipe.test)
    check_recipe(recipe)
    model = build_model(recipe, AllSampler())
    checkpoint.restore(model, state, run)
    accelerator = _accelerator(run, accelerator or recipe.run.accelerator)
    model.eval().to(Fabric(accelerator=accelerator, devices=1).device)
    return model, recipe, state["step"]


def _accelerator(run: Path, accelerator: str) -> str:
    """Returns `accelerator`, or "auto" with a warning if this machine does not have it."""
    try:
        Fabric(accelerator=accelerator, devices=1)
    except (ValueError, RuntimeError):
        device = Fabric(accelerator="auto", devices=1).device
        warnings.warn(
            f"{run} was trained on {accelerator}, which this machine does not have: {device} is used", stacklevel=3
        )
        return "auto"
    return accelerator


@torch.inference_mode()
def detect_images(model: Detector, pictures: Iterable[ImagePyramid]) -> Iterator[dict[str, Tensor]]:
    """Yields the detections of each image on the CPU, boxes in pixels of the original image."""
    for pyramid in pictures:
        images = [image.to(model.device) for image in pyramid.images]
        detections = model.detect(images, pyramid.scales, pyramid.proposals.to(model.device), pyramid.size)
        yield {name: value.cpu() for name, value in detections.items()}


def evaluate_run(
    run: Path,
    sources: Sequence[str] = (),
    metric: MetricName | None = None,
    loss: bool = False,
    test: TestConfig | None = None,
    submit: Path | None = None,
    out: Path | None = None,
    devices: str = "1",
) -> dict[str, Any]:
    """Evaluates the newest checkpoint of `run`, prints a table and writes RUN/eval.json.

    For COCO data, it also writes the detections: detections.json next to RUN/eval.json, or NAME-detections.json next to
    `out`, NAME.json.

    Args:
        run: folder of the run.
        sources: data sets; the test data of the run if empty.
        metric: by default the metric of the data's format.
        loss: whether to measure the mean loss over all RoIs of the training images.
        test: replaces the test options of the recipe.
        submit: folder for the result files of the VOC server. Test images without annotations are not scored.
        out: JSON file to write instead of RUN/eval.json.
        devices: number of processes, one for each GPU, which share the images; the first one writes. With torchrun,
            the processes that it started.

    Returns:
        The content of the JSON file.

    Raises:
        InputError: the run, the data or `test` is unfit, `submit` is given with data that are not in VOC layout, or
            `out` or `submit` would overwrite files that are no earlier results.
    """
    with of_processes(run, devices) as (fabric, accelerator):
        return _evaluate(run, sources, metric, loss, test, submit, out, accelerator, fabric)


@contextmanager
def of_processes(run: Path, devices: str) -> Iterator[tuple[Fabric, str]]:
    """Starts `devices` processes that use the detector of `run`, or joins those of torchrun.

    Yields:
        The processes, and the accelerator that they use. Bad input that all of them see is reported once.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `load_detector` reads it again and warns
        trained_on = read_run(run).run.accelerator
    accelerator = _accelerator(run, trained_on)
    with launched(RunConfig(accelerator=accelerator, devices=devices)) as fabric, reported_once(fabric):
        yield fabric, accelerator


def _evaluate(
    run: Path,
    sources: Sequence[str],
    metric: MetricName | None,
    loss: bool,
    test: TestConfig | None,
    submit: Path | None,
    out: Path | None,
    accelerator: str,
    fabric: Fabric,
) -> dict[str, Any]:
    _check_places(submit, out)
    model, recipe, step = load_detector(run, test, accelerator)
    model.to(fabric.device)
    measured = as_fast_rcnn(model, "--loss") if loss else None
    if not sources:
        check_sources(run, recipe.data.test)
    data = open_recipe_data(recipe, sources or recipe.data.test, "--data", annotated=submit is None)
    report_path = out or run / NAME
    check_outputs(report_path, submit, data)
    image_ids = _image_ids(data) if submit else []
    detections, made = detect_all(model, data, recipe, fabric)
    report = {"step": step, **made}
    if measured and data.annotated:
        report["loss_all_rois"] = _loss_of_training_data(run, measured, recipe, fabric)
    if not fabric.is_global_zero:
        return report
    if submit:
        write_submission(submit, image_ids, as_annotated(detections, data), data.classes)
        print(f"{submit}: the detections in {len(data)} images, one file for each of {len(data.classes)} classes")
    if not data.annotated:
        print("some images have no annotation: nothing is scored")
        return report
    figures, table = score(detections, data, metric or usual_metric(data))
    report = figures | report
    write_report(report_path, report, detections, data)
    make_console().print(table)
    return report


def _check_places(submit: Path | None, out: Path | None) -> None:
    """Raises `InputError` where results cannot be written."""
    if out and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--out {out} is a folder, or in one that does not exist: name a file in a folder that does")
    if out and out.exists() and not is_report(out):
        raise InputError(f"--out {out} exists and is no report of `ohem eval`: name another file")
    if submit and submit.exists() and not submit.is_dir():
        raise InputError(f"--submit {submit} is no folder: name another")


def _loss_of_training_data(run: Path, model: FastRCNN, recipe: Recipe, fabric: Fabric) -> float:
    check_sources(run, recipe.data.train)
    return loss_over_all(model, open_training_examples(recipe), fabric=fabric).loss


def detect_all(
    model: Detector,
    data: DetectionSet,
    recipe: Recipe,
    fabric: Fabric | None = None,
    pictures: Callable[[Examples, Recipe], ImagePyramids] = build_pyramids,
) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """Returns the detections in every image of `data`, and how they were made, for a report.

    The processes of `fabric` share the images, and each returns all detections. `pictures` makes what the model gets.
    """
    build = partial(build_examples, data, recipe)
    examples = build() if fabric is None else first_process_first(fabric, build)
    made_of = {"weights": digest_of_weights(model.state_dict()), "data": digest_of_examples(examples)}
    started = time.perf_counter()
    detections = detect_shared(model, pictures(examples, recipe), "evaluating", fabric)
    seconds = time.perf_counter() - started
    return detections, {
        "images": len(data),
        "seconds_per_image": seconds / max(len(data), 1),
        "test": asdict(recipe.test),
        **made_of,
    }


def detect_shared(
    model: Detector, pyramids: ImagePyramids, title: str, fabric: Fabric | None = None
) -> list[dict[str, Tensor]]:
    """Returns the detections in every image, as `detect_images` does; the processes of `fabric` share the images."""

    def compute(places: range) -> Iterator[dict[str, Tensor]]:
        enabled = fabric is None or fabric.is_global_zero
        return detect_images(model, tracked(Subset(pyramids, places), title, enabled=enabled))

    return list(compute(range(len(pyramids)))) if fabric is None else compute_shared(fabric, len(pyramids), compute)


def _image_ids(data: DetectionSet) -> list[str]:
    """Returns the ids of the images on the VOC server."""
    if not isinstance(data, VOCDetection):
        raise InputError(
            f"--submit writes the files of the VOC server, and the data are {data.layout}: leave it out; the result "
            "file of COCO is always written, as RUN/detections.json"
        )
    stems = [stem for source in data.sources for stem in source.ids]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise InputError(f"two images have the id {twice[0]}, and --submit writes only ids: give one data set")
    return stems
