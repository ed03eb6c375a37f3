"""`ohem audit`: gets detections, judges the annotations by them, and writes audit.json, audit.csv and audit.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ohem.config.schema import Recipe
from ohem.data.dataset import DetectionSet
from ohem.errors import InputError
from ohem.evaluation.evaluate import detect_all, load_detector
from ohem.extras import import_extra
from ohem.inputs.datasets import open_data
from ohem.inputs.examples import open_recipe_data
from ohem.insight.results_file import read_detections
from ohem.insight.suspects.detections import NAME, write_detections
from ohem.insight.suspects.folds import detect_out_of_fold
from ohem.insight.suspects.mined import audit_mined, read_mined
from ohem.insight.suspects.page import write_page
from ohem.insight.suspects.report import as_rows, write_csv
from ohem.insight.suspects.scores import ABOUT, KINDS
from ohem.io.json_files import write_json
from ohem.io.locks import NAME as LOCK
from ohem.training.run_folder import sole_writer

Detections = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Judge:
    """Where the detections come from: exactly one of the three is given.

    Args:
        recipe: name of the recipe that folds are trained with.
        run: folder of a run.
        detections: results in COCO's format.
    """

    recipe: str | None = None
    run: Path | None = None
    detections: Path | None = None


def audit_annotations(
    sources: Sequence[str],
    out: Path,
    judge: Judge,
    recipe: Recipe,
    folds: int = 3,
    jobs: int = 1,
    pictures: int = 300,
    cluster: str | None = None,
) -> list[dict[str, Any]]:
    """Judges every annotation of `sources`, and writes the suspects into the folder `out`.

    Args:
        sources: data sets of one format.
        out: folder for audit.json, audit.csv, audit.html, the detections and the runs of the folds.
        judge: where the detections come from.
        recipe: options of the trainings of the folds.
        folds: number of folds.
        jobs: number of trainings at the same time.
        pictures: highest number of suspects in the page.
        cluster: address of a Dask scheduler whose workers do the trainings, as `ohem.cluster.executor_on` takes it.

    Returns:
        The suspects of audit.json, most suspect first.

    Raises:
        InputError: options contradict each other, or the data, the run or the detections cannot be used.
    """
    if sum(value is not None for value in (judge.recipe, judge.run, judge.detections)) != 1:
        raise InputError("ohem audit needs detections: give one of --recipe (trains folds), --run and --detections")
    if pictures < 0:
        raise InputError(f"--pictures {pictures} is no number of pictures: give 0 or more")
    if recipe.data.train:
        raise InputError("--data.train is given twice: name the data to audit as SOURCE alone")
    import_extra("jinja2", "the page of ohem audit")
    _check_folder(out)
    with sole_writer(out, "the audit"):
        data, detections = _detections(sources, out, judge, recipe, folds, jobs, cluster)
        mined = {} if judge.run is None else read_mined(judge.run, data)
        suspects = audit_mined([data.target(i) for i in range(len(data))], detections, mined)
        rows = as_rows(suspects, data)
        write_detections(out / NAME, detections)
        write_json(out / "audit.json", {"sources": list(sources), "classes": list(data.classes), "suspects": rows})
        write_csv(out / "audit.csv", rows)
        write_page(out / "audit.html", rows, data, pictures)
    _print_summary(rows, out)
    return rows


def _check_folder(out: Path) -> None:
    """Raises `InputError` where `out` holds something else than an earlier audit."""
    earlier = ("audit.json", "fold-1.txt", LOCK)
    if out.exists() and not (
        out.is_dir() and (not any(out.iterdir()) or any((out / name).exists() for name in earlier))
    ):
        raise InputError(f"{out} exists and is no earlier audit: name another folder with --out")


def _detections(
    sources: Sequence[str],
    out: Path,
    judge: Judge,
    recipe: Recipe,
    folds: int,
    jobs: int,
    cluster: str | None,
) -> tuple[DetectionSet, Detections]:
    if judge.recipe is not None:
        return detect_out_of_fold(sources, out, judge.recipe, recipe, folds, jobs, cluster)
    if judge.run is not None:
        model, of_run, _ = load_detector(judge.run)
        data = open_recipe_data(of_run, sources, "ohem audit SOURCE")
        detections, _ = detect_all(model, data, of_run)
        return data, detections
    assert judge.detections is not None
    data = open_data(sources, recipe.data.classes, "ohem audit SOURCE", skip_others=bool(recipe.data.classes))
    detections, _ = read_detections(judge.detections, data)
    if any(((item["scores"] < 0) | (item["scores"] > 1)).any() for item in detections):
        raise InputError(f"{judge.detections} has scores outside 0..1: write the chance of each detection")
    return data, detections


def _print_summary(rows: Sequence[dict[str, Any]], out: Path) -> None:
    likely = [row for row in rows if row["score"] >= 0.5]
    counts = {kind: sum(row["kind"] == kind for row in likely) for kind in KINDS}
    listed = ", ".join(f"{count} x {ABOUT[kind]}" for kind, count in counts.items() if count)
    print(f"{len(likely)} annotations are more likely wrong than right{': ' * bool(listed)}{listed}")
    for row in rows[:5]:
        print(f"  {row['score']:.2f}  {row['image']}: {row['about']}")
    print(f"{out / 'audit.html'}: go through them; {out / 'audit.json'}, {out / 'audit.csv'}: all of them")
