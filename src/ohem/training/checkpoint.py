"""Checkpoints: written beside and renamed, the one before kept, so that whatever moment a run dies at, one is whole."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ohem.errors import InputError
from ohem.files import replacing

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"


def exists(run: Path) -> bool:
    """Whether the folder `run` has a checkpoint, whole or not."""
    return any((run / name).exists() for name in (NAME, PREVIOUS))


def save(run: Path, state: dict[str, Any]) -> None:
    """Writes `state` as the newest checkpoint of the folder `run`; the newest so far becomes the previous one."""
    newest = run / NAME
    for left in run.glob(f".{NAME}.*.tmp"):  # by a process that was killed as it wrote
        left.unlink(missing_ok=True)
    with replacing(newest) as beside:
        _write(state, beside)
        if newest.exists():
            newest.replace(run / PREVIOUS)


def _write(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # Of a full disk torch says only that its archive has not the length that it should have.
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def restore(model: nn.Module, state: Mapping[str, Any], run: Path) -> None:
    """Fills `model` from `state`, of the folder `run`; InputError where that is of another detector or classes."""
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise InputError(
            f"the checkpoint of {run} is of another detector, or other classes, than its recipe.yaml: restore either"
        ) from error


def load(run: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of the folder `run`, on the CPU; None if it has none.

    A damaged one gives way, with a warning, to the one before.

    Raises:
        InputError: there are checkpoints, but none is whole.
    """
    present = [run / name for name in (NAME, PREVIOUS) if (run / name).exists()]
    for path in present:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001  torch raises a dozen types for a damaged file
            kind = type(error).__name__  # what it says is advice on how to load files that are not ours
            if path != present[-1]:
                warnings.warn(f"{path} is damaged ({kind}): falling back to the checkpoint before it", stacklevel=2)
        else:
            return state
    if present:
        raise InputError(f"{run} has no whole checkpoint, {present[0].name} is damaged: remove it to start anew")
    return None
