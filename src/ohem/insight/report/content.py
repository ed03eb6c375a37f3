"""The content of a report, as JSON has it, with pictures besides."""

import math
from collections.abc import Sequence
from typing import Any

from ohem.insight.pictures import Thumbnails
from ohem.insight.report.mining_facts import MiningFacts, ObjectCount, Row
from ohem.insight.report.run_facts import RunFacts
from ohem.metrics.error_types import TYPES

PICTURE = "picture"
"""Key of pictures, which the JSON file does not have."""
NEARLY_ALL = 0.9
"""Share of chosen RoIs above which there is little to choose from."""
MOST_OBJECTS = 12
"""Objects never or always mined that the page lists."""
SMALLEST = 0.05
"""Smallest difference in AP, in points, that is called one."""


def make_content(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """Returns the content: `runs`, and `classes` with each class in every run, compared with the first run."""
    base = runs[0]
    return {
        "test": [str(source) for source in base.test.sources],
        "metric": base.scores["metric"],
        "images": len(base.test),
        "runs": [_run(run, base) for run in runs],
        "classes": [_class(label, name, runs) for label, name in enumerate(base.classes, start=1)],
    }


def without_pictures(content: Any) -> Any:
    """Returns the content without pictures, and None for numbers that JSON does not have."""
    if isinstance(content, dict):
        return {key: without_pictures(value) for key, value in content.items() if key != PICTURE}
    if isinstance(content, list | tuple):
        return [without_pictures(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _run(run: RunFacts, base: RunFacts) -> dict[str, Any]:
    total = run.errors
    return {
        "name": run.name,
        "sampler": run.sampler,
        "map": run.scores["map"],
        "gain": None if run is base else _difference(run.scores["map"], base.scores["map"]),
        "verdict": verdict(run.mining, run.sampler),
        "errors": {kind: {"count": total.counts[kind], "dap": total.dap[kind]} for kind in TYPES},
        "mining": None if run.mining is None else _mining(run, run.mining),
    }


def verdict(mining: MiningFacts | None, sampler: str) -> str:
    """Returns a sentence that says whether mining is on, and how many RoIs it chose."""
    if mining is None:
        return "Nothing is known about mining: there is no mining log. A detector without mining writes none."
    share = mining.chosen / max(mining.minable, 1)
    numbers = f"{mining.chosen:,.0f} of {mining.minable:,.0f} RoIs in a step ({share:.0%})"
    if not any(mining.hardest):
        return f"The sampler {sampler or 'of this run'} does not use losses: it is no mining. It chose {numbers}."
    little = " That is nearly all of them: there is little to choose from." if share > NEARLY_ALL else ""
    return f"Mining is on: it chose {numbers}, over {mining.steps:,} steps.{little}"


def _mining(run: RunFacts, mining: MiningFacts) -> dict[str, Any]:
    pictures = Thumbnails(run.train, run.images)
    return {
        "steps": mining.steps,
        "chosen": mining.chosen,
        "minable": mining.minable,
        "periods": [vars(period) for period in mining.periods],
        "hardest": [[_row(row, run.classes, pictures) for row in rows] for rows in mining.hardest],
        "background": [_row(row, run.classes, pictures) for row in mining.background],
        "objects": len(mining.objects),
        "never": _objects(mining.never, run, pictures),
        "always": _objects(mining.always, run, pictures),
    }


def _row(row: Row, classes: Sequence[str], pictures: Thumbnails) -> dict[str, Any]:
    label, taken = (_name(number, classes) for number in (row.label, row.taken_for))
    return {
        "step": row.step,
        "image": row.image,
        "box": [round(side, 1) for side in row.box],
        "label": label,
        "loss": row.loss,
        "iou": row.iou,
        "taken_for": taken,
        "taken_score": row.taken_score,
        PICTURE: pictures.of(row.image, row.box) if row.placed else None,
    }


def _name(label: int, classes: Sequence[str]) -> str | None:
    """Returns the name of a label; None if it is not known."""
    if label < 0:
        return None
    return "background" if label == 0 else classes[label - 1] if label <= len(classes) else f"class {label}"


def _objects(objects: Sequence[ObjectCount], run: RunFacts, pictures: Thumbnails) -> dict[str, Any]:
    first = [_object(item, run, pictures) for item in objects[:MOST_OBJECTS]]
    return {"count": len(objects), "first": [item for item in first if item]}


def _object(item: ObjectCount, run: RunFacts, pictures: Thumbnails) -> dict[str, Any] | None:
    index = run.images.get(item.image)
    if run.train is None or index is None:
        return {"image": item.image, "object": item.object, "visits": item.visits, "label": None, PICTURE: None}
    target = run.train.target(index)
    if item.object >= len(target["labels"]):
        return None  # the annotations have changed
    box, label = target["boxes"][item.object].tolist(), int(target["labels"][item.object])
    return {
        "image": item.image,
        "object": item.object,
        "visits": item.visits,
        "label": _name(label, run.classes),
        "box": [round(side, 1) for side in box],
        PICTURE: pictures.of(item.image, box),
    }


def _class(label: int, name: str, runs: Sequence[RunFacts]) -> dict[str, Any]:
    base = runs[0]
    objects = sum(
        int(((target := base.test.target(i))["labels"][~target["ignore"]] == label).sum())
        for i in range(len(base.test))
    )
    return {"name": name, "objects": objects, "runs": [_class_of_run(label, name, run, base) for run in runs]}


def _class_of_run(label: int, name: str, run: RunFacts, base: RunFacts) -> dict[str, Any]:
    mined: float | None = None
    foreground = sum(run.mining.labels[1:]) if run.mining is not None else 0
    if run.mining is not None and foreground:
        mined = (run.mining.labels[label] if label < len(run.mining.labels) else 0) / foreground
    dap = run.errors.dap_per_class[name]
    gain = None if run is base else _difference(run.scores["ap"][name], base.scores["ap"][name])
    return {
        "run": run.name,
        "mined": mined,
        "ap": run.scores["ap"][name],
        "gain": gain,
        "counts": run.errors.counts_per_class[name],
        "dap": dap,
        "why": why(dap, None if run is base else base.errors.dap_per_class[name], gain),
    }


def why(dap: dict[str, float], before: dict[str, float] | None, gain: float | None) -> str:
    """Returns what costs most AP; in a comparison, of what the change of the AP comes most.

    Args:
        dap: AP that each type of error costs.
        before: the same of the first run; None for the first run itself.
        gain: difference in AP to the first run.
    """
    if before is None or gain is None:
        kind = max(dap, key=lambda name: dap[name])
        return f"mostly {_PHRASES[kind]} ({dap[kind]:.1f})" if dap[kind] >= SMALLEST else "no errors that cost AP"
    if abs(gain) < SMALLEST:
        return "as before"
    changes = {kind: dap[kind] - before[kind] for kind in TYPES}
    kind = min(changes, key=lambda name: changes[name] * math.copysign(1, gain))
    if changes[kind] * gain > -SMALLEST:
        return "of no single type"
    return f"{'fewer' if gain > 0 else 'more'} {_PHRASES[kind]} ({before[kind]:.1f} → {dap[kind]:.1f})"


_PHRASES = {
    "class": "wrong classes",
    "location": "badly placed boxes",
    "both": "wrong classes and places",
    "duplicate": "duplicates",
    "background": "detections of background",
    "missed": "missed objects",
}


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other
