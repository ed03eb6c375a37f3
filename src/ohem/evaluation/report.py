"""RUN/eval.json: how it is written and checked, and which files it may overwrite."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from torch import Tensor

from ohem.config.schema import MetricName
from ohem.data.coco import COCODetection
from ohem.data.dataset import DetectionSet
from ohem.errors import InputError
from ohem.io.files import check_output, describe_os_error, remove_leftovers
from ohem.io.json_files import write_json
from ohem.metrics.coco import write_results

NAME = "eval.json"
DIGEST = "digest"  # of the other fields of a report; older versions did not write it


def write_report(
    path: Path, report: dict[str, Any], detections: Sequence[dict[str, Tensor]], data: DetectionSet
) -> None:
    """Writes `report` to `path`, and for COCO data also the detections, in COCO's format."""
    remove_leftovers(path.parent)
    content = _finite(report)
    write_json(path, content | {DIGEST: digest_of_content(content)})
    if isinstance(data, COCODetection):
        _write_detections(path, detections, data)


def _finite(value: Any) -> Any:
    """Returns `value` with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_report(path: Path) -> dict[str, Any]:
    """Reads a report that `write_report` wrote.

    Returns:
        The result of `evaluate_run`: `metric`, `map` (0-100 or None), `ap` (class -> 0-100 or None), `step`, `images`
        and more.

    Raises:
        InputError: the file is missing, damaged or no report.
    """
    remedy = "remove it, and evaluate again"
    report = read_json(path, remedy)
    fault = _fault(report)
    if fault:
        raise InputError(f"{path} is damaged or no report of `ohem eval` ({fault}): {remedy}")
    content: dict[str, Any] = {name: value for name, value in report.items() if name != DIGEST}
    return content


def read_json(path: Path, remedy: str) -> Any:
    """Reads a JSON file of finite numbers.

    Raises:
        InputError: the file is missing, or is damaged; then the message ends with `remedy`.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise InputError(describe_os_error(error)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({_brief(error)}): {remedy}") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _brief(error: Exception) -> str:
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _fault(report: Any) -> str:
    """Returns why `report` is no report; "" if it is one."""
    if not isinstance(report, dict):
        return "it holds no fields"
    for name, fits in _FIELDS.items():
        if name not in report or not fits(report[name]):
            return f"{name} is missing" if name not in report else f"{name} is {report[name]!r}"
    if not _is_number(report.get("loss_all_rois") or 0):
        return "loss_all_rois is no number"
    if not _is_number(report.get("false_positives_per_image") or 0):
        return "false_positives_per_image is no number"
    if not _are_shares(report.get("background_share", {})):
        return "background_share holds something else than shares"
    written = report.get(DIGEST, "" if "weights" in report else None)  # older versions wrote neither
    if written not in (None, digest_of_content({name: value for name, value in report.items() if name != DIGEST})):
        return "its content does not match its digest"
    return ""


def digest_of_content(content: Mapping[str, Any]) -> str:
    """Returns 16 hexadecimal digits of JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0


def _are_shares(value: Any) -> bool:
    return isinstance(value, dict) and all(v is None or (_is_number(v) and 0 <= v <= 1) for v in value.values())


def _is_percentage(value: Any) -> bool:
    return value is None or (_is_number(value) and 0 <= value <= 100 + 1e-6)


_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "metric": lambda value: value in get_args(MetricName),
    "map": _is_percentage,
    "ap": lambda value: isinstance(value, dict) and len(value) > 0 and all(map(_is_percentage, value.values())),
    "step": _is_count,
    "images": _is_count,
    "seconds_per_image": lambda value: _is_number(value) and value >= 0,
    "test": lambda value: isinstance(value, dict),
}


def is_report(path: Path) -> bool:
    """Returns whether `path` is a report that `write_report` wrote."""
    try:
        read_report(path)
    except InputError:
        return False
    return True


def check_outputs(report: Path, submit: Path | None, data: DetectionSet) -> None:
    """Raises `InputError` where a result would overwrite a file that is no earlier result."""
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
    """Returns the result file of each annotation file."""
    path, count = _detections_path(report), len(data.sources)
    return [path.with_stem(f"{path.stem}-{i}") for i in range(1, count + 1)] if count > 1 else [path]


def as_annotated(detections: Sequence[dict[str, Tensor]], data: DetectionSet) -> list[dict[str, Tensor]]:
    """Returns the detections with boxes in the pixels of the annotations, whose images may not be upright."""
    return [{**item, "boxes": data.as_annotated(i, item["boxes"])} for i, item in enumerate(detections)]


def _write_detections(report: Path, detections: Sequence[dict[str, Tensor]], data: COCODetection) -> None:
    """Writes the detections of each annotation file with its own numbers of images and classes."""
    labels = {name: label for label, name in enumerate(data.classes, start=1)}
    detections = as_annotated(detections, data)
    for file, source in zip(_detection_files(report, data), data.sources, strict=True):
        category_ids = {labels[name]: category for name, category in source.category_ids if name in labels}
        write_results(file, detections[source.indices], source.image_ids, category_ids)
