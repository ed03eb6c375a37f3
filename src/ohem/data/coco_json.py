"""One file of COCO annotations. Every field is checked before it is used; a fault ends in one sentence.

Boxes in JSON are `[x, y, width, height]`; here they are `[x, y, x + width, y + height]`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
from msgspec import to_builtins

from ohem.data import coco_arrays
from ohem.data.annotations.annotation import (
    Annotation,
    Floats,
    Frame,
    check_in_pixels,
    class_name,
    clip_box,
    find_frame,
)
from ohem.data.annotations.findings import Findings, Note
from ohem.data.annotations.table import AnnotationTable
from ohem.data.voc import no_such_folder
from ohem.errors import InputError
from ohem.images.orientation import Size
from ohem.io.files import describe_os_error
from ohem.io.json_files import parse_json

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Instances:
    """Content of a file. Images are in ascending order of ids, in which pycocotools ranks equal scores."""

    category_ids: dict[str, int]
    """Class name -> id, in ascending order of ids."""
    groups: list[str]
    """Class names without objects that only group others."""
    image_ids: list[int]
    names: list[str]
    """`file_name` of each image without its suffix."""
    annotations: AnnotationTable
    """Annotations of the images without a fault."""


@dataclass
class _Image:
    """An image and its objects; the lists have one entry for each object."""

    file: Path
    frame: Frame
    names: list[str] = field(default_factory=list)
    raw: list[list[float]] = field(default_factory=list)
    boxes: list[Floats] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    area: list[float] = field(default_factory=list)


def read_instances(path: Path, folder: Path, findings: Findings) -> Instances:
    """Reads the file `path`, whose images are in `folder`.

    A file without a list of annotations, such as those of the test server, has no objects.
    """
    typed = coco_arrays.parse(path)
    content = _parse_json(path) if typed is None else _as_record(typed)
    categories = _read_categories(content, path, findings)
    entries = _read_images(content, path)
    if not folder.is_dir():
        raise no_such_folder(folder, f"{path}:{folder}")
    images: dict[int, _Image] = {}
    for number, entry in entries.items():
        where = _entry_name(entry, "image", path)
        with findings.collected(where):
            file = _image_file(entry, folder, where)
            images[number] = _Image(file, find_frame(_read_size(entry, where), file, where, findings))
    table = None
    if typed is not None and len(images) == len(entries):  # no image has a fault
        table = _fast_table(path, images, typed, categories, findings)
    if table is None:
        content = content if typed is None else _parse_json(path)
        table = _read_objects(content, path, entries, images, categories, findings)
    category_ids: dict[str, int] = {}
    for number, name in sorted(categories.items()):
        category_ids.setdefault(name, number)
    return Instances(
        category_ids,
        _groups(content, path, set(table.names)),
        list(entries),
        [_without_suffix(entry["file_name"]) for entry in entries.values()],
        table,
    )


def image_names(path: Path) -> list[str]:
    """Returns the `file_name` of each image, with / between folders."""
    typed = coco_arrays.parse(path)
    content = _parse_json(path) if typed is None else _as_record(typed)
    return [image["file_name"].replace("\\", "/") for image in _read_images(content, path).values()]


def _as_record(content: coco_arrays.Content) -> Record:
    """Returns the images and categories as those of a parsed file."""
    return {"images": [to_builtins(image) for image in content.images], "categories": content.categories}


def _fast_table(
    path: Path,
    images: Mapping[int, _Image],
    content: coco_arrays.Content,
    categories: Mapping[int, str],
    findings: Findings,
) -> AnnotationTable | None:
    files, frames = zip(*((image.file, image.frame) for image in images.values()), strict=True)
    return coco_arrays.as_table(path, files, frames, list(images), content.annotations, categories, findings)


def _read_objects(
    content: Record,
    path: Path,
    entries: Mapping[int, Record],
    images: Mapping[int, _Image],
    categories: Mapping[int, str],
    findings: Findings,
) -> AnnotationTable:
    """Adds the objects to their images, one after the other."""
    for thing, where in _records(content, "annotations", path) if "annotations" in content else ():
        with findings.collected(where):
            _add(images, entries, thing, categories, where, findings)
    for number, image in images.items():
        with findings.collected(_entry_name(entries[number], "image", path)):
            check_in_pixels(image.raw, _entry_name(entries[number], "image", path))
    return AnnotationTable.of([_annotation(path, image) for image in images.values()])


def _parse_json(path: Path) -> Record:
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"the annotations {path} do not exist: correct the source") from error
    except OSError as error:
        raise InputError(f"the annotations {describe_os_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not well-formed JSON ({error}): correct it, or export it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not in COCO's format: write an object with images, annotations and categories")
    return content


def _read_categories(content: Record, path: Path, findings: Findings) -> dict[int, str]:
    """Returns id -> name; names with invisible differences are one."""
    names: dict[int, str] = {}
    written: dict[str, str] = {}
    for category, where in _records(content, "categories", path):
        number, text = _whole(category, "id", where), _text(category, "name", where)
        name = class_name(text)
        if number in names or written.get(name) == text:
            raise InputError(f"{path} lists the category {number} or its name {text!r} twice: remove one of them")
        if name in written or name != text:
            findings.note(Note.RENAMED, where)
        names[number], written[name] = name, text
    return names


def _groups(content: Record, path: Path, used: set[str]) -> list[str]:
    """Returns names of categories without objects that are supercategories of others, or mean background."""
    categories = [category for category, _ in _records(content, "categories", path)]
    supers = {
        class_name(category["supercategory"])
        for category in categories
        if isinstance(category.get("supercategory"), str)
    }
    names = dict.fromkeys(class_name(category["name"]) for category in categories)
    free = [name for name in names if name not in used and (name in supers or name.strip("_").lower() == "background")]
    own = {class_name(category["name"]) for category in categories if category.get("supercategory") == category["name"]}
    return [name for name in free if name not in own] if used else []


def _read_images(content: Record, path: Path) -> dict[int, Record]:
    """Returns id -> image, in ascending order."""
    images: dict[int, Record] = {}
    files: dict[str, int] = {}
    for image, where in _records(content, "images", path):
        number, name = _whole(image, "id", where), _without_suffix(_text(image, "file_name", where))
        if number in images:
            raise InputError(f"{path} lists the image {number} twice: remove one of them")
        before = files.setdefault(name, number)
        if before != number:
            raise InputError(
                f"the images {before} and {number} of {path} have the file_name {name!r} except for the suffix: remove "
                "or rename one"
            )
        images[number] = image
    if not images:
        raise InputError(f"{path} has no images: list them under images")
    return dict(sorted(images.items()))


def _image_file(entry: Record, folder: Path, where: str) -> Path:
    """Returns the file of the image; a name from Windows has backslashes."""
    name: str = entry["file_name"]
    for form in (name, name.replace("\\", "/")):
        if (folder / form).is_file():
            return folder / form
    raise InputError(f"{where} has the file_name {name!r}, which is not in {folder}: put it there")


def _read_size(entry: Record, where: str) -> Size | None:
    """Returns the stated `(height, width)`; None where it is missing or 0."""
    sizes = [0 if entry.get(key) is None else _whole(entry, key, where) for key in ("height", "width")]
    return None if 0 in sizes else (sizes[0], sizes[1])


def _add(
    images: Mapping[int, _Image],
    entries: Mapping[int, Record],
    thing: Record,
    categories: Mapping[int, str],
    where: str,
    findings: Findings,
) -> None:
    """Adds the annotation `thing` to the objects of its image."""
    number, category = _whole(thing, "image_id", where), _whole(thing, "category_id", where)
    if number not in entries:
        raise InputError(f"{where} has the image_id {number}, which no image has: correct it, or remove the object")
    if category not in categories:
        raise InputError(f"{where} has the category_id {category}, which no category has: add it to categories")
    x, y, width, height = bbox = _read_box(thing, where)
    crowd, ignore, area = _flag(thing, "iscrowd", where), _flag(thing, "ignore", where), thing.get("area")
    if area is not None and not (_is_number(area) and area >= 0):
        raise InputError(f"{where} has the area {shortened(area)}: write it in square pixels, or leave it out")
    image = images.get(number)
    if image is None:  # its fault is collected already
        return
    image.raw.append(bbox)
    box = clip_box((x, y, x + width, y + height), image.frame, where, where, findings)
    if box is None:
        return
    if ignore and not crowd:
        findings.note(Note.IGNORED, where)
    image.names.append(categories[category])
    image.boxes.append(box)
    image.crowd.append(crowd or ignore)
    image.area.append(float((box[2:] - box[:2]).prod()) if area is None else area)


def _flag(thing: Record, key: str, where: str) -> bool:
    value = thing.get(key, 0)
    if value not in (0, 1):
        raise InputError(f"{where} has the {key} {shortened(value)}: write 0 or 1")
    return bool(value)


def _read_box(thing: Record, where: str) -> list[float]:
    box = _get(thing, "bbox", where)
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise InputError(f"{where} has the bbox {shortened(box)}: write [x, y, width, height] in pixels")
    return box


def _annotation(path: Path, image: _Image) -> Annotation:
    boxes, area = np.array(image.boxes, np.float32).reshape(-1, 4), np.array(image.area, np.float32)
    return Annotation(path, image.file, image.frame, image.names, image.frame.turned(boxes), image.crowd, area)


def _records(content: Record, key: str, path: Path) -> Iterator[tuple[Record, str]]:
    """Yields the entries of the list `key` with their names in messages."""
    entries = _get(content, key, str(path))
    if not isinstance(entries, list):
        raise InputError(f"{path} has {key} that are not a list: write one")
    kind = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
    for place, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise InputError(f"entry {place} of the {key} of {path} is no object with fields: correct or remove it")
        yield entry, _entry_name(entry, kind, path) if "id" in entry else f"entry {place} of the {key} of {path}"


def _without_suffix(file: str) -> str:
    return file.replace("\\", "/").removesuffix(Path(file).suffix)


def _entry_name(entry: Record, kind: str, path: Path) -> str:
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
    if not isinstance(value, str) or not value.strip() or any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
        raise InputError(f"{where} has the {key} {shortened(value)}: write a name")
    return value


def _is_number(value: object) -> bool:
    """Returns whether `value` is a number that is possible in an image: not NaN, not infinite, not huge."""
    return type(value) in (int, float) and -1e12 < value < 1e12  # type: ignore[operator]
