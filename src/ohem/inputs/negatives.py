"""What is trained as background: folders of images without an object, and files of regions of training images."""

from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohem.config.validation import is_region_file
from ohem.data.dataset import DetectionSet
from ohem.errors import InputError
from ohem.io.files import describe_os_error
from ohem.io.json_files import parse_json
from ohem.proposals.boxes import fault_of_boxes

REMEDY = "write it again, with `ohem hard`"


def add_negatives(data: DetectionSet, places: Sequence[str]) -> None:
    """Adds `--data.negatives` to `data`: images of folders, and regions of files that `ohem hard` wrote.

    Raises:
        InputError: as `DetectionSet.add_negatives` does, or a file is missing, damaged, given twice or names no region,
            or a region is not in an image of the data set.
    """
    files = [place for place in places if is_region_file(place)]
    data.add_negatives([place for place in places if place not in files])
    if len(set(files)) < len(files):
        raise InputError(f"{', '.join(files)}: a file is given twice to --data.negatives: name it once")
    indices = {data.path(index).resolve(): index for index in range(len(data))} if files else {}
    for file in map(Path, files):
        for image, boxes in read_regions(file).items():
            index = indices.get(image.resolve())
            if index is None:
                raise InputError(
                    f"{file} has regions of {image}, which is not trained on: add its data set to --data.train, or its "
                    "folder to --data.negatives if it has no object"
                )
            fault = fault_of_boxes(boxes, data.size(index))
            if fault:
                raise InputError(f"{file}: the regions of {image}: {fault}: {REMEDY}")
            data.add_background(index, boxes)


def read_regions(path: Path) -> dict[Path, NDArray[np.float64]]:
    """Returns image -> boxes `[P, 4]` of a file of `ohem hard`, `[x1, y1, x2, y2]` in pixels, the hardest first.

    Raises:
        InputError: the file is missing or damaged, or names no region.
    """
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(describe_os_error(error)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not well-formed JSON ({error}): {REMEDY}") from error
    entries = content.get("regions") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{path} has no list of regions: name a file of `ohem hard`, or a folder of images")
    if not entries:
        raise InputError(f"{path} names no region: leave it out of --data.negatives")
    regions: dict[Path, list[list[float]]] = {}
    for number, entry in enumerate(entries, start=1):
        image, box = _read_entry(entry, f"{path}: region {number}")
        regions.setdefault(Path(image), []).append(box)
    return {image: np.array(boxes, np.float64) for image, boxes in regions.items()}


def is_region_content(path: Path) -> bool:
    """Returns whether `path` is a file of `ohem hard`; it may name no region."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and set(content) == {"detections", "regions"}


def _read_entry(entry: Any, where: str) -> tuple[str, list[float]]:
    image, box = (entry.get("image"), entry.get("box")) if isinstance(entry, dict) else (None, None)
    if not isinstance(image, str) or not image or "\0" in image:
        raise InputError(f"{where} has the image {shortened(image)}: {REMEDY}")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise InputError(f"{where} has the box {shortened(box)}: {REMEDY}")
    return image, box


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -1e12 < value < 1e12  # type: ignore[operator]
