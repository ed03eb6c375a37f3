"""`ohem bootstrap`: replaces the softmax of a run by SVMs of hard negative mining, and evaluates them as the run.

The features are those of the RoI head, or of crops of the images (R-CNN).
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ohem.bootstrap.box_regression import BoxRegression, fit_boxes
from ohem.bootstrap.config import BootstrapConfig
from ohem.bootstrap.crops import (
    CropDetector,
    as_crop_detector,
    crop_features,
    whole_example,
    whole_images,
    with_crops,
)
from ohem.bootstrap.features import Parts, RoIFeatures, cached_features, roi_features
from ohem.bootstrap.svm import LinearSVM, Round, linear_svc, mine_negatives
from ohem.config.schema import MetricName, Recipe, TestConfig
from ohem.data.dataset import DetectionSet
from ohem.detection.fast_rcnn import FastRCNN
from ohem.evaluation.evaluate import detect_all, load_detector, write_report
from ohem.evaluation.score_report import score, usual_metric
from ohem.inputs.examples import build_pyramids, open_recipe_data, open_training_examples
from ohem.io.console import make_console, make_table
from ohem.io.progress import tracked
from ohem.models.build import as_fast_rcnn
from ohem.training.fingerprints import digest_of_examples, digest_of_weights
from ohem.training.run_folder import sole_writer

FOLDER, CROPS, FEATURES = "bootstrap", "crops", "features.safetensors"


def bootstrap_run(
    run: Path,
    sources: Sequence[str],
    metric: MetricName | None,
    config: BootstrapConfig,
    test: TestConfig | None = None,
) -> dict[str, Any]:
    """Trains an SVM for each class on features by a run, evaluates them and writes RUN/bootstrap/eval.json.

    With `config.crops` it writes RUN/crops/eval.json.

    Args:
        run: folder of the run.
        sources, metric, test: as for `evaluate_run`.
        config: options of the SVMs.

    Returns:
        The report of `evaluate_run`, with values of the mining.

    Raises:
        InputError: the run, the data or an option cannot be used, or scikit-learn is not installed.
    """
    config.check()
    linear_svc()  # now, not after the features, which may take an hour
    detector, recipe, step = load_detector(run, test)
    model = as_fast_rcnn(detector, "ohem bootstrap")
    data = open_recipe_data(recipe, sources or recipe.data.test, "--data")
    folder = run / (CROPS if config.crops else FOLDER)
    with sole_writer(folder, "the folder of features"):
        if config.crops:
            recipe = with_crops(recipe, config)
            return _bootstrap(folder, as_crop_detector(model, config), recipe, step, data, metric, config)
        return _bootstrap(folder, model, recipe, step, data, metric, config)


def _bootstrap(
    folder: Path,
    model: FastRCNN | CropDetector,
    recipe: Recipe,
    step: int,
    data: DetectionSet,
    metric: MetricName | None,
    config: BootstrapConfig,
) -> dict[str, Any]:
    started = time.perf_counter()
    cached = _features(folder / FEATURES, model, recipe, step, config)
    computed = time.perf_counter()
    svms = dict(zip(recipe.data.classes, _mine(cached, recipe.data.classes, config), strict=True))
    mined = time.perf_counter()
    use_svms(model, list(svms.values()))
    if isinstance(model, CropDetector) and config.box_regression and cached.targets is not None:
        numbers = cached.features.numpy(), cached.overlaps.objects.numpy(), cached.targets.numpy()
        use_boxes(model, fit_boxes(*numbers, config))
    pictures = whole_images if config.crops else build_pyramids
    detections, made = detect_all(model, data, recipe, pictures=pictures)
    figures, table = score(detections, data, metric or usual_metric(data))
    report = figures | {"step": step, **made} | _as_json(svms) | {"mining": asdict(config)}
    report |= {"seconds_features": computed - started, "seconds_mining": mined - computed}
    write_report(folder / "eval.json", report, detections, data)
    make_console().print(_table(svms), table)
    return report


@torch.no_grad()
def use_svms(model: FastRCNN | CropDetector, svms: Sequence[LinearSVM | None]) -> None:
    """Replaces the classifier of `model` by SVMs of its K classes; its box regression stays.

    The logistic function maps margins to scores in 0..1 and keeps their order, so that the score thresholds of
    detection can be used. A class without an SVM is never detected.
    """
    model.scores.weight.zero_()
    model.scores.bias.fill_(torch.nan)  # a score of NaN is never a candidate
    for label, svm in enumerate(svms, start=1):
        if svm is not None:
            model.scores.weight[label] = torch.from_numpy(svm.weights)
            model.scores.bias[label] = svm.bias
    model.probabilities = torch.sigmoid


@torch.no_grad()
def use_boxes(model: CropDetector, regressions: Sequence[BoxRegression | None]) -> None:
    """Replaces the box regression of `model`; boxes of a class without one stay as they are."""
    weights, bias = model.deltas.weight.view(model.num_classes, 4, -1), model.deltas.bias.view(model.num_classes, 4)
    for label, regression in enumerate(regressions, start=1):
        if regression is not None:
            weights[label] = torch.from_numpy(regression.weights.T)
            bias[label] = torch.from_numpy(regression.bias)


def _features(
    path: Path, model: FastRCNN | CropDetector, recipe: Recipe, step: int, config: BootstrapConfig
) -> RoIFeatures:
    """Returns the features of all training RoIs, of images that are not flipped.

    Images have the size `data.short` of the recipe, or their own if they are cropped.
    """
    examples = open_training_examples(recipe)
    made_with = {
        "step": step,
        "weights": digest_of_weights(model.state_dict()),
        "classes": list(recipe.data.classes),
        "images": digest_of_examples(examples),
        "precision": config.precision,
    }
    dtype = getattr(torch, config.precision)
    if isinstance(model, FastRCNN):
        return cached_features(path, made_with, roi_features(model, tracked(examples, "features")), dtype)
    made_with |= {"crop size": config.crop_size, "crop context": config.crop_context}
    parts = Parts(
        path.with_suffix(".parts"),
        made_with,
        len(examples),
        lambda index: crop_features(model, whole_example(examples, index)),
    )
    cached = cached_features(path, made_with, tracked(parts, "features"), dtype)
    parts.remove()
    return cached


def _mine(cached: RoIFeatures, classes: Sequence[str], config: BootstrapConfig) -> list[LinearSVM | None]:
    """Calls `mine_negatives`, and prints its rounds."""
    signs = cached.overlaps.signs(config.positive_iou, config.negative_iou)
    print(f"{len(signs)} distinct RoIs, {(signs > 0).sum()} positives among them")
    print("round  classes  negatives  dropped  violators  objective")

    def print_round(mined: Round) -> None:
        counts = f"{mined.number:5}{mined.classes:9}{mined.negatives:11}{mined.dropped:9}{mined.violators:11}"
        print(f"{counts}{mined.objective:11.5f}", flush=True)

    svms = mine_negatives(cached.features.numpy(), signs, config, print_round)
    absent = [name for name, svm in zip(classes, svms, strict=True) if svm is None]
    if absent:
        warnings.warn(f"no training object of {', '.join(absent)}: without an SVM none will be detected", stacklevel=2)
    return svms


def _as_json(svms: Mapping[str, LinearSVM | None]) -> dict[str, dict[str, Any]]:
    """Returns the values of the mining, each by class."""
    columns = ("rounds", "positives", "negatives", "objective", "stopped")
    return {key: {name: svm and getattr(svm, key) for name, svm in svms.items()} for key in columns}


def _table(svms: Mapping[str, LinearSVM | None]) -> Table:
    table = make_table("SVM", "rounds", "positives", "negatives", "objective", "stopped by")
    for name, svm in svms.items():
        if svm is None:
            table.add_row(name, "", "0")
        else:
            counts = svm.rounds, svm.positives, svm.negatives
            table.add_row(name, *map(str, counts), f"{svm.objective:.5f}", svm.stopped)
    return table
