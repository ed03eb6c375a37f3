"""Checkpoints of a run. The previous one is kept, so that one is whole whenever the run is killed."""

import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ohem.checks import is_finite
from ohem.errors import InputError
from ohem.io.digests import check_crcs
from ohem.io.files import atomic_write, describe_os_error, remove_leftovers
from ohem.mining_log import is_state
from ohem.training.fingerprints import digest_of_weights

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
METRICS = "metrics"  # key of the text of metrics.csv
KERNELS = "kernels"  # key of the choices of kernels, by `ohem.kernels.choice`
MINING = "mining"  # key of the state of the mining log
SHORTLIST = "shortlist"  # key of the losses that a shortlist remembers
DIGEST = "digest"  # key of the digest of weights and momenta; older versions did not write it

State = dict[str, Any]


class Checkpoint(NamedTuple):
    """A checkpoint that is whole, and its file."""

    path: Path
    state: State


def exists(run: Path) -> bool:
    """Returns whether the folder `run` has a checkpoint, whole or not."""
    return any((run / name).exists() for name in (NAME, PREVIOUS))


def save(run: Path, state: State, *, keep_newest: bool = True) -> None:
    """Writes `state` as the newest checkpoint of the folder `run`; the one before becomes the previous checkpoint.

    Args:
        run: an existing folder.
        state: content of the checkpoint.
        keep_newest: False if the present newest checkpoint is damaged: it is replaced, and the previous one stays.

    Raises:
        OSError: the file cannot be written.
    """
    newest = run / NAME
    remove_leftovers(run)
    state = {**state, DIGEST: digest_of_weights(_tensors(state))}
    with atomic_write(newest) as temporary:
        _write(state, temporary)
        if keep_newest and newest.exists():
            newest.replace(run / PREVIOUS)


def _write(state: State, path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # On a full disk torch reports only that its archive has a wrong length; the cause is in the context.
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        file.flush()
        os.fsync(file.fileno())  # else a power failure could leave the renamed file empty


def restore(model: nn.Module, state: Mapping[str, Any], run: Path) -> None:
    """Loads the weights in `state`, a checkpoint of the folder `run`, into `model`.

    Raises:
        InputError: they are of another detector, or of other classes.
    """
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise _other_detector(run) from error


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], run: Path) -> None:
    """Loads the momenta in `state`, a checkpoint of the folder `run`, into `optimizer`.

    The options of the optimizer stay: the recipe gives them.

    Raises:
        InputError: the momenta are of other parameters.
    """
    ours, saved = optimizer.state_dict(), state["optimizer"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in ours["param_groups"]]:
        raise _other_detector(run)
    momenta = {index: values.get("momentum_buffer") for index, values in saved["state"].items()}
    momenta = {index: momentum for index, momentum in momenta.items() if momentum is not None}
    expected = {index: (parameter.shape, parameter.dtype) for index, parameter in enumerate(parameters)}
    shapes = {index: (momentum.shape, momentum.dtype) for index, momentum in momenta.items()}
    if not saved["state"].keys() <= expected.keys() or (shapes and shapes != expected):
        raise _other_detector(run)
    optimizer.load_state_dict({"state": saved["state"], "param_groups": ours["param_groups"]})


def _other_detector(run: Path) -> InputError:
    return InputError(
        f"the checkpoint of {run} is of another detector, or other classes, than its recipe.yaml: restore one of them"
    )


def load(run: Path) -> State | None:
    """Returns the content of the newest whole checkpoint of the folder `run`; None if it has none. See `find`."""
    shapes = find(run)
    return None if shapes is None else shapes.state


def find(run: Path) -> Checkpoint | None:
    """Returns the newest whole checkpoint of the folder `run`, on the CPU; None if the folder has none.

    Where the newest checkpoint is damaged, not finite or of another program, the previous one is used, with a warning.

    Raises:
        InputError: there are checkpoints, but none is whole.
    """
    present = [run / name for name in (NAME, PREVIOUS) if (run / name).exists()]
    if present == [run / PREVIOUS]:
        warnings.warn(f"{run / NAME} is missing: the previous checkpoint is used", stacklevel=2)
    faults = []
    for path in present:
        fault, state = _read(path)
        if state is not None:
            return Checkpoint(path, state)
        faults.append(f"{path.name} is damaged or is no checkpoint of ohem ({fault})")
        if path != present[-1]:
            warnings.warn(f"{path.parent / faults[-1]}: the previous checkpoint is used", stacklevel=2)
    if present:
        what = "it" if len(present) == 1 else "both"
        raise InputError(f"{run} has no whole checkpoint, {', '.join(faults)}: remove {what} to train from the start")
    return None


def metrics_of(run: Path) -> str | None:
    """Returns the text of metrics.csv in the newest readable checkpoint of `run`; None where no checkpoint has it.

    Only the small part of the checkpoint that holds the text is read and checked.
    """
    for path in (run / NAME, run / PREVIOUS):
        try:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith("/data.pkl"):
                        archive.read(name)  # checks its CRC
            text = _torch_load(path, mmap=True)[METRICS]
        except Exception:  # noqa: BLE001  torch raises a dozen types for a damaged file
            continue
        if isinstance(text, str):
            return text
    return None


def _read(path: Path) -> tuple[str, State | None]:
    """Returns what is wrong with the checkpoint `path`, "" if nothing is, and its content."""
    try:
        check_crcs(path)
        state = _torch_load(path)
    except zipfile.BadZipFile as error:
        return str(error), None
    except OSError as error:
        return error.strerror or describe_os_error(error), None
    except Exception as error:  # noqa: BLE001  torch raises a dozen types for a damaged file
        return type(error).__name__, None  # the message advises how to load files of other programs
    fault = _fault(state)
    return fault, state if not fault else None


def _torch_load(path: Path, *, mmap: bool = False) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of formats of other programs
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _fault(state: Any) -> str:
    """Returns why `state` is not the content of a checkpoint; "" if it is."""
    if not isinstance(state, dict):
        return f"it holds no dictionary but {type(state).__name__}"
    for key, fits in _CONTENT.items():
        if key not in state and key not in _ADDED:
            return f"it has no {key!r}"
        if key in state and not fits(state[key]):
            return f"its {key!r} is not that of a checkpoint"
    tensors = _tensors(state)
    for name, value in tensors.items():
        if not is_finite(value):
            return f"{name} is not finite"
    if state.get(DIGEST) not in (None, digest_of_weights(tensors)):
        return "its content does not match its digest"
    return ""


def _tensors(state: State) -> dict[str, Tensor]:
    """Returns the weights and momenta by name."""
    momenta = {f"momentum {i}": values.get("momentum_buffer") for i, values in state["optimizer"]["state"].items()}
    return {**state["model"], **{name: value for name, value in momenta.items() if value is not None}}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for item in value.items() for text in item)


def _is_shortlist(value: Any) -> bool:
    keys = ("images", "counts", "lengths", "losses")
    if not isinstance(value, dict) or not all(isinstance(value.get(key), Tensor) for key in keys):
        return False
    images, counts, lengths, losses = (value[key] for key in keys)
    return bool(
        images.shape == counts.shape == lengths.shape == (len(images),)
        and losses.shape == (int(lengths.sum()),)
        and (lengths >= 0).all()
    )


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
        and all(isinstance(values, dict) for values in value["state"].values())
        and all(isinstance(values.get("momentum_buffer"), Tensor | None) for values in value["state"].values())
    )


_CONTENT: Mapping[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "window": _is_window,
    "model": _is_state_dict,
    "optimizer": _is_optimizer,
    "precision": lambda value: isinstance(value, dict),
    METRICS: lambda value: isinstance(value, str),
    KERNELS: _is_text_dict,
    SHORTLIST: _is_shortlist,
    MINING: is_state,
}
_ADDED = (METRICS, KERNELS, SHORTLIST, MINING)  # older versions did not write them
