"""Proposals of one's own: boxes by image id in a .json, .npz or .safetensors file, or a .mat file of the release."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ohem.errors import InputError
from ohem.io.digests import check_crcs
from ohem.io.files import describe_os_error
from ohem.io.json_files import parse_json
from ohem.proposals.boxes import fault_of_boxes
from ohem.proposals.matlab import read_mat

SUFFIXES = (".mat", ".json", ".npz", ".safetensors")
_FIELDS = "write a list of objects with image_id, bbox [x, y, width, height] and score"
_DAMAGED = (
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


class BoxFile(Mapping[str, NDArray[np.float32]]):
    """Image id -> boxes, float32 (P, 4), [x1, y1, x2, y2] in pixels, exclusive end; P may be 0.

    They are in the order of the file, or highest score first if the file has scores. Boxes of a .safetensors file are
    mapped and read on access, those of the other formats are in memory.

    Args:
        path: the file; its suffix names its format.

    Attributes:
        by_number: whether the ids of images in COCO's format are their numbers; in a .mat file they are file names.

    Raises:
        InputError: the file is missing, damaged or has other content, or, on access too, boxes are impossible.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise InputError(f"{path}: no file of proposals: name a file with the suffix {', '.join(SUFFIXES)}")
        self.by_number = suffix != ".mat"
        read = {".mat": read_mat, ".json": _read_json, ".npz": _read_npz, ".safetensors": _Mapped}[suffix]
        try:
            self._boxes: Mapping[str, NDArray[Any]] = read(path)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file: correct --proposals.files") from error
        except OSError as error:
            raise InputError(describe_os_error(error)) from error

    def __getitem__(self, image_id: str) -> NDArray[np.float32]:
        boxes = self._boxes[image_id]
        return boxes if self.path.suffix == ".mat" else _sorted_boxes(boxes, f"{self.path}: the boxes of {image_id}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._boxes)

    def __len__(self) -> int:
        return len(self._boxes)

    def __reduce__(self) -> Any:  # a mapped file cannot be pickled
        return type(self), (self.path,)


def _sorted_boxes(given: NDArray[Any], where: str) -> NDArray[np.float32]:
    """Converts boxes (P, 4), or (P, 5) with scores, to float32 (P, 4); equal scores keep their order."""
    if given.ndim != 2 or given.shape[1] not in (4, 5) or given.dtype.kind not in "iuf":
        raise InputError(
            f"{where}: {given.dtype} {list(given.shape)}: write numbers [P, 4] as [x1, y1, x2, y2], or [P, 5] with the "
            "score last"
        )
    boxes = given[:, :4] if given.dtype == np.float32 else given[:, :4].astype(np.float64)
    fault = fault_of_boxes(boxes)
    if fault:
        raise InputError(f"{where}: {fault}: write [x1, y1, x2, y2] in pixels of the image")
    if given.shape[1] == 5:
        scores = given[:, 4].astype(np.float64)
        if not np.isfinite(scores).all():
            raise InputError(f"{where}: a score is not finite: correct it, or leave out all scores")
        boxes = boxes[np.argsort(-scores, kind="stable")]
    return np.ascontiguousarray(boxes, np.float32)


def _read_json(path: Path) -> dict[str, NDArray[Any]]:
    """Reads a list of results of COCO; an entry whose bbox is [] names an image without boxes."""
    rows: dict[str, list[list[float]]] = {}
    widths: set[int] = set()
    for number, entry in enumerate(read_entries(path), start=1):
        image_id, row = read_entry(entry, f"{path}: entry {number}")
        rows.setdefault(image_id, [])
        if row:
            rows[image_id].append(row)
            widths.add(len(row))
    if len(widths) > 1:
        raise InputError(f"{path}: only some boxes have a score: give it for all, or for none")
    width = widths.pop() if widths else 4
    return {image_id: np.array(boxes, np.float64).reshape(-1, width) for image_id, boxes in rows.items()}


def read_entries(path: Path) -> list[Any]:
    """Returns the list in a file of results of COCO.

    Raises:
        InputError: the file has other content.
        OSError: it cannot be read.
    """
    try:
        entries = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not well-formed JSON ({error}): write the file again") from error
    if not isinstance(entries, list):
        raise InputError(f"{path}: not a list of boxes: {_FIELDS}")
    return entries


def read_entry(entry: Any, where: str) -> tuple[str, list[float]]:
    """Returns the image id, and [x1, y1, x2, y2] or [x1, y1, x2, y2, score]; an empty list where there is no box.

    Raises:
        InputError: the entry, which messages call `where`, lacks a field or has another value.
    """
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {shortened(entry)}: {_FIELDS}")
    image_id, bbox, score = entry.get("image_id"), entry.get("bbox"), entry.get("score")
    if type(image_id) not in (int, str):
        raise InputError(f"{where} has the image_id {shortened(image_id)}: write a number or a name")
    if bbox == []:
        return str(image_id), []
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise InputError(f"{where} has the bbox {shortened(bbox)}: write [x, y, width, height] in pixels")
    if "score" in entry and not _is_number(score):
        raise InputError(f"{where} has the score {shortened(score)}: write a number, or leave out all scores")
    x, y, width, height = bbox
    return str(image_id), [x, y, x + width, y + height, *([score] if "score" in entry else [])]


def _is_number(value: object) -> bool:
    """Returns whether `value` is a number that is possible here: not NaN, not infinite, not huge."""
    return type(value) in (int, float) and -1e12 < value < 1e12  # type: ignore[operator]


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Reads all arrays. Pickled objects are refused, since unpickling runs code."""
    try:
        check_crcs(path)  # NumPy reads an array without comparing its CRC where the header states a smaller one
        with np.load(path, allow_pickle=False) as arrays:
            if len(set(arrays.files)) < len(arrays.files):
                raise ValueError("an array is there twice")
            return {name: arrays[name] for name in arrays.files}
    except (OSError, *_DAMAGED) as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise InputError(f"{path}: not a complete .npz file of numbers ({error}): write it again") from error


class _Mapped(Mapping[str, NDArray[Any]]):
    """The tensors of a .safetensors file, which is mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.open("rb").close()  # for the reason of a failure, which safetensors does not always name
        try:
            self._file = cast(Any, safe_open(path, framework="numpy"))
            self._names = dict.fromkeys(self._file.keys())
        except (SafetensorError, ValueError) as error:
            raise self._damaged(error) from error

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        try:
            tensor: NDArray[Any] = self._file.get_tensor(name)
        except (SafetensorError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise self._damaged(error) from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self.path}: not a complete .safetensors file of numbers ({error}): write it again")
