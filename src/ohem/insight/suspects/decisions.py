"""`ohem audit --apply DECISIONS`: writes corrected annotations into a new folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from ohem.data.coco import COCODetection
from ohem.data.dataset import DetectionSet
from ohem.data.sources import open_dataset
from ohem.data.voc import VOCDetection
from ohem.errors import InputError
from ohem.insight.suspects.writers import Correction, write_coco, write_voc, write_yolo
from ohem.io.files import describe_os_error
from ohem.io.json_files import parse_json

CHOICES = ("accept", "reject", "skip", "unsure")


def apply_decisions(path: Path, out: Path) -> None:
    """Writes the annotations that `path`, a file of the page of `ohem audit`, names, with its decisions applied.

    An accepted proposal is carried out. What a person is unsure of becomes `difficult` (VOC) or `iscrowd` (COCO); YOLO
    layout has no such mark, so there it stays as it is. Everything else is copied. The pictures are linked, not copied.

    Args:
        path: decisions.json.
        out: folder to make.

    Raises:
        InputError: `path` holds no decisions, the data have changed since, or `out` exists.
    """
    content = _read(path)
    sources, decisions = content["sources"], content["decisions"]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists: name a new folder with --out, since annotations are never changed in place")
    try:
        data = open_dataset(sources, content["classes"], skip_others=True)
    except InputError as error:
        raise InputError(f"the data that {path} names cannot be read: {error}") from error
    corrections = _corrections(decisions, data, path)
    out.mkdir(parents=True, exist_ok=True)
    for source in data.sources:
        folder = out if len(data.sources) == 1 else out / str(data.sources.index(source) + 1)
        kind = type(data)
        write = write_voc if kind is VOCDetection else write_coco if kind is COCODetection else write_yolo
        print(f"{write(data, source, corrections, folder)}: the corrected annotations of {source}")
    counts = Counter(decision["decision"] for decision in decisions)
    print(", ".join(f"{counts[choice]} {choice}" for choice in CHOICES))
    if counts["unsure"] and not isinstance(data, VOCDetection | COCODetection):
        print("YOLO layout has no mark for unsure boxes: they stay as they are")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"--apply {describe_os_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not well-formed JSON ({error}): save the decisions again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no decisions of the page of `ohem audit`: name the file that it saves")
    for key in ("sources", "classes", "decisions"):
        if not isinstance(content.get(key), list) or not (content[key] or key == "decisions"):
            raise InputError(f"{path} has no list of {key}: name the file that the page of `ohem audit` saves")
        if key != "decisions" and not all(isinstance(text, str) for text in content[key]):
            raise InputError(f"{path} has {key} that are no text: save the decisions again")
    return content


@dataclass(frozen=True)
class _Decision:
    """A decision with its fields checked."""

    choice: str
    image: int
    correction: Correction


def _corrections(decisions: Sequence[Any], data: DetectionSet, path: Path) -> dict[int, list[Correction]]:
    """Returns the corrections of each image by its index."""
    indices = {name: index for index, name in enumerate(data.ids)}
    corrections: dict[int, list[Correction]] = {}
    seen: set[tuple[int, int]] = set()
    for number, decision in enumerate(decisions, start=1):
        read = _decision(decision, f"decision {number} of {path}", indices, data)
        if read.choice in ("reject", "skip"):
            continue
        given = read.correction.given
        if given is not None and (read.image, given) in seen:
            raise InputError(f"decision {number} of {path} is about a box that has one already: remove one of them")
        if given is not None:
            seen.add((read.image, given))
        corrections.setdefault(read.image, []).append(read.correction)
    return corrections


def _decision(decision: Any, where: str, indices: dict[str, int], data: DetectionSet) -> _Decision:
    if not isinstance(decision, dict) or decision.get("decision") not in CHOICES:
        value = decision.get("decision") if isinstance(decision, dict) else decision
        raise InputError(f"{where} is {shortened(value)}: write one of {', '.join(CHOICES)}")
    name = decision.get("image")
    if not isinstance(name, str) or name not in indices:
        raise InputError(f"{where} has the image {shortened(name)}, which the data do not have: correct or remove it")
    image, given = indices[name], decision.get("given")
    given_box, box = (_box(decision.get(key), f"{where} has the {key}") for key in ("given_box", "proposed_box"))
    names = [decision.get(key) for key in ("given_class", "proposed_class")]
    for value in names:
        if value is not None and value not in data.classes:
            raise InputError(f"{where} has the class {shortened(value)}, which the data do not have: correct it")
    if given is None and (box is None or names[1] is None):
        raise InputError(f"{where} names neither a given box nor a new one: save the decisions again")
    if given is not None:
        _check_given(data, image, given, given_box, names[0], where)
    if box is not None:
        height, width = data.size(image)
        box = [max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))]
    unsure = decision["decision"] == "unsure"
    return _Decision(decision["decision"], image, Correction(given, box, names[1], unsure))


def _box(value: Any, where: str) -> list[float] | None:
    if value is None:
        return None
    numbers = isinstance(value, list) and len(value) == 4 and all(type(corner) in (int, float) for corner in value)
    if not numbers or not (value[0] < value[2] and value[1] < value[3]):
        raise InputError(f"{where} {shortened(value)}: write [x1, y1, x2, y2] in pixels")
    return [float(corner) for corner in value]


def _check_given(
    data: DetectionSet, image: int, given: Any, box: list[float] | None, name: str | None, where: str
) -> None:
    """Raises `InputError` where the data do not have the given box any more."""
    annotation = data.annotation(image)
    same = (
        type(given) is int
        and 0 <= given < len(annotation.names)
        and annotation.names[given] == name
        and box is not None
        and abs(annotation.boxes[given] - box).max() < 0.1
    )
    if not same:
        raise InputError(
            f"{where} is about a {name} that {annotation.file} does not have there: the annotations have changed since "
            "the audit, so repeat it"
        )
