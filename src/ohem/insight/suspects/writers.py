"""Corrected annotations in the format of the data: VOC, COCO or YOLO. Only what is corrected changes.

The pictures are not copied: the new folder has links to them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from defusedxml import ElementTree as SafeXML

from ohem.data.annotations.annotation import Annotation, class_name
from ohem.data.coco import COCOSource
from ohem.data.coco import parse_source as parse_coco
from ohem.data.dataset import DetectionSet, Source
from ohem.data.voc import parse_source as parse_voc
from ohem.data.yolo import YOLOSource, label_path
from ohem.errors import InputError
from ohem.io.files import atomic_write
from ohem.io.json_files import parse_json
from ohem.io.yaml_texts import format_yaml

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Correction:
    """A change of the annotation of an image.

    Args:
        given: index of the box among those that the reader returns; None for a new box.
        box: the right box in pixels of the upright image; None removes the given one.
        name: the right class.
        unsure: mark the box as difficult or as a crowd instead of changing it.
    """

    given: int | None
    box: Sequence[float] | None
    name: str | None
    unsure: bool


Corrections = Mapping[int, Sequence[Correction]]


def write_voc(data: DetectionSet, source: Source, corrections: Corrections, out: Path) -> str:
    """Writes OUT/Annotations and OUT/ImageSets, and links OUT/JPEGImages; returns the new source."""
    folder, split = parse_voc(source.text)
    for name in ("Annotations", "ImageSets/Main"):
        (out / name).mkdir(parents=True)
    shutil.copyfile(folder / "ImageSets" / "Main" / f"{split}.txt", out / "ImageSets" / "Main" / f"{split}.txt")
    _link(out / "JPEGImages", folder / "JPEGImages")
    for index in range(*source.indices.indices(len(data))):
        annotation = data.annotation(index)
        target = out / "Annotations" / annotation.file.name
        if index in corrections:
            _write(target, _voc_text(annotation, corrections[index]))
        else:
            shutil.copyfile(annotation.file, target)
    return f"{out}:{split}"


def _voc_text(annotation: Annotation, corrections: Sequence[Correction]) -> bytes:
    root = SafeXML.fromstring(annotation.file.read_bytes(), forbid_dtd=True)
    objects = root.findall("object")
    boxes = [_voc_corners(thing) for thing in objects]
    names = [class_name(thing.findtext("name") or "") for thing in objects]
    place = _places(annotation, boxes, names)
    for change in corrections:
        if change.given is None:
            thing = SubElement(root, "object")
            SubElement(thing, "name").text = change.name
            SubElement(thing, "difficult").text = str(int(change.unsure))
            SubElement(thing, "bndbox")
            _set_voc_box(thing, annotation, change.box)
            continue
        thing = objects[place[change.given]]
        if change.unsure:
            _set(thing, "difficult", "1")
        elif change.box is None:
            root.remove(thing)
        else:
            _set(thing, "name", change.name or "")
            if not _is_same(change.box, annotation.boxes[change.given]):
                _set_voc_box(thing, annotation, change.box)
    text: bytes = tostring(root, encoding="utf-8")
    return text + b"\n"


def _voc_corners(thing: Element) -> Corners:
    xmin, ymin, xmax, ymax = (float(thing.findtext(f"bndbox/{tag}") or 0) for tag in ("xmin", "ymin", "xmax", "ymax"))
    return xmin - 1, ymin - 1, xmax, ymax


def _set_voc_box(thing: Element, annotation: Annotation, box: Sequence[float] | None) -> None:
    x1, y1, x2, y2 = (round(corner) for corner in _as_annotated(annotation, box))
    place = thing.find("bndbox")
    assert place is not None
    for tag, value in {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": max(x2, x1 + 2), "ymax": max(y2, y1 + 2)}.items():
        _set(place, tag, str(value))


def _set(parent: Element, tag: str, text: str) -> None:
    child = parent.find(tag)
    (SubElement(parent, tag) if child is None else child).text = text


def write_coco(data: DetectionSet, source: Source, corrections: Corrections, out: Path) -> str:
    """Writes OUT/ANNOTATIONS.json; returns the new source."""
    assert isinstance(source, COCOSource)
    path, folder = parse_coco(source.text)
    content = parse_json(path.read_bytes())
    numbers = dict(source.category_ids)
    names = {category["id"]: class_name(category["name"]) for category in content["categories"]}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for entry in content.get("annotations", []):
        by_image.setdefault(entry["image_id"], []).append(entry)
    removed: set[int] = set()
    new: list[dict[str, Any]] = []
    following = max((entry.get("id", 0) for entry in content.get("annotations", [])), default=0) + 1
    for number, index in zip(source.image_ids, range(*source.indices.indices(len(data))), strict=True):
        if index not in corrections:
            continue
        entries, annotation = by_image.get(number, []), data.annotation(index)
        corners = [_from_size(entry["bbox"]) for entry in entries]
        place = _places(annotation, corners, [names[entry["category_id"]] for entry in entries])
        for change in corrections[index]:
            if change.given is None:
                added = {"id": following + len(new), "image_id": number, "iscrowd": int(change.unsure)}
                new.append(_coco_entry(added, annotation, change, numbers))
                continue
            entry = entries[place[change.given]]
            if change.unsure:
                entry["iscrowd"] = 1
            elif change.box is None:
                removed.add(id(entry))
            elif _is_same(change.box, annotation.boxes[change.given]):
                entry["category_id"] = numbers[change.name or ""]
            else:
                entry.pop("segmentation", None)  # it outlines the old box
                _coco_entry(entry, annotation, change, numbers)
    content["annotations"] = [e for e in content.get("annotations", []) if id(e) not in removed] + new
    out.mkdir(parents=True, exist_ok=True)
    _write(out / path.name, json.dumps(content).encode())
    return f"{out / path.name}:{folder}"


def _coco_entry(
    entry: dict[str, Any], annotation: Annotation, change: Correction, numbers: Mapping[str, int]
) -> dict[str, Any]:
    """Sets class, box and area of `entry`."""
    x1, y1, x2, y2 = (round(corner, 2) for corner in _as_annotated(annotation, change.box))
    width, height = round(x2 - x1, 2), round(y2 - y1, 2)
    entry.update(category_id=numbers[change.name or ""], bbox=[x1, y1, width, height], area=round(width * height, 2))
    return entry


def write_yolo(data: DetectionSet, source: Source, corrections: Corrections, out: Path) -> str:
    """Writes OUT/data.yaml, a list of the images, their labels, and links to the images; returns the new source."""
    assert isinstance(source, YOLOSource)
    split = source.name
    lines = []
    for name, index in zip(source.ids, range(*source.indices.indices(len(data))), strict=True):
        annotation, image = data.annotation(index), data.path(index)
        new = out / f"{name}{image.suffix}"
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{image} is not below the root of {source}: move it there, and repeat the command")
        new.parent.mkdir(parents=True, exist_ok=True)
        _link(new, image)
        lines.append(f"{name}{image.suffix}")
        old = annotation.file
        if old == image and index not in corrections:  # it has no label file
            continue
        text = "" if old == image else old.read_text(encoding="utf-8-sig")
        labels = label_path(new)
        labels.parent.mkdir(parents=True, exist_ok=True)
        _write(labels, _yolo_text(text, annotation, source.names, corrections.get(index, ())).encode())
    _write(out / f"{split}.txt", "".join(f"{line}\n" for line in lines).encode())
    content = {"path": ".", split: f"{split}.txt", "names": list(source.names)}
    _write(out / "data.yaml", format_yaml(content).encode())
    return f"{out / 'data.yaml'}:{split}"


def _yolo_text(text: str, annotation: Annotation, names: Sequence[str], corrections: Sequence[Correction]) -> str:
    rows = [line.split() for line in text.splitlines() if line.split()]
    height, width = annotation.frame.size
    place = _places(
        annotation, [_yolo_corners(row, width, height) for row in rows], [names[int(float(r[0]))] for r in rows]
    )
    removed: list[list[str]] = []
    for change in corrections:
        if change.unsure:
            continue
        row = None if change.given is None else rows[place[change.given]]
        if change.box is None:
            assert row is not None
            removed.append(list(row))
        elif row is not None and _is_same(change.box, annotation.boxes[change.given or 0]):
            row[0] = str(names.index(change.name or ""))
        else:
            x1, y1, x2, y2 = _as_annotated(annotation, change.box)
            numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            new = [str(names.index(change.name or "")), *(f"{number:.6f}" for number in numbers)]
            if row is None:
                rows.append(new)
            else:
                row[:] = new
    return "".join(f"{' '.join(row)}\n" for row in rows if row not in removed)


def _yolo_corners(row: Sequence[str], width: int, height: int) -> Corners:
    values = list(map(float, row[1:]))
    if len(values) == 4 or len(values) % 2:  # a box, perhaps with keypoints
        x, y, wide, high = values[:4]
        return (x - wide / 2) * width, (y - high / 2) * height, (x + wide / 2) * width, (y + high / 2) * height
    x_values, y_values = values[0::2], values[1::2]
    return min(x_values) * width, min(y_values) * height, max(x_values) * width, max(y_values) * height


def _places(annotation: Annotation, boxes: Sequence[Corners], names: Sequence[str]) -> list[int]:
    """Returns for each box that the reader returned its place in the file, whose boxes are not clipped yet.

    The reader leaves out some boxes, and keeps the order of the others.
    """
    height, width = annotation.frame.size
    corners = np.array(boxes, np.float64).reshape(-1, 4).clip(0, [width, height, width, height])
    turned = annotation.frame.turned(corners.astype(np.float32)) if len(corners) else corners
    places: list[int] = []
    following = 0
    for name, box in zip(annotation.names, annotation.boxes, strict=True):
        while following < len(names) and not (names[following] == name and _is_same(turned[following], box)):
            following += 1
        if following == len(names):
            raise InputError(f"{annotation.file} has changed while it was read: repeat the command")
        places.append(following)
        following += 1
    return places


def _is_same(box: Any, other: Any) -> bool:
    return bool(np.abs(np.asarray(box, np.float64) - np.asarray(other, np.float64)).max() < 0.1)


def _from_size(bbox: Sequence[float]) -> Corners:
    x, y, width, height = bbox
    return x, y, x + width, y + height


def _as_annotated(annotation: Annotation, box: Sequence[float] | None) -> list[float]:
    turned = annotation.frame.turned_back(np.array([box], np.float64))
    corners: list[float] = turned[0].tolist()
    return corners


def _link(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target.resolve())
    except OSError as error:
        raise InputError(
            f"{link} cannot be a link to {target} ({error}): choose a folder where links are allowed"
        ) from error


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
