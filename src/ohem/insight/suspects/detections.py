"""Detections of a data set in a file: for a repeated command, and for other audits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ohem.errors import InputError
from ohem.io.files import atomic_write

NAME = "detections.safetensors"
KEYS = ("boxes", "labels", "scores")


def write_detections(path: Path, detections: Sequence[dict[str, Tensor]], made_of: str = "") -> None:
    """Writes the detections of each image: `boxes` (D, 4), `labels` (D,), `scores` (D,).

    Args:
        path: file to write.
        detections: of each image.
        made_of: digest of what they were made from, which `read_detections` compares.
    """
    tensors = {key: torch.cat([item[key] for item in detections]).contiguous() for key in KEYS}
    counts = [len(item["labels"]) for item in detections]
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, {"counts": json.dumps(counts), "made_of": made_of})


def read_detections(path: Path, made_of: str | None = None) -> list[dict[str, Tensor]]:
    """Reads the detections of each image.

    Raises:
        InputError: the file is missing or damaged, or, where `made_of` is given, was made from something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            tensors = {key: file.get_tensor(key) for key in KEYS}
        counts = json.loads(about["counts"])
        parts = {key: tensor.split(counts) for key, tensor in tensors.items()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is missing or damaged ({error}): remove it and repeat the command") from error
    if made_of is not None and about["made_of"] != made_of:
        raise InputError(f"{path} was made from other data or another detector: remove it and repeat the command")
    return [dict(zip(KEYS, item, strict=True)) for item in zip(*(parts[key] for key in KEYS), strict=True)]
