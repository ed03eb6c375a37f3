"""`ohem demo`: both samplers on generated scenes, same schedule and seed, side by side. Nothing to download."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ohem.console import make_console, make_table
from ohem.data.scenes import CLASSES, make_scenes
from ohem.detection.draw import draw_detections, draw_side_by_side
from ohem.training.build import build_data, build_pictures, build_proposals
from ohem.training.config import Recipe
from ohem.training.detect import draw_found, save_picture
from ohem.training.evaluate import detect, evaluate_run, load_detector
from ohem.training.recipes import RECIPES
from ohem.training.start import start

ARMS = ("frcn", "ohem")
PICTURES = 8
SCORE = 0.3


def run_demo(folder: Path, *, steps: int | None, train_images: int, test_images: int) -> None:
    """Makes `folder`/data, trains and evaluates `folder`/frcn and `folder`/ohem, and draws `folder`/pictures."""
    make_scenes(folder / "data", train=train_images, test=test_images)
    reports = {}
    for arm in ARMS:
        print(f"\n{arm}: training, then evaluation", flush=True)
        start(folder / arm, f"demo-{arm}", _recipe(arm, folder / "data", steps))
        reports[arm] = evaluate_run(folder / arm)
    _draw(folder)
    _print(reports)
    print(f"pictures of the test scenes: {folder / 'pictures'}")


def _recipe(arm: str, data: Path, steps: int | None) -> Recipe:
    recipe = RECIPES[f"demo-{arm}"].recipe
    solver = recipe.solver if steps is None else replace(recipe.solver, steps=steps)
    sources = replace(recipe.data, train=(f"{data}:trainval",), test=(f"{data}:test",), classes=CLASSES)
    return replace(recipe, data=sources, solver=solver)


def _draw(folder: Path) -> None:
    """Some test scenes with the ground truth and the detections of both arms."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    models = [load_detector(folder / arm, accelerator="cpu")[0] for arm in ARMS]
    recipe = _recipe(ARMS[0], folder / "data", None)
    data = build_data(recipe.data.test, CLASSES, "--data.test")
    shown = build_pictures(data, build_proposals(data, recipe.proposals), recipe)
    first = [shown[i] for i in range(min(PICTURES, len(data)))]
    found = zip(*(detect(model, first) for model in models), strict=True)
    for i, both in enumerate(found):
        image, target = data[i]
        names = [data.classes[label - 1] for label in target["labels"].tolist()]
        truth = draw_detections(image, target["boxes"], names)
        panels = [draw_found(image, one, data.classes, SCORE) for one in both]
        save_picture(draw_side_by_side(truth, *panels, titles=["ground truth", *ARMS]), pictures / f"{data.ids[i]}.jpg")


def _print(reports: dict[str, dict[str, Any]]) -> None:
    table = make_table("class", *(f"{arm} AP" for arm in ARMS))
    first = reports[ARMS[0]]
    for name in first["ap"]:
        table.add_row(name, *(_number(reports[arm]["ap"][name]) for arm in ARMS))
    table.add_section()
    table.add_row("mAP", *(_number(reports[arm]["map"]) for arm in ARMS), style="bold")
    make_console().print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
