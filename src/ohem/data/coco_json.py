"""One file of COCO annotations, read without trust: every field checked before it is used, or a sentence.

Boxes in JSON are `[x, y, width, height]`; here they are `[x, y, x + width, y + height]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np

from ohem.data.annotation import Annotation, Defects, Floats, checked_size, mend
from ohem.errors import InputError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Instances:
    """What a file says; images by ascending id, the order in which COCO's program breaks ties of score."""

    category_ids: dict[str, int]
    """Class name -> id, in ascending order of ids."""
    image_ids: list[int]
    names: list[str]
    """`file_name` of each image without its suffix."""
    annotations: list[Annotation]


@dataclass
class _Objects:
    """Those of one image; its lists are filled side by side."""

    names: list[str] = field(default_factory=list)
    boxes: list[Floats] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    area: list[float] = field(default_factory=list)


def read_instances(path: Path, folder: Path, defects: Defects) -> Instances:
    """Reads `path`, whose images lie in `folder`.

    Without a list of annotations, as the test server's files are, no image has an object.
    """
    content = _parse_json(path)
    names = _read_categories(content, path)
    images = _read_images(content, path)
    sizes = {number: _read_size(image, folder, _told(image, "image", path)) for number, image in images.items()}
    objects = {number: _Objects() for number in images}
    for thing, where in _records(content, "annotations", path) if "annotations" in content else ():
        number = _whole(thing, "image_id", where)
        if number not in images:
            raise InputError(f"{where} has the image_id {number}, which no image has: correct it, or remove the object")
        category = _whole(thing, "category_id", where)
        if category not in names:
            raise InputError(f"{where} has the category_id {category}, which no category has: add it to categories")
        _add(objects[number], thing, names[category], sizes[number], where, defects)
    return Instances(
        {name: number for number, name in sorted(names.items())},
        list(images),
        [_without_suffix(image["file_name"]) for image in images.values()],
        [
            _annotation(path, folder / image["file_name"], sizes[number], objects[number])
            for number, image in images.items()
        ],
    )


def _parse_json(path: Path) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"the annotations {path} do not exist: correct the source") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not well-formed JSON ({error}): correct it, or export it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not in COCO's format: write an object with images, annotations and categories")
    return content


def _read_categories(content: Record, path: Path) -> dict[int, str]:
    """Id -> name."""
    names: dict[int, str] = {}
    for category, where in _records(content, "categories", path):
        number, name = _whole(category, "id", where), _text(category, "name", where)
        if number in names or name in names.values():
            raise InputError(f"{path} lists the category {number} or its name {name!r} twice: remove one of them")
        names[number] = name
    return names


def _read_images(content: Record, path: Path) -> dict[int, Record]:
    """Id -> image, in ascending order."""
    images: dict[int, Record] = {}
    files: dict[str, int] = {}
    for image, where in _records(content, "images", path):
        number, name = _whole(image, "id", where), _without_suffix(_text(image, "file_name", where))
        if number in images:
            raise InputError(f"{path} lists the image {number} twice: remove one of them")
        before = files.setdefault(name, number)
        if before != number:
            raise InputError(
                f"the images {before} and {number} of {path} share the file_name {name!r}: remove or rename one"
            )
        images[number] = image
    if not images:
        raise InputError(f"{path} has no images: list them under images")
    return dict(sorted(images.items()))


def _read_size(image: Record, folder: Path, where: str) -> tuple[int, int]:
    """`(height, width)`, which the image's entry and its header agree on."""
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist: correct the source")
    file = folder / image["file_name"]
    if not file.is_file():
        raise InputError(f"{where} has the file_name {image['file_name']!r}, which is not in {folder}: put it there")
    return checked_size(_whole(image, "height", where), _whole(image, "width", where), file, f"{where} has a size")


def _add(objects: _Objects, thing: Record, name: str, size: tuple[int, int], where: str, defects: Defects) -> None:
    """Puts the annotation `thing` to the objects of its image."""
    x, y, width, height = _read_box(thing, where)
    crowd = thing.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise InputError(f"{where} has the iscrowd {shortened(crowd)}: write 0 or 1")
    area = thing.get("area")
    if area is not None and not (_is_number(area) and area >= 0):
        raise InputError(f"{where} has the area {shortened(area)}: write it in square pixels, or leave it out")
    box = mend((x, y, x + width, y + height), size, where, defects)
    if box is None:
        defects.skipped[where] += 1
        return
    objects.names.append(name)
    objects.boxes.append(box)
    objects.crowd.append(bool(crowd))
    objects.area.append(float((box[2:] - box[:2]).prod()) if area is None else area)


def _read_box(thing: Record, where: str) -> list[float]:
    box = _get(thing, "bbox", where)
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise InputError(f"{where} has the bbox {shortened(box)}: write [x, y, width, height] in pixels")
    return box


def _annotation(path: Path, image: Path, size: tuple[int, int], objects: _Objects) -> Annotation:
    boxes, area = np.array(objects.boxes, np.float32).reshape(-1, 4), np.array(objects.area, np.float32)
    return Annotation(path, image, size, objects.names, boxes, objects.crowd, area)


def _records(content: Record, key: str, path: Path) -> Iterator[tuple[Record, str]]:
    """The entries of the list `key`, each with how to name it."""
    entries = _get(content, key, str(path))
    if not isinstance(entries, list):
        raise InputError(f"{path} has {key} that are not a list: write one")
    kind = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
    for place, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise InputError(f"entry {place} of the {key} of {path} is no object with fields: correct or remove it")
        yield entry, _told(entry, kind, path) if "id" in entry else f"entry {place} of the {key} of {path}"


def _without_suffix(file: str) -> str:
    return file.removesuffix(Path(file).suffix)


def _told(entry: Record, kind: str, path: Path) -> str:
    return f"{kind} {shortened(entry['id'])} of {path}"


def _get(entry: Record, key: str, where: str) -> Any:
    if key not in entry:
        raise InputError(f"{where} has no {key}: add it")
    return entry[key]


def _whole(entry: Record, key: str, where: str) -> int:
    value = _get(entry, key, where)
    if type(value) is not int:
        raise InputError(f"{where} has the {key} {shortened(value)}: write a whole number")
    return value


def _text(entry: Record, key: str, where: str) -> str:
    value = _get(entry, key, where)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} has the {key} {shortened(value)}: write a name")
    return value


def _is_number(value: object) -> bool:
    """Whether it is one that a picture can hold: neither NaN nor infinite, nor beyond every float."""
    return type(value) in (int, float) and -1e12 < value < 1e12  # type: ignore[operator]
