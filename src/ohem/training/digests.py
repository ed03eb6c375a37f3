"""Digests: by which a measurement of earlier is known to be of the same weights and the same data."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ohem.data.loader import Examples


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of the names, types, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        _add(digest, name, value)
    return digest.hexdigest()[:16]


def digest_of_examples(examples: Examples) -> str:
    """16 hexadecimal digits of the image files, ground truth and proposals, in order, and of how they are resized.

    Where the files lie and what they are called does not matter.
    """
    digest = hashlib.sha256(f"short {examples.short} long {examples.long}".encode())
    data = examples.data
    for i, name in enumerate(data.ids):
        target, proposals = data.target(i), examples.proposals[name][: examples.top]
        digest.update(hashlib.sha256(data.path(i).read_bytes()).digest())
        for key in ("boxes", "labels", "ignore"):
            _add(digest, key, target[key])
        _add(digest, "proposals", torch.as_tensor(np.array(proposals, dtype=np.float32)))
    return digest.hexdigest()[:16]


def _add(digest: "hashlib._Hash", name: str, value: Tensor) -> None:
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
