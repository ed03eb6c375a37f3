"""`ohem demo`: trains with heuristic sampling and with OHEM on generated scenes, and compares the detections."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ohem.config.recipes import RECIPES
from ohem.config.schema import Recipe
from ohem.data.synthetic import CLASSES, make_scenes
from ohem.demo.text import TITLES, summary
from ohem.detection.draw import draw_detections, draw_side_by_side
from ohem.evaluation.detect import draw_confident, save_picture
from ohem.evaluation.evaluate import detect_images, evaluate_run, load_detector
from ohem.inputs.datasets import open_data
from ohem.inputs.examples import build_examples, build_pyramids
from ohem.io.console import make_console, make_table
from ohem.training.run import run_training

PICTURES = 8
"""Number of test scenes that are drawn."""
SCORE = 0.3
"""Lowest score of a detection that is drawn."""


def make_demo(folder: Path, steps: int | None, train_images: int, test_images: int) -> None:
    """Does what `run_demo` does after its introduction."""
    make_scenes(folder / "data", train=train_images, test=test_images, progress=True)
    reports = {}
    for number, (method, title) in enumerate(TITLES.items(), start=1):
        print(f"\n{number} of {len(TITLES)}: training and evaluation with {title}", flush=True)
        run_training(folder / method, f"demo-{method}", _recipe(method, folder / "data", steps))
        reports[method] = evaluate_run(folder / method)
    _draw_test_scenes(folder)
    _print_average_precisions(reports)
    print(summary(folder))


def _recipe(method: str, data: Path, steps: int | None) -> Recipe:
    recipe = RECIPES[f"demo-{method}"].recipe
    solver = recipe.solver if steps is None else replace(recipe.solver, steps=steps)
    sources = replace(recipe.data, train=(f"{data}:trainval",), test=(f"{data}:test",), classes=CLASSES)
    return replace(recipe, data=sources, solver=solver)


def _draw_test_scenes(folder: Path) -> None:
    """Draws the first test scenes with the ground truth and the detections of both methods."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    models = [load_detector(folder / method, accelerator="cpu")[0] for method in TITLES]
    recipe = _recipe("frcn", folder / "data", None)
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
