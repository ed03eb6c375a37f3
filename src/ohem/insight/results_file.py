"""Detections of any detector, in the result format of COCO, as the detections of a data set."""

from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ohem.data.coco import COCOSource
from ohem.data.dataset import DetectionSet, ImageFolder
from ohem.errors import InputError
from ohem.io.files import describe_os_error
from ohem.proposals.box_files import read_entries, read_entry

MOST_NAMED = 6
"""Highest number of classes that a message names."""
Rows = list[tuple[list[float], int]]
"""[x1, y1, x2, y2, score] and label."""


def read_detections(path: Path, data: DetectionSet) -> tuple[list[dict[str, Tensor]], tuple[str, ...]]:
    """Reads the detections in every image of `data` from a JSON list of image_id, category_id, bbox and score.

    - image_id: the number of the image in COCO's format; otherwise its id in `data`, its file name, with or without
      suffix, or the number that its name is.
    - category_id: the name of the class; or its number, which is that of COCO's format, or otherwise counts from 1 in
      the order of the classes. In a folder of images any number or name is allowed.
    - bbox: [x, y, width, height] in pixels; [] where an image has no detection.

    Returns:
        For each image boxes (D, 4) float32, `[x1, y1, x2, y2]` in pixels of the upright image, scores (D,) float32 and
        labels (D,) int64; and the names of the labels 1..K.

    Raises:
        InputError: the file is missing or damaged, or an entry names an image or class that the data do not have.
    """
    try:
        entries = read_entries(path)
    except OSError as error:
        raise InputError(describe_os_error(error)) from error
    indices, labels, classes = _indices(data), _labels(data), list(data.classes)
    rows: list[Rows] = [[] for _ in range(len(data))]
    for number, entry in enumerate(entries, start=1):
        where = f"{path}: entry {number}"
        image_id, row = read_entry(entry, where)
        index = indices.get(image_id, -1)
        if index < 0:
            fault = "is of several images" if image_id in indices else "is of no image of the data"
            raise InputError(f"{where} has the image_id {image_id!r}, which {fault}: name the data that it belongs to")
        if not row:
            continue
        if len(row) < 5:
            raise InputError(f"{where} has no score: give all detections one")
        rows[index].append((row, _label(entry.get("category_id"), labels[index], classes, data, where)))
    return [_as_tensors(data, index, of_image, path) for index, of_image in enumerate(rows)], tuple(classes)


def _label(given: Any, known: Mapping[int | str, int], classes: list[str], data: DetectionSet, where: str) -> int:
    """Returns the label of a class; in a folder of images, a new class gets the next label."""
    if type(given) in (int, str):
        if given in known:
            return known[given]
        if isinstance(data, ImageFolder):
            if str(given) not in classes:
                classes.append(str(given))
            return classes.index(str(given)) + 1
    ids = ", ".join(map(repr, list(known)[:MOST_NAMED])) + ", ..." * (len(known) > MOST_NAMED)
    raise InputError(f"{where} has the category_id {shortened(given)}, which no class has: give one of {ids}")


def _labels(data: DetectionSet) -> list[Mapping[int | str, int]]:
    """Returns for each image the label 1..K of each category_id."""
    names = {name: label for label, name in enumerate(data.classes, start=1)}
    result: list[Mapping[int | str, int]] = []
    for source in data.sources:
        known: dict[int | str, int] = dict(names.items())
        if isinstance(source, COCOSource):
            known |= {number: names[name] for name, number in source.category_ids if name in names}
        else:
            known |= {label: label for label in names.values()}
        result += [known] * len(source.ids)
    return result


def _indices(data: DetectionSet) -> dict[str, int]:
    """Returns image_id -> index in the data set; -1 where several images have it."""
    result: dict[str, int] = {}
    for source in data.sources:
        for place, index in enumerate(range(*source.indices.indices(len(data)))):
            if isinstance(source, COCOSource):
                keys = {str(source.image_ids[place])}
            else:
                path = data.path(index)
                keys = {source.ids[place], path.name, path.stem}
                keys |= {str(int(path.stem))} if path.stem.isascii() and path.stem.isdigit() else set()
            for key in keys:
                result[key] = -1 if key in result else index
    return result


def _as_tensors(data: DetectionSet, index: int, rows: Rows, path: Path) -> dict[str, Tensor]:
    values = np.array([row for row, _ in rows], np.float64).reshape(-1, 5)
    height, width = data.size(index)
    boxes = data.as_upright(index, values[:, :4])
    inside = boxes.clip(0, [width, height, width, height])
    sides, left = (corners[:, 2:] - corners[:, :2] for corners in (boxes, inside))
    bad = (sides < 0).any(axis=1) | (left.prod(axis=1) < 0.5 * sides.prod(axis=1))
    if bad.any():
        x1, y1, x2, y2 = boxes[bad][0].tolist()
        raise InputError(
            f"{path}: a detection in {data.path(index)} from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}) is inverted or lies "
            f"mostly outside the image of {width} x {height} pixels: write [x, y, width, height] in its pixels"
        )
    return {
        "boxes": torch.from_numpy(np.ascontiguousarray(inside, np.float32)),
        "scores": torch.from_numpy(values[:, 4].astype(np.float32)),
        "labels": torch.tensor([label for _, label in rows], dtype=torch.int64),
    }
