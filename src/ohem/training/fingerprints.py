"""Digests of weights and data: they identify what a run, a measurement or a result was made of."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ohem.data.loader import DetectionData, Examples
from ohem.io.digests import MANY, digest_of_ends, digest_of_file, digests_of_files, remembered
from ohem.proposals.windows import SlidingWindows

KEYS = ("boxes", "labels", "ignore")
"""Fields of a target that training and evaluation depend on."""
WHOLE_FILES = 50_000
"""Highest number of images that are read as a whole for their digests. Those of COCO are 19 GB."""


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


@dataclass(frozen=True)
class DataDigests:
    """Digests of 16 hexadecimal digits of the training data. They do not depend on the place of the files."""

    images: str
    """Digest of the bytes of the image files, in order."""
    annotations: str
    """Digest of boxes, labels, ignore flags and regions of background, in order."""
    proposals: str = ""
    """Digest of the proposals that are used, in order; empty where there are none yet."""


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Returns 16 hexadecimal digits of the names, types, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        _add(digest, name, value)
    return digest.hexdigest()[:16]


def digests_of_data(data: DetectionData) -> DataDigests:
    """Returns the digests of the images and annotations of `data`, without proposals."""
    annotations = hashlib.sha256()
    for i in range(len(data)):
        target = data.target(i)
        for key in KEYS:
            _add(annotations, key, target[key])
        if "background" in target:
            _add(annotations, "background", target["background"])
    digest = digest_of_file if len(data) <= WHOLE_FILES else digest_of_ends
    images = hashlib.sha256()
    for place, text in enumerate(digests_of_files(map(data.path, range(len(data))), digest)):
        images.update(f"{' ' * (place > 0)}{text}".encode())
    return DataDigests(images.hexdigest()[:16], annotations.hexdigest()[:16])


def digest_of_sets(*sets: DetectionData) -> str:
    """Returns the digests of the images and annotations of several data sets, without proposals, in one line."""
    return " ".join(text for data in sets for text in astuple(digests_of_data(data)) if text)


def digest_of_proposals(names: Sequence[str], proposals: Mapping[str, Any], top: int) -> str:
    """Returns 16 hexadecimal digits of the first `top` proposals of each image, in order.

    Of sliding windows, those of the first image suffice: the others follow from the images, which have digests. That of
    many images whose proposals are in files is remembered in the cache of the user, as long as the files are the same.
    """
    if isinstance(proposals, SlidingWindows):
        names = names[:1]
    hash_index = getattr(proposals, "hash_index", None)
    if hash_index is None or len(names) < MANY:
        return _digest_of_boxes(names, proposals, top)
    key = hashlib.sha256(f"{top} {len(names)}".encode())
    for name in names:
        key.update(f"{name}\0".encode("utf-8", "surrogatepass"))
    hash_index(key.update)
    return remembered(f"proposals {key.hexdigest()}", lambda: _digest_of_boxes(names, proposals, top))


def _digest_of_boxes(names: Sequence[str], proposals: Mapping[str, Any], top: int) -> str:
    digest = hashlib.sha256()
    for name in names:
        _add(digest, "proposals", torch.as_tensor(np.array(proposals[name][:top], dtype=np.float32)))
    return digest.hexdigest()[:16]


def digest_of_examples(examples: Examples) -> str:
    """Returns 16 hexadecimal digits of the image files, ground truth, proposals and resized sizes."""
    made_of = digests_of_data(examples.data)
    proposals = digest_of_proposals(examples.data.ids, examples.proposals, examples.top)
    parts = f"short {examples.short} long {examples.long}", made_of.images, made_of.annotations, proposals
    return _short(" ".join(parts))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _add(digest: _Hash, name: str, value: Tensor) -> None:
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
