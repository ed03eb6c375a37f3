"""Reads cells, text and numbers from MATLAB files of version 5 (`save -v6`, `-v7`).

SciPy reads more kinds of data, but some damaged files end the process by a segmentation fault. Here every length is
checked, and every byte must be used.
"""

import math
import zlib
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HEADER = 128  # bytes
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED, _UTF8, _UTF16 = 1, 5, 6, 14, 15, 16, 17
_CELL, _CHAR, _NUMBERS = 1, 4, range(6, 16)  # classes of arrays
_COMPLEX = 0x0800
_DEPTH = 4  # cells in cells


class HDF5File(ValueError):
    """The file has version 7.3, which is another format."""


class Element(NamedTuple):
    """One tagged element of a file: its type, its content, and the start of the next element."""

    kind: int
    content: bytes
    end: int


def read_variables(content: bytes, names: Collection[str]) -> dict[str, NDArray[Any] | None]:
    """Reads the variables `names` from the content of a .mat file; missing ones are left out.

    Returns:
        Cell arrays as object arrays, text as arrays of str (one for each row), real numbers as arrays, and None for all
        other kinds.

    Raises:
        ValueError: the file is damaged or of another version.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("no header of version 5")
    version = np.frombuffer(content, f"{order}u2", 1, 124)[0] >> 8
    if version != 1:
        raise HDF5File("version 7.3") if version == 2 else ValueError(f"version {version}")
    variables: dict[str, NDArray[Any] | None] = {}
    at = HEADER
    while at < len(content):
        element = _element(content, at, order)
        at = element.end
        name, value = _variable(element, order, names)
        if name in variables:
            raise ValueError(f"the variable {name} is given twice")
        if name in names:
            variables[name] = value
    return variables


def _variable(element: Element, order: str, names: Collection[str]) -> tuple[str, NDArray[Any] | None]:
    """The name of a variable, and its value if the name is among `names`."""
    if element.kind == _COMPRESSED:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(element.content)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("a compressed variable is cut short")
        element = _element(content, 0, order)
    return _matrix(element, order, _DEPTH, names)


def _element(content: bytes, at: int, order: str) -> Element:
    if len(content) < at + 8:
        raise ValueError("it is cut short")
    first, size = (int(word) for word in np.frombuffer(content, f"{order}u4", 2, at))
    if first >> 16:  # at most 4 bytes, in the tag itself
        size, kind, start, end = first >> 16, first & 0xFFFF, at + 4, at + 8
        if size > 4:
            raise ValueError("a damaged tag")
    else:
        kind, start = first, at + 8
        end = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
    if start + size > len(content):
        raise ValueError("it is cut short")
    return Element(kind, content[start : start + size], end)


def _matrix(
    element: Element, order: str, depth: int, names: Collection[str] | None = None
) -> tuple[str, NDArray[Any] | None]:
    """The name and the value of an array; no value where the name is not among `names`."""
    if element.kind != _MATRIX or depth == 0:
        raise ValueError("a damaged tag")
    content = element.content
    if not content:
        return "", np.zeros((0, 0))
    flags, shape, title = _parts(content, 3, order)
    word = int(_numbers(flags, order, _UINT32)[0])
    dims = [int(side) for side in _numbers(shape, order, _INT32)]
    if title.kind != _INT8 or len(dims) < 2 or min(dims) < 0:
        raise ValueError("the head of an array is damaged")
    name = title.content.decode("ascii")
    if names is not None and name not in names:
        return name, None
    kind, count, at = word & 0xFF, math.prod(dims), title.end
    if kind == _CELL:
        return name, _cells(content, at, dims, order, depth)
    if (kind != _CHAR and kind not in _NUMBERS) or word & _COMPLEX:
        return name, None
    data = _element(content, at, order)
    _check_end(data.end, content)
    values = _characters(data, order) if kind == _CHAR else _numbers(data, order)
    if len(values) != count:
        raise ValueError(f"an array of {dims} has {len(values)} entries")
    array = values.reshape(dims, order="F")
    return name, _rows(array) if kind == _CHAR else array


def _parts(content: bytes, count: int, order: str) -> list[Element]:
    parts, at = [], 0
    for _ in range(count):
        parts.append(_element(content, at, order))
        at = parts[-1].end
    return parts


def _cells(content: bytes, at: int, dims: list[int], order: str, depth: int) -> NDArray[Any]:
    values = []
    for _ in range(math.prod(dims)):
        element = _element(content, at, order)
        values.append(_matrix(element, order, depth - 1)[1])
        at = element.end
    _check_end(at, content)
    cells = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):  # NumPy would make one array of equal ones
        cells[i] = value
    return cells.reshape(dims, order="F")


def _check_end(at: int, content: bytes) -> None:
    if not len(content) <= at < len(content) + 8:
        raise ValueError("the size of an array is damaged")


def _numbers(element: Element, order: str, kind: int | None = None) -> NDArray[Any]:
    name = _TYPES.get(element.kind)
    if name is None or (kind is not None and element.kind != kind):
        raise ValueError("a damaged tag")
    return np.frombuffer(element.content, f"{order}{name}")


def _characters(element: Element, order: str) -> NDArray[Any]:
    """Code points."""
    if element.kind in (_UTF8, _UTF16):
        encoding = "utf-8" if element.kind == _UTF8 else "utf-16-le" if order == "<" else "utf-16-be"
        return np.array([ord(letter) for letter in element.content.decode(encoding)], np.uint32)
    return _numbers(element, order)


def _rows(codes: NDArray[Any]) -> NDArray[Any]:
    if not ((codes >= 1) & (codes < 0x10000)).all() or (codes != codes.astype(np.int64)).any():
        raise ValueError("text is damaged")
    rows = codes.reshape(len(codes), -1).tolist() if codes.size else []
    return np.array(["".join(map(chr, row)) for row in rows], dtype=str)
