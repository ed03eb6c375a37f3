"""`ohem demo`: trains with heuristic sampling and with OHEM on generated scenes, and compares the detections."""

from pathlib import Path
from typing import Any

from ohem.config.methods import replace_options
from ohem.config.recipes import RECIPES
from ohem.config.schema import Recipe
from ohem.data.synthetic import CLASSES, make_scenes
from ohem.demo.pretrain import STEPS as PRETRAINING
from ohem.demo.pretrain import pretrain
from ohem.demo.text import STEPS, TITLES, summary
from ohem.detection.draw import draw_detections, draw_side_by_side
from ohem.evaluation.detect import draw_confident, save_picture
from ohem.evaluation.evaluate import detect_images, load_detector
from ohem.evaluation.report import NAME as REPORT
from ohem.evaluation.report import read_report
from ohem.experiments.commands import propose_command, train_command
from ohem.experiments.runner import Job, run_jobs
from ohem.inputs.datasets import open_data
from ohem.inputs.examples import build_examples, build_pyramids
from ohem.io.console import make_console, make_table
from ohem.training.fingerprints import digest_of_sets
from ohem.training.run_folder import sole_writer

WEIGHTS = "pretrained.safetensors"
PICTURES = 8
"""Number of test scenes that are drawn."""
SCORE = 0.3
"""Lowest score of a detection that is drawn."""


def make_demo(folder: Path, steps: int, train_images: int, test_images: int) -> None:
    """Does what `run_demo` does after its introduction."""
    make_scenes(folder / "data", train=train_images, test=test_images, progress=True)
    with sole_writer(folder, "the demo"):
        pretrain(folder / WEIGHTS, min(steps, PRETRAINING))
        digest = _digest(folder)
        jobs = [_job(folder, method, steps, digest) for method in TITLES]
        run_jobs(jobs, len(TITLES), _propose_command(folder))
        _draw_test_scenes(folder)
    _print_average_precisions({method: read_report(folder / method / REPORT) for method in TITLES})
    print(summary(folder))


def _recipe(method: str, folder: Path, steps: int) -> Recipe:
    """Returns the recipe of `method` with pre-trained weights, and the same schedule in fewer or more steps."""
    recipe = RECIPES[f"demo-{method}"].recipe
    data = folder / "data"
    decay = max(1, recipe.solver.decay_every * steps // recipe.solver.steps)
    return replace_options(
        recipe,
        model={"weights": str(folder / WEIGHTS)},
        data={"train": (f"{data}:trainval",), "test": (f"{data}:test",), "classes": CLASSES},
        solver={"steps": steps, "decay_every": decay},
    )


def _propose_command(folder: Path) -> list[str]:
    recipe = _recipe("frcn", folder, STEPS)
    return propose_command([*recipe.data.train, *recipe.data.test], [], recipe.proposals)


def _digest(folder: Path) -> str:
    config = _recipe("frcn", folder, STEPS).data
    return digest_of_sets(*(open_data(sources, CLASSES, "--data") for sources in (config.train, config.test)))


def _job(folder: Path, method: str, steps: int, digest: str) -> Job:
    """Returns the training of `method`, and its evaluation, on data with this digest."""
    run, recipe = folder / method, _recipe(method, folder, steps)
    evaluations = {run / REPORT: ["eval", str(run)]}
    return Job(run, train_command(run, f"demo-{method}", recipe), evaluations, digest)


def _draw_test_scenes(folder: Path) -> None:
    """Draws the first test scenes with the ground truth and the detections of both methods."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    models = [load_detector(folder / method, accelerator="cpu")[0] for method in TITLES]
    recipe = _recipe("frcn", folder, STEPS)
    data = open_data(recipe.data.test, CLASSES, "--data.test")
    pyramids = build_pyramids(build_examples(data, recipe), recipe)
    first = [pyramids[i] for i in range(min(PICTURES, len(data)))]
    detections = zip(*(detect_images(model, first) for model in models), strict=True)
    for i, of_methods in enumerate(detections):
        image, target = data[i]
        names = [data.classes[label - 1] for label in target["labels"].tolist()]
        truth = draw_detections(image, target["boxes"], names)
        panels = [draw_confident(image, of_method, data.classes, SCORE) for of_method in of_methods]
        sheet = draw_side_by_side(truth, *panels, titles=["ground truth", *TITLES.values()])
        save_picture(sheet, pictures / f"{data.ids[i]}.jpg")


def _print_average_precisions(reports: dict[str, dict[str, Any]]) -> None:
    """Prints the AP of each class and the mAP, with a column for each method."""
    table = make_table("class", *TITLES.values(), title="AP on the test scenes")
    for name in reports["frcn"]["ap"]:
        table.add_row(name, *(_format_ap(reports[method]["ap"][name]) for method in TITLES))
    table.add_section()
    table.add_row("mAP", *(_format_ap(reports[method]["map"]) for method in TITLES), style="bold")
    make_console().print(table)


def _format_ap(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
