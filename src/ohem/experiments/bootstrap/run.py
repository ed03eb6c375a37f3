"""`ohem bootstrap`: SVMs of hard negative mining in place of the softmax of a run, evaluated as the run itself is."""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table

from ohem.console import make_console, make_table
from ohem.data.dataset import DetectionSet
from ohem.detection.fast_rcnn import FastRCNN
from ohem.experiments.bootstrap.config import BootstrapConfig
from ohem.experiments.bootstrap.features import RoIFeatures, cached_features, roi_features
from ohem.experiments.bootstrap.svm import LinearSVM, Round, linear_svc, mine_negatives
from ohem.training.build import build_data, build_examples, build_proposals
from ohem.training.config import Metric, Recipe, TestConfig
from ohem.training.detectors import as_fast_rcnn
from ohem.training.digests import digest_of_examples, digest_of_weights
from ohem.training.evaluate import detect_all, load_detector, write_report
from ohem.training.runs import sole_writer
from ohem.training.scores import score, usual_metric

FOLDER, FEATURES = "bootstrap", "features.safetensors"


def bootstrap_run(
    run: Path, sources: Sequence[str], metric: Metric | None, config: BootstrapConfig, test: TestConfig | None = None
) -> dict[str, Any]:
    """Trains an SVM for each class on the features of `run`, evaluates them and writes RUN/bootstrap/eval.json.

    `sources`, `metric` and `test` are as for `evaluate_run`, and so is the report, which also tells of the mining.

    Raises:
        InputError: the run, the data or an option is of no use, or scikit-learn is missing.
    """
    config.check()
    linear_svc()  # no hour of features for want of a package
    found_model, recipe, step = load_detector(run, test)
    model = as_fast_rcnn(found_model, "ohem bootstrap")
    data = build_data(sources or recipe.data.test, recipe.data.classes, "--data", skip_others=recipe.data.skip_others)
    with sole_writer(run / FOLDER, "the folder of features"):
        return _bootstrap(run, model, recipe, step, data, metric, config)


def _bootstrap(
    run: Path,
    model: FastRCNN,
    recipe: Recipe,
    step: int,
    data: DetectionSet,
    metric: Metric | None,
    config: BootstrapConfig,
) -> dict[str, Any]:
    started = time.perf_counter()
    cached = _features(run / FOLDER / FEATURES, model, recipe, step, config)
    computed = time.perf_counter()
    svms = dict(zip(recipe.data.classes, _mine(cached, recipe.data.classes, config), strict=True))
    mined = time.perf_counter()
    use_svms(model, list(svms.values()))
    found, made = detect_all(model, data, recipe)
    figures, table = score(found, data, metric or usual_metric(data))
    report = figures | {"step": step, **made} | _told(svms) | {"mining": asdict(config)}
    report |= {"seconds_features": computed - started, "seconds_mining": mined - computed}
    write_report(run / FOLDER / "eval.json", report, found, data)
    make_console().print(_table(svms), table)
    return report


@torch.no_grad()
def use_svms(model: FastRCNN, svms: Sequence[LinearSVM | None]) -> None:
    """Makes SVMs of the K classes the classifier of `model`, whose box regression stays.

    Margins are mapped to scores in 0..1 by the logistic function, which keeps their order, so that the thresholds of
    detection mean something. A class without an SVM is never found.
    """
    model.scores.weight.zero_()
    model.scores.bias.fill_(torch.nan)  # what is not a number is no candidate
    for label, svm in enumerate(svms, start=1):
        if svm is not None:
            model.scores.weight[label] = torch.from_numpy(svm.weights)
            model.scores.bias[label] = svm.bias
    model.probabilities = torch.sigmoid


def _features(path: Path, model: FastRCNN, recipe: Recipe, step: int, config: BootstrapConfig) -> RoIFeatures:
    """Of all training RoIs, the images as they are, in the recipe's `data.short`."""
    data = build_data(recipe.data.train, recipe.data.classes, "--data.train", skip_others=recipe.data.skip_others)
    examples = build_examples(data, build_proposals(data, recipe.proposals), recipe)
    made_with = {
        "step": step,
        "weights": digest_of_weights(model.state_dict()),
        "classes": list(recipe.data.classes),
        "images": digest_of_examples(examples),
        "precision": config.precision,
    }
    shown = track((examples[i] for i in range(len(data))), "features", len(data), console=make_console(stderr=True))
    make = roi_features(model, shown)
    return cached_features(path, made_with, make, getattr(torch, config.precision))


def _mine(cached: RoIFeatures, classes: Sequence[str], config: BootstrapConfig) -> list[LinearSVM | None]:
    """`mine_negatives`, told about."""
    signs = cached.overlaps.signs(config.positive_iou, config.negative_iou)
    print(f"{len(signs)} RoIs that differ, {(signs > 0).sum()} positives among them")
    print("round  classes  negatives  dropped  violators  objective")

    def told(each: Round) -> None:
        counts = f"{each.number:5}{each.classes:9}{each.negatives:11}{each.dropped:9}{each.violators:11}"
        print(f"{counts}{each.objective:11.5f}", flush=True)

    svms = mine_negatives(cached.features.numpy(), signs, config, told)
    absent = [name for name, svm in zip(classes, svms, strict=True) if svm is None]
    if absent:
        warnings.warn(f"no training object of {', '.join(absent)}: without an SVM none will be found", stacklevel=2)
    return svms


def _told(svms: Mapping[str, LinearSVM | None]) -> dict[str, dict[str, Any]]:
    """Per class, for JSON."""
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
