"""The proposal file: the boxes of all images in one safetensors file, with digests of the images.

T: boxes in the file   n: images   P: boxes of one image

Tensors, in this order: boxes float32 (T, 4); offsets int64 (n + 1,) of the first box of each image; digests uint8
(n, 8) of the image files; crcs uint32 (n,), CRC-32 of the boxes of each image; index_crc uint32 (1,) of the head and of
the three tensors before. The metadata has one key, since safetensors does not keep the order of several, and equal
proposals must be equal bytes: the head, JSON of the format, the settings of the boxes, and the ids.

The file is read with pread, not mapped: a mapped file that is cut short meanwhile would end the process by SIGBUS.
"""

import errno
import json
import os
import re
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ohem.errors import InputError
from ohem.io.files import atomic_write
from ohem.io.texts import Texts
from ohem.proposals.boxes import fault_of_boxes
from ohem.proposals.index import Digests

FORMAT = 2
_KEY = "ohem.proposals"
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
    "U32": np.dtype("<u4"),
}
_MOST = 10**15  # highest number of boxes that the header has room for
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDY = "delete the file, and it is made again"
Boxes = NDArray[np.float32]


class OldFormat(InputError):
    """The file has format 1, without digests of the images."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        super().__init__(f"{path}: the proposals are in an earlier format: {_REMEDY}")
        self.metadata = metadata


class Proposals(Mapping[str, Boxes]):
    """Image id -> boxes, float32 (P, 4), [x1, y1, x2, y2] in pixels, exclusive end; P may be 0.

    If loaded, it reads boxes from the file on access, so that it needs little memory, and is pickled as its path.
    Access raises `InputError` where the file is damaged or was cut short.

    Attributes:
        metadata: settings of the boxes (method, mode, seed, version of OpenCV).
        digests: id -> `digest_of_file` of the image, to notice other images with the same ids.
        path: the file; None for boxes in memory.
    """

    def __init__(self, boxes: "Mapping[str, Boxes]", digests: Mapping[str, str], metadata: Mapping[str, Any]) -> None:
        self.metadata = dict(metadata)
        self.digests = digests
        self.file = boxes if isinstance(boxes, BoxFile) else None
        self.path = self.file.path if self.file else None
        self._boxes = boxes

    @classmethod
    def from_boxes(
        cls, boxes: Mapping[str, Boxes], digests: Mapping[str, str], metadata: Mapping[str, Any]
    ) -> "Proposals":
        """Makes proposals in memory, in the order of `boxes`, id -> numbers (P, 4).

        Raises:
            ValueError: `digests` has no digest of an id, or boxes have another shape, are not finite, have no area or
                negative corners.
        """
        for name in boxes:
            digest = digests.get(name)
            if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{16}", digest):
                raise ValueError(f"digests[{name!r}] is {digest!r}: give the digest_of_file of each image in boxes")
        converted = {name: _checked(boxes_of_image, f"boxes[{name!r}]") for name, boxes_of_image in boxes.items()}
        return cls(converted, {name: digests[name] for name in boxes}, metadata)

    @property
    def ids(self) -> Sequence[str]:
        """Image ids, in the order of the data set."""
        return self.digests.ids if isinstance(self.digests, Digests) else list(self.digests)

    def __getitem__(self, image_id: str) -> Boxes:
        return self._boxes[image_id].copy()  # writable, for torch.from_numpy

    def at(self, row: int) -> Boxes:
        """Returns the boxes of an image by its position in `ids`."""
        return self.file.at(row).copy() if self.file is not None else self[self.ids[row]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.digests)

    def __len__(self) -> int:
        return len(self.digests)

    def __reduce__(self) -> Any:
        if self.path:
            return type(self).load, (self.path,)
        return type(self), (self._boxes, self.digests, self.metadata)

    def save(self, path: Path) -> None:
        """Writes the file, completely or not at all; raises `InputError` where that is impossible."""
        write_proposals(path, self._boxes, self.digests, self.metadata)

    @classmethod
    def load(cls, path: Path) -> "Proposals":
        """Opens a file; raises `InputError` where it is missing, cut short, damaged, or of another format."""
        try:
            file = BoxFile(path)
            head, text = _read_head(file)
            index = [file.tensor(name) for name in ("offsets", "digests", "crcs")]
            if _crc_of_index(text, index) != file.tensor("index_crc")[0]:
                raise ValueError("its index is damaged")
            file.set_index(head["ids"], *index)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file of proposals: `ohem propose` makes it") from error
        except OldFormat:
            raise
        except (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            raise InputError(f"{path}: not a complete file of proposals ({error}): {_REMEDY}") from error
        return cls(file, file.digests, head["metadata"])

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises `InputError` unless `settings`, fields of `metadata`, are those of the boxes."""
        check_settings(self.path, self.metadata, settings)

    def current(self, digests: Mapping[str, str]) -> list[str]:
        """Returns the ids of `digests` whose boxes are in the file and were made from an image of that digest."""
        return [name for name, digest in self.digests.items() if digests.get(name) == digest]


def check_settings(path: Path | None, made_with: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises `InputError` unless `made_with`, the metadata of the file `path`, has all `settings`."""
    for field, want in settings.items():
        # Files of earlier versions have no width, since no image was reduced.
        if (have := made_with.get(field, 0 if field == "width" else None)) != want:
            raise InputError(
                f"{path}: proposals made with {field} {have}, want {want}: delete the file to have it made again, "
                f"name another folder, or give --{field} {have} (--proposals.{field} {have})"
            )


def write_proposals(
    path: Path, boxes: Mapping[str, Boxes], digests: Mapping[str, str], metadata: Mapping[str, Any]
) -> None:
    """Writes the proposal file `path` of the images in `digests`, completely or not at all, image by image.

    Raises:
        InputError: the file cannot be written, or boxes are impossible.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            _write(file, boxes, digests, metadata)
            file.flush()
            os.fsync(file.fileno())  # it is renamed when it is on the disk, since it may be the work of days
    except OSError as error:
        remedy = "make room, or name another folder" if error.errno in _FULL else "name another folder"
        raise InputError(
            f"{path}: the proposals cannot be written ({error.strerror or error}): {remedy} (--proposals.folder)"
        ) from error


def _write(file: BinaryIO, boxes: Mapping[str, Boxes], digests: Mapping[str, str], metadata: Mapping[str, Any]) -> None:
    text = json.dumps({"format": FORMAT, "metadata": dict(metadata), "ids": list(digests)})
    room = len(_header(text, _MOST, len(digests)))
    file.write(bytes(8 + room))
    counts, crcs = [0], []
    for name in digests:
        content = _checked(boxes[name], f"the boxes of {name}").tobytes()
        counts.append(len(content) // 16)
        crcs.append(zlib.crc32(content))
        file.write(content)
    index = [
        np.cumsum(counts, dtype="<i8"),
        np.frombuffer(bytes.fromhex("".join(digests.values())), "u1").reshape(len(digests), 8),
        np.array(crcs, "<u4"),
    ]
    for tensor in (*index, np.array([_crc_of_index(text, index)], "<u4")):
        file.write(tensor.tobytes())
    file.seek(0)
    file.write(room.to_bytes(8, "little") + _header(text, sum(counts), len(digests)).ljust(room))


def _checked(boxes: Any, where: str) -> Boxes:
    """Converts boxes to little-endian float32 (P, 4)."""
    given = np.asarray(boxes)
    fault = fault_of_boxes(given)
    if fault:
        raise InputError(f"{where}: {fault}: give [x1, y1, x2, y2] in pixels of the image")
    return np.ascontiguousarray(given, "<f4")


def _header(text: str, total: int, images: int) -> bytes:
    """Returns the header of safetensors, padded to a multiple of 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {_KEY: text}}
    end = 0
    for name, (dtype, shape) in _layout(total, images).items():
        start, end = end, end + _DTYPES[dtype].itemsize * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    return content.ljust(-(-len(content) // 8) * 8)


def _layout(total: int, images: int) -> dict[str, tuple[str, list[int]]]:
    return {
        "boxes": ("F32", [total, 4]),
        "offsets": ("I64", [images + 1]),
        "digests": ("U8", [images, 8]),
        "crcs": ("U32", [images]),
        "index_crc": ("U32", [1]),
    }


def _crc_of_index(text: str, tensors: Sequence[NDArray[Any]]) -> int:
    crc = zlib.crc32(text.encode())
    for tensor in tensors:
        crc = zlib.crc32(tensor.tobytes(), crc)
    return crc


def _read_head(file: "BoxFile") -> tuple[dict[str, Any], str]:
    """Reads the head and its text; raises OldFormat for format 1, ValueError for other formats."""
    text = file.header["__metadata__"][_KEY]
    head = json.loads(text)
    if head["format"] == 1:
        raise OldFormat(file.path, head["metadata"])
    if head["format"] != FORMAT:
        raise ValueError(f"format {head['format']}, want {FORMAT}")
    total, images = file.header["boxes"]["shape"][0], len(head["ids"])
    if file.header != json.loads(_header(text, total, images)):
        raise ValueError("its header is damaged")
    whole = file.start + file.header["index_crc"]["data_offsets"][1]
    if file.size != whole:
        raise ValueError(f"{file.size} bytes, want {whole}")
    return head, text


class BoxFile(Mapping[str, Boxes]):
    """An open safetensors file, and its boxes by image id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = os.open(path, _READ)
        self._close = weakref.finalize(self, os.close, self._file)
        self._identity = _identity(self._file)
        self.size = self._identity[0]
        length = int.from_bytes(self._read(0, 8), "little")
        self.start = 8 + length
        if self.start > self.size:
            raise ValueError("it is cut short, or another kind of file")
        self.header: dict[str, Any] = json.loads(self._read(8, length))
        self.digests = Digests([], np.zeros((0, 8), np.uint8))

    def tensor(self, name: str) -> NDArray[Any]:
        """Reads the whole tensor `name`."""
        entry = self.header[name]
        start, end = entry["data_offsets"]
        return np.frombuffer(self._read(self.start + start, end - start), _DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )

    def set_index(self, ids: Sequence[str], offsets: NDArray[Any], digests: NDArray[Any], crcs: NDArray[Any]) -> None:
        """Sets the places of the boxes of each image, and the digests. Raises ValueError where they do not fit."""
        if offsets[0] != 0 or offsets[-1] != self.header["boxes"]["shape"][0] or (np.diff(offsets) < 0).any():
            raise ValueError("boxes and offsets disagree")
        texts = Texts.of(ids)
        texts = Texts(texts.content, texts.starts.astype(np.uint32))  # a header has less than 4 GB
        self.digests, self._crcs = Digests(texts, digests), crcs
        self._offsets = offsets.astype(np.uint32 if offsets[-1] < 1 << 32 else np.int64)
        self.header = {}  # it has the ids once more

    def close_between_reads(self) -> None:
        """Opens the file for each read from now on: a process may have about 1000 open files."""
        self._close()
        self._file = None

    def hash_index(self, add: Callable[[bytes], object]) -> None:
        """Passes the bytes of ids, offsets, digests and CRCs to `add`: other boxes have others."""
        texts: Any = self.digests.ids
        for array in (texts.content, texts.starts, self._offsets, self.digests.content, self._crcs):
            add(array.tobytes())

    def __getitem__(self, image_id: str) -> Boxes:
        return self.at(self.digests.rows[image_id])

    def at(self, row: int) -> Boxes:
        """Reads the boxes of the image in this row; raises `InputError` where they are damaged."""
        image_id = self.digests.ids[row]
        first, end = self._offsets[row : row + 2].tolist()
        start, length, crc = self.start + 16 * first, 16 * (end - first), int(self._crcs[row])  # 16 bytes a box
        try:
            content = self._read(start, length)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: the boxes of {image_id} cannot be read ({error}): {_REMEDY}") from error
        boxes = np.frombuffer(content, "<f4").reshape(-1, 4)
        fault = "they are damaged" if zlib.crc32(content) != crc else fault_of_boxes(boxes)
        if fault:
            raise InputError(f"{self.path}: the boxes of {image_id} cannot be used ({fault}): {_REMEDY}")
        return boxes

    def __iter__(self) -> Iterator[str]:
        return iter(self.digests)

    def __len__(self) -> int:
        return len(self.digests)

    def _read(self, start: int, length: int) -> bytes:
        if self._file is not None:
            return _read_at(self._file, start, length)
        file = os.open(self.path, _READ)
        try:
            if _identity(file) != self._identity:
                raise ValueError("it has been written again since this command began")
            return _read_at(file, start, length)
        finally:
            os.close(file)


def _identity(file: int) -> tuple[int, int, int]:
    stat = os.fstat(file)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _read_at(file: int, start: int, length: int) -> bytes:
    if hasattr(os, "pread"):  # forked workers share the position in the file, which is therefore not used
        content = os.pread(file, length, start)
    else:
        os.lseek(file, start, os.SEEK_SET)
        content = os.read(file, length)
    if len(content) < length:
        raise ValueError(f"it ends at byte {start + len(content)} of at least {start + length}")
    return content
