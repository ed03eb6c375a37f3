"""RUN/eval.json: what it holds, how it is known to be whole, and what it may overwrite."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from torch import Tensor

from ohem.data.coco import COCODetection
from ohem.data.dataset import DetectionSet
from ohem.errors import InputError
from ohem.evaluation.coco import write_results
from ohem.files import check_output, describe_os_error, remove_leftovers, replacing
from ohem.training.config import Metric

NAME = "eval.json"
DIGEST = "digest"  # of the other fields of a report; reports of older versions lack it


def write_report(path: Path, report: dict[str, Any], found: Sequence[dict[str, Tensor]], data: DetectionSet) -> None:
    """Writes `report` to `path`, and beside it, for COCO data, the detections in its own format."""
    remove_leftovers(path.parent)
    with replacing(path) as beside:
        content = _finite(report)
        content |= {DIGEST: _digest(content)}
        beside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    if isinstance(data, COCODetection):
        _write_detections(path, found, data)


def _finite(value: Any) -> Any:
    """`value` with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_report(path: Path) -> dict[str, Any]:
    """Reads a report that `write_report` wrote.

    Returns:
        What `evaluate_run` returns: `metric`, `map` (0-100 or None), `ap` (class -> 0-100 or None), `step`, `images`
        and more, by name.

    Raises:
        InputError: the file is missing, damaged or no such report.
    """
    try:
        report = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise InputError(describe_os_error(error)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({_brief(error)}): remove it, and evaluate anew") from error
    fault = _fault(report)
    if fault:
        raise InputError(f"{path} is damaged or no report of `ohem eval` ({fault}): remove it, and evaluate anew")
    content: dict[str, Any] = {name: value for name, value in report.items() if name != DIGEST}
    return content


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _brief(error: Exception) -> str:
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _fault(report: Any) -> str:
    """What keeps `report` from being one; "" if nothing does."""
    if not isinstance(report, dict):
        return "it holds no fields"
    for name, fits in _FIELDS.items():
        if name not in report or not fits(report[name]):
            return f"{name} is missing" if name not in report else f"{name} is {report[name]!r}"
    if not _is_number(report.get("loss_all_rois") or 0):
        return "loss_all_rois is no number"
    written = report.get(DIGEST, "" if "weights" in report else None)  # older versions wrote neither
    if written not in (None, _digest({name: value for name, value in report.items() if name != DIGEST})):
        return "its content is not that of its digest"
    return ""


def _digest(report: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the content, by which damage is noticed."""
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()[:16]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0


def _is_percentage(value: Any) -> bool:
    return value is None or (_is_number(value) and 0 <= value <= 100 + 1e-6)


_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "metric": lambda value: value in get_args(Metric),
    "map": _is_percentage,
    "ap": lambda value: isinstance(value, dict) and len(value) > 0 and all(map(_is_percentage, value.values())),
    "step": _is_count,
    "images": _is_count,
    "seconds_per_image": lambda value: _is_number(value) and value >= 0,
    "test": lambda value: isinstance(value, dict),
}


def is_report(path: Path) -> bool:
    try:
        read_report(path)
    except InputError:
        return False
    return True


def check_outputs(report: Path, submit: Path | None, data: DetectionSet) -> None:
    """Raises InputError where a result would be written over something else than earlier results."""
    inputs = list(data.files())
    if submit is None:
        check_output(report, inputs)
        if isinstance(data, COCODetection):
            for path in _detection_files(report, data):
                check_output(path, inputs)
                if path.exists() and path.read_bytes()[:1] not in (b"[", b""):
                    raise InputError(f"{path} exists and holds no detections: remove it, or name another with --out")
    elif submit.is_dir():
        others = [path for path in submit.iterdir() if not path.name.startswith("comp4_det_test_")]
        folders = [source.folder.resolve() for source in data.sources]
        if others and any(submit.resolve().is_relative_to(folder) for folder in folders):
            raise InputError(f"--submit {submit} is a folder of the data: name a new one, which gets the result files")
        for path in submit.glob("comp4_det_test_*"):
            check_output(path, inputs)


def _detections_path(report: Path) -> Path:
    return report.with_name("detections.json" if report.name == NAME else f"{report.stem}-detections.json")


def _detection_files(report: Path, data: COCODetection) -> list[Path]:
    """A file for each of the annotation files."""
    path, count = _detections_path(report), len(data.sources)
    return [path.with_stem(f"{path.stem}-{i}") for i in range(1, count + 1)] if count > 1 else [path]


def as_annotated(found: Sequence[dict[str, Tensor]], data: DetectionSet) -> list[dict[str, Tensor]]:
    """The detections with boxes in the pixels that the annotations refer to, which may be of an image not upright."""
    return [{**each, "boxes": data.as_annotated(i, each["boxes"])} for i, each in enumerate(found)]


def _write_detections(report: Path, found: Sequence[dict[str, Tensor]], data: COCODetection) -> None:
    """The detections in each annotation file's images, in its own numbers of images and classes."""
    labels = {name: label for label, name in enumerate(data.classes, start=1)}
    found = as_annotated(found, data)
    for file, source in zip(_detection_files(report, data), data.sources, strict=True):
        category_ids = {labels[name]: category for name, category in source.category_ids if name in labels}
        write_results(file, found[source.indices], source.image_ids, category_ids)
