"""The proposal cache: one safetensors file of flat boxes and offsets that says what it was made from.

T: boxes in the file   n: images   P: boxes of one image
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ohem.errors import InputError
from ohem.files import replacing

FORMAT = 1
_KEY = (
    "ohem.proposals"  # one key only: safetensors does not keep the order of several, and equal caches are equal bytes
)


class Proposals(Mapping[str, NDArray[np.float32]]):
    """Boxes per image id: float32 (P, 4), [x1, y1, x2, y2] in pixels, exclusive end; P may be 0.

    A loaded one reads from the mapped file what it is asked for, so it costs little memory and pickles as its path.

    metadata: what the boxes were made with (method, mode, seed, version of OpenCV).
    fingerprint: id -> bytes of the image file, to notice other images under the same ids.
    """

    def __init__(
        self,
        flat: Any,
        offsets: NDArray[np.int64],
        fingerprint: Mapping[str, int],
        metadata: Mapping[str, Any],
        path: Path | None = None,
    ) -> None:
        self.metadata = dict(metadata)
        self.fingerprint = dict(fingerprint)
        self.path = path
        self._flat = flat  # an array, or safetensors' slice of the file: both are read by [start:stop]
        self._offsets = offsets
        self._index = {name: i for i, name in enumerate(fingerprint)}

    @classmethod
    def from_boxes(
        cls, boxes: Mapping[str, NDArray[np.float32]], fingerprint: Mapping[str, int], metadata: Mapping[str, Any]
    ) -> Self:
        """In memory, in the order of `boxes`: float32 (P, 4) per id. `fingerprint` must have every id."""
        offsets = np.cumsum([0, *(len(b) for b in boxes.values())], dtype=np.int64)
        flat = np.concatenate([np.empty((0, 4), np.float32), *boxes.values()]).astype(np.float32, copy=False)
        return cls(flat, offsets, {name: fingerprint[name] for name in boxes}, metadata)

    @property
    def ids(self) -> Sequence[str]:
        """Image ids, in the order of the data set."""
        return list(self._index)

    def __getitem__(self, image_id: str) -> NDArray[np.float32]:
        i = self._index[image_id]
        start, stop = int(self._offsets[i]), int(self._offsets[i + 1])
        if start == stop:  # safetensors takes no empty slice at the end
            return np.empty((0, 4), np.float32)
        return np.array(self._flat[start:stop], dtype=np.float32)  # a copy, writable as torch.from_numpy wants it

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __reduce__(self) -> Any:
        if self.path:
            return type(self).load, (self.path,)
        return type(self), (self._flat, self._offsets, self.fingerprint, self.metadata)

    def save(self, path: Path) -> None:
        """Write the cache, complete or not at all. Raises InputError where it cannot be written."""
        head = {"format": FORMAT, "metadata": self.metadata, "ids": list(self._index)}
        tensors = {
            "boxes": np.ascontiguousarray(self._flat[:]),
            "offsets": self._offsets,
            "image_bytes": np.fromiter(self.fingerprint.values(), np.int64, len(self)),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as beside:
                beside.write_bytes(save(tensors, {_KEY: json.dumps(head)}))  # save_file: readable by us alone
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{path}: the proposals cannot be written ({error}): make room or name a folder"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Open a cache. Raises InputError for a file that is absent, cut short, or not of this format."""
        try:
            file: Any = safe_open(path, framework="numpy")
            head = json.loads((file.metadata() or {})[_KEY])
            if head["format"] != FORMAT:
                raise ValueError(f"format {head['format']}, want {FORMAT}")
            flat, offsets, sizes = file.get_slice("boxes"), file.get_tensor("offsets"), file.get_tensor("image_bytes")
            fingerprint = dict(zip(head["ids"], sizes.tolist(), strict=True))
            shape = flat.get_shape()
            whole = shape[1:] == [4] and flat.get_dtype() == "F32" and len(offsets) == len(fingerprint) + 1
            if not whole or offsets[0] != 0 or offsets[-1] != shape[0] or (np.diff(offsets) < 0).any():
                raise ValueError("boxes and offsets disagree")
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file of proposals: `ohem propose` makes it") from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: not a whole file of proposals ({error}): delete the file, and it is made again"
            ) from error
        return cls(flat, offsets, fingerprint, head["metadata"], path)

    def check(self, settings: Mapping[str, Any], fingerprint: Mapping[str, int]) -> None:
        """Raise InputError, saying why, unless the boxes were made with `settings` and cover these images.

        settings: the fields of `metadata` that must be equal. fingerprint: id -> bytes of the image file, for every
        image wanted; further images in the cache do no harm.
        """
        remedy = "delete the file to have it made again, or name another folder"
        for field, want in settings.items():
            if (have := self.metadata.get(field)) != want:
                raise InputError(f"{self.path}: proposals made with {field} {have}, want {want}: {remedy}")
        missing = [name for name in fingerprint if name not in self._index]
        if missing:
            raise InputError(
                f"{self.path}: proposals of other images: {missing[0]} is not among its {len(self)} ids, "
                f"nor are {len(missing) - 1} more of the {len(fingerprint)} wanted: {remedy}"
            )
        changed = [name for name, size in fingerprint.items() if self.fingerprint[name] != size]
        if changed:
            name = changed[0]
            raise InputError(
                f"{self.path}: proposals of other images: {name} was a file of {self.fingerprint[name]} bytes and has "
                f"{fingerprint[name]} now, and {len(changed) - 1} more have changed: {remedy}"
            )
