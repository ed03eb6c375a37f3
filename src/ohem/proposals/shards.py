"""The proposals of a data set in one file, or in several: no file that is complete is written again.

The first file is that of `cache_path`. It holds the boxes of up to `SHARD` images; those of further images are in
FILE.shards/00001.safetensors and so on. Where an image is in several files, the last one counts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ohem.io.texts import Ints, starts_of
from ohem.proposals.index import Digests, Rows, packed
from ohem.proposals.store import Boxes, Proposals, write_proposals

SHARD = 4096
"""Images of a complete file. Selective search needs an hour for so many, and they have 100 MB of boxes."""

OPEN = 100
"""Most files that stay open."""


class Shards(Mapping[str, Boxes]):
    """Image id -> boxes, of all files of a data set; see `Proposals`.

    One index of all files is made when an image is first searched for; only a few files are open at a time.

    Args:
        path: the first file.
        files: all files, in order; None opens them.

    Raises:
        InputError: there is no file, or one is damaged or of another format.
    """

    def __init__(self, path: Path, files: Sequence[Proposals] | None = None) -> None:
        self.path = path
        places = [file for file in (path, *shard_files(path)) if file.exists()]
        self.files = [_opened(file, len(places)) for file in places or [path]] if files is None else list(files)

    @property
    def digests(self) -> Mapping[str, str]:
        """Image id -> digest of the image file."""
        return _Digests(self)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Settings of the boxes; each file has its own version of OpenCV."""
        return self.files[-1].metadata

    @cached_property
    def ids(self) -> "_Ids":
        """Image ids of all files, one file after the other."""
        return _Ids([file.ids for file in self.files])

    @cached_property
    def rows(self) -> Rows:
        """Image id -> its row in `ids`."""
        return Rows(self.ids)

    def __getitem__(self, image_id: str) -> Boxes:
        number, row = self.ids.place(self.rows[image_id])
        return self.files[number].at(row)

    def __iter__(self) -> Iterator[str]:
        return (name for row, name in enumerate(self.ids) if self.rows[name] == row)

    def __len__(self) -> int:
        return sum(1 for _ in self) if len(self.files) > 1 else len(self.files[0])

    def __reduce__(self) -> Any:
        return type(self), (self.path,)

    def missing(self, digests: Digests) -> Ints:
        """Returns the positions in `digests` of images whose boxes are in no file, or made from another content."""
        return digests.others(self.rows, np.concatenate([packed(file.digests).content for file in self.files]))

    def hash_index(self, add: Callable[[bytes], object]) -> None:
        """Passes what identifies the boxes to `add`, without reading them."""
        for file in self.files:
            if file.file is not None:
                file.file.hash_index(add)


class _Digests(Mapping[str, str]):
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def __getitem__(self, name: str) -> str:
        number, row = self._shards.ids.place(self._shards.rows[name])
        digest: bytes = packed(self._shards.files[number].digests).content[row].tobytes()
        return digest.hex()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


class _Ids(Sequence[str]):
    """The ids of several files, one after the other."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts, self._starts = parts, starts_of([len(part) for part in parts])

    def place(self, row: int) -> tuple[int, int]:
        """Returns the number of the file, and the row in it."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, row - int(self._starts[number])

    def __getitem__(self, row: Any) -> Any:
        number, place = self.place(row)
        return self._parts[number][place]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._parts)

    def __len__(self) -> int:
        return int(self._starts[-1])


def _opened(path: Path, count: int) -> Proposals:
    """Opens one of `count` files; those of many are opened again for each read."""
    proposals = Proposals.load(path)
    if count > OPEN and proposals.file is not None and len(proposals) >= SHARD:
        proposals.file.close_between_reads()
    return proposals


def shards_of(path: Path) -> Path:
    """Returns the folder of the files after `path`."""
    return path.with_name(f"{path.name}.shards")


def shard_files(path: Path) -> list[Path]:
    """Returns the files after `path`, in order."""
    return sorted(shards_of(path).glob("*.safetensors"))


def room(cached: Shards | None) -> int:
    """Returns the number of images that the next file has room for: the last one, or a new one if that is complete."""
    return SHARD if cached is None or _is_complete(cached) else SHARD - len(cached.files[-1])


def write_next(
    path: Path,
    cached: Shards | None,
    boxes: Mapping[str, Boxes],
    digests: Mapping[str, str],
    order: Mapping[str, Any],
    made_with: Mapping[str, Any],
) -> Shards:
    """Adds images to the last file, or to a new one if that is complete. Returns all files.

    Args:
        path: the first file.
        cached: the files that there are.
        boxes: boxes of the images to add, which there is room for.
        digests: digests of these images.
        order: image ids; images of a file that are in it come first, in its order.
        made_with: settings of the boxes, and the version of OpenCV.

    Raises:
        InputError: a file cannot be written.
    """
    if cached is None or _is_complete(cached):
        new = path if cached is None else shards_of(path) / f"{_number(cached.files[-1]) + 1:05d}.safetensors"
        write_proposals(new, boxes, digests, made_with)
        files = [] if cached is None else cached.files
        return Shards(path, [*files, _opened(new, len(files))])
    last = cached.files[-1]
    together = {**dict(last.digests), **digests}
    names = [name for name in order if name in together] if len(order) <= SHARD else []
    sequence = dict.fromkeys([*names, *together])
    versions = {last.metadata.get("opencv"), made_with["opencv"]}
    settings = {**made_with, "opencv": ", ".join(sorted(str(version) for version in versions))}
    merged = _Merged(boxes, last)
    place = last.path or path
    write_proposals(place, merged, {name: together[name] for name in sequence}, settings)
    return Shards(path, [*cached.files[:-1], Proposals.load(place)])


def _is_complete(cached: Shards) -> bool:
    return len(cached.files[-1]) >= SHARD


def _number(file: Proposals) -> int:
    """Returns the number of a file: 0 for the first."""
    stem = file.path.stem if file.path else ""
    return int(stem) if stem.isdigit() else 0


class _Merged(Mapping[str, Boxes]):
    """Boxes of `new`, and of `old` where `new` has none."""

    def __init__(self, new: Mapping[str, Boxes], old: Mapping[str, Boxes]) -> None:
        self._new, self._old = new, old

    def __getitem__(self, name: str) -> Boxes:
        return self._new[name] if name in self._new else self._old[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._new, *self._old]))

    def __len__(self) -> int:
        return len(list(iter(self)))
