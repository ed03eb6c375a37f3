"""Checkpoints: written beside and renamed, the one before kept, so that whatever moment a run dies at, one is whole."""

import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ohem.errors import InputError
from ohem.files import check_crcs, describe_os_error, remove_leftovers, replacing
from ohem.training.digests import digest_of_weights

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
METRICS = "metrics"  # key of the text of metrics.csv; checkpoints of older versions lack it
DIGEST = "digest"  # key of the digest of weights and momenta; the same

State = dict[str, Any]


class Found(NamedTuple):
    """A whole checkpoint and its file."""

    path: Path
    state: State


def exists(run: Path) -> bool:
    """Whether the folder `run` has a checkpoint, whole or not."""
    return any((run / name).exists() for name in (NAME, PREVIOUS))


def save(run: Path, state: State, *, keep_newest: bool = True) -> None:
    """Writes `state` as the newest checkpoint of the folder `run`; the newest so far becomes the previous one.

    `keep_newest` is False where the newest so far is damaged: it is replaced then, and the previous one stays.
    """
    newest = run / NAME
    remove_leftovers(run)
    state = {**state, DIGEST: digest_of_weights(_tensors(state))}
    with replacing(newest) as beside:
        _write(state, beside)
        if keep_newest and newest.exists():
            newest.replace(run / PREVIOUS)


def _write(state: State, path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # Of a full disk torch says only that its archive has not the length that it should have.
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        file.flush()
        os.fsync(file.fileno())  # or a power failure could leave the renamed file empty


def restore(model: nn.Module, state: Mapping[str, Any], run: Path) -> None:
    """Fills `model` from `state`, of the folder `run`; InputError where that is of another detector or classes."""
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise _of_another(run) from error


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], run: Path) -> None:
    """Fills `optimizer` from `state`, of the folder `run`; its options stay, which the recipe has given.

    Raises:
        InputError: the momenta are those of other parameters.
    """
    ours, saved = optimizer.state_dict(), state["optimizer"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in ours["param_groups"]]:
        raise _of_another(run)
    momenta = {index: values.get("momentum_buffer") for index, values in saved["state"].items()}
    momenta = {index: momentum for index, momentum in momenta.items() if momentum is not None}
    expected = {index: (parameter.shape, parameter.dtype) for index, parameter in enumerate(parameters)}
    found = {index: (momentum.shape, momentum.dtype) for index, momentum in momenta.items()}
    if not saved["state"].keys() <= expected.keys() or (found and found != expected):
        raise _of_another(run)
    optimizer.load_state_dict({"state": saved["state"], "param_groups": ours["param_groups"]})


def _of_another(run: Path) -> InputError:
    return InputError(
        f"the checkpoint of {run} is of another detector, or other classes, than its recipe.yaml: restore either"
    )


def load(run: Path) -> State | None:
    """The newest whole checkpoint of the folder `run`, on the CPU; None if it has none. See `find`."""
    found = find(run)
    return None if found is None else found.state


def find(run: Path) -> Found | None:
    """The newest whole checkpoint of the folder `run`, on the CPU; None if the folder has none.

    A checkpoint that is damaged, not one of this program, or not finite gives way, with a warning, to the one before.

    Raises:
        InputError: there are checkpoints, but none is whole.
    """
    present = [run / name for name in (NAME, PREVIOUS) if (run / name).exists()]
    if present == [run / PREVIOUS]:
        warnings.warn(f"{run / NAME} is missing: falling back to the checkpoint before it", stacklevel=2)
    faults = []
    for path in present:
        fault, state = _read(path)
        if state is not None:
            return Found(path, state)
        faults.append(f"{path.name} is damaged or no checkpoint of ohem ({fault})")
        if path != present[-1]:
            warnings.warn(f"{path.parent / faults[-1]}: falling back to the checkpoint before it", stacklevel=2)
    if present:
        what = "it" if len(present) == 1 else "both"
        raise InputError(f"{run} has no whole checkpoint, {', '.join(faults)}: remove {what} to start anew")
    return None


def metrics_of(run: Path) -> str | None:
    """The text of metrics.csv as the newest readable checkpoint of `run` holds it; None where none does.

    Only the small part of a checkpoint that holds it is read and checked.
    """
    for path in (run / NAME, run / PREVIOUS):
        try:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith("/data.pkl"):
                        archive.read(name)  # which compares its CRC
            text = _torch_load(path, mmap=True)[METRICS]
        except Exception:  # noqa: BLE001  torch raises a dozen types for a damaged file
            continue
        if isinstance(text, str):
            return text
    return None


def _read(path: Path) -> tuple[str, State | None]:
    """What is wrong with the checkpoint `path`, and its content if nothing is."""
    try:
        check_crcs(path)
        state = _torch_load(path)
    except zipfile.BadZipFile as error:
        return str(error), None
    except OSError as error:
        return error.strerror or describe_os_error(error), None
    except Exception as error:  # noqa: BLE001  torch raises a dozen types for a damaged file
        return type(error).__name__, None  # what it says is advice on how to load files that are not ours
    fault = _fault(state)
    return fault, state if not fault else None


def _torch_load(path: Path, *, mmap: bool = False) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about formats that are not ours
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _fault(state: Any) -> str:
    """What keeps `state` from being the content of a checkpoint; "" if nothing does."""
    if not isinstance(state, dict):
        return f"holds no dictionary but {type(state).__name__}"
    for key, fits in _CONTENT.items():
        if key not in state:
            return f"has no {key!r}"
        if not fits(state[key]):
            return f"its {key!r} is not that of a checkpoint"
    if not isinstance(state.get(METRICS, ""), str):
        return f"its {METRICS!r} is no text"
    tensors = _tensors(state)
    for name, value in tensors.items():
        if not value.isfinite().all():
            return f"{name} is not finite"
    if state.get(DIGEST) not in (None, digest_of_weights(tensors)):
        return "its content is not that of its digest"
    return ""


def _tensors(state: State) -> dict[str, Tensor]:
    """Weights and momenta by their names."""
    momenta = {f"momentum {i}": each.get("momentum_buffer") for i, each in state["optimizer"]["state"].items()}
    return {**state["model"], **{name: value for name, value in momenta.items() if value is not None}}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_window(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"sums", "counts"}:
        return False
    sums, counts = value["sums"], value["counts"]
    return (
        isinstance(sums, dict)
        and isinstance(counts, dict)
        and sums.keys() == counts.keys()
        and all(isinstance(name, str) for name in sums)
        and all(isinstance(total, int | float) for total in sums.values())
        and all(_is_count(count) and count > 0 for count in counts.values())
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("state"), dict):
        return False
    groups = value.get("param_groups")
    return (
        isinstance(groups, list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
        and all(_is_count(index) for index in value["state"])
        and all(isinstance(each, dict) for each in value["state"].values())
        and all(isinstance(each.get("momentum_buffer"), Tensor | None) for each in value["state"].values())
    )


_CONTENT: Mapping[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "window": _is_window,
    "model": _is_state_dict,
    "optimizer": _is_optimizer,
    "precision": lambda value: isinstance(value, dict),
}
