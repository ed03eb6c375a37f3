"""Rows and digests of images by their ids, in arrays: a dictionary of ten million images would take gigabytes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohem.io.texts import Ints

_AT_ONCE = 1 << 16  # ids, so that what they take meanwhile is small


class Rows(Mapping[str, int]):
    """Image id -> its row in `ids`, the last one if it is there several times; 8 bytes an image besides `ids`."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = ids
        names = iter(ids)
        parts = [_hashes(list(islice(names, _AT_ONCE))) for _ in range(0, len(ids), _AT_ONCE)]
        hashes = np.concatenate([np.zeros(0, np.uint32), *parts])
        del parts
        self._order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._order]

    def __getitem__(self, name: str) -> int:
        value = _hashes([name])[0]
        place = int(np.searchsorted(self._hashes, value, side="right")) - 1
        while place >= 0 and self._hashes[place] == value:
            row = int(self._order[place])
            if self._ids[row] == name:
                return row
            place -= 1
        raise KeyError(name)

    def find(self, names: Sequence[str]) -> Ints:
        """Returns the row of each of `names`, -1 where there is none, several times as fast as one after the other."""
        values = _hashes(names)
        places = np.searchsorted(self._hashes, values, side="right") - 1
        rows = np.full(len(names), -1, np.int64)
        for at in np.flatnonzero(
            (places >= 0) & (self._hashes[places.clip(0)] == values) if len(self) else []
        ).tolist():
            row = int(self._order[places[at]])
            rows[at] = row if self._ids[row] == names[at] else self.get(names[at], -1)
        return rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._order)

    def __reduce__(self) -> Any:  # another process has other hashes
        return type(self), (self._ids,)


class Digests(Mapping[str, str]):
    """Image id -> hexadecimal digest of the image file.

    Args:
        ids: n image ids.
        content: uint8 (n, 8), the digests.
    """

    def __init__(self, ids: Sequence[str], content: NDArray[np.uint8]) -> None:
        self.ids, self.content = ids, content

    @cached_property
    def rows(self) -> Rows:
        """Rows of the images."""
        return Rows(self.ids)

    def __getitem__(self, name: str) -> str:
        digest: bytes = self.content[self.rows[name]].tobytes()
        return digest.hex()

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: NDArray[np.integer[Any]]) -> "Digests":
        """Returns those of the images at these positions."""
        return Digests([self.ids[at] for at in positions.tolist()], self.content[positions])

    def others(self, rows: Rows, content: NDArray[np.uint8]) -> Ints:
        """Returns the positions of ids that `rows` has not, or with another digest, in `content` uint8 (m, 8)."""
        result = [np.zeros(0, np.int64)]
        for start in range(0, len(self), _AT_ONCE):
            there = rows.find(self.ids[start : start + _AT_ONCE])
            same = there >= 0
            same[same] = (content[there[same]] == self.content[start : start + _AT_ONCE][same]).all(axis=1)
            result.append(start + np.flatnonzero(~same))
        return np.concatenate(result)


def _hashes(names: Sequence[str]) -> NDArray[np.uint32]:
    """Returns 32 bits of the hash of each name; of ten million, some thousands share them with another."""
    return np.fromiter(map(hash, names), np.int64, len(names)).astype(np.uint32)


def packed(digests: Mapping[str, str]) -> Digests:
    """Returns hexadecimal digests by image id in an array."""
    if isinstance(digests, Digests):
        return digests
    return Digests(list(digests), np.frombuffer(bytes.fromhex("".join(digests.values())), np.uint8).reshape(-1, 8))
