"""Many texts in one array: a Python object for each would take several times the memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_AT_ONCE = 1 << 14


class Texts(Sequence[str]):
    """Texts in one array of bytes.

    Args:
        content: uint8, UTF-8 of all texts one after the other.
        starts: int64 or uint32 `[N + 1]`, where each begins; the last is the end.
    """

    def __init__(self, content: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64 | np.uint32]) -> None:
        self.content, self.starts = content, starts

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Returns `texts`. Half characters, as in names of files that are not UTF-8, are kept."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls(np.frombuffer(b"".join(encoded), np.uint8), starts_of(lengths))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Texts: ...
    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        start, end = self.starts[:-1][index], self.starts[1:][index]
        return self.content[start:end].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            starts = self.starts[first : first + _AT_ONCE + 1].tolist()
            content = self.content[starts[0] : starts[-1]].tobytes()
            for start, end in pairwise(starts):
                yield content[start - starts[0] : end - starts[0]].decode("utf-8", "surrogatepass")

    def take(self, indices: Ints) -> Texts:
        """Returns the texts at `indices`, in their order."""
        rows, starts = rows_of(self.starts, indices)
        return Texts(self.content[rows], starts)

    def joined(self, other: Texts) -> Texts:
        """Returns the texts with those of `other` at their end."""
        starts = np.concatenate([self.starts, other.starts[1:] + self.starts[-1]])
        return Texts(np.concatenate([self.content, other.content]), starts)


def starts_of(lengths: Sequence[int] | Ints) -> Ints:
    """Returns where parts of these lengths begin, one after the other, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def rows_of(starts: npt.NDArray[np.int64 | np.uint32], indices: Ints) -> tuple[Ints, Ints]:
    """Returns the rows of the parts at `indices`, and where each of these parts begins among them."""
    lengths = starts[1:][indices] - starts[:-1][indices]
    new = starts_of(lengths)
    return np.repeat(starts[:-1][indices] - new[:-1], lengths) + np.arange(new[-1]), new
