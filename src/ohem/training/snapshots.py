"""Snapshots: the weights of a run at some of its steps, RUN/snapshots/step-0001200.safetensors."""

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ohem.checks import is_finite
from ohem.errors import InputError
from ohem.io.files import atomic_write, describe_os_error, remove_leftovers
from ohem.training.fingerprints import digest_of_weights

FOLDER = "snapshots"
DIGEST = "digest"  # key of the metadata; older versions did not write it


def save_snapshot(run: Path, step: int, weights: Mapping[str, Tensor]) -> None:
    """Writes `weights`, the state dict of a detector, as the snapshot of `step`; an existing snapshot stays."""
    path = run / FOLDER / f"step-{step:07d}.safetensors"
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    remove_leftovers(path.parent)
    with atomic_write(path) as temporary:
        tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        # The format has no checksum. `save_file` would make the file readable by its owner alone.
        temporary.write_bytes(save(tensors, {DIGEST: digest_of_weights(tensors)}))


def list_snapshots(run: Path) -> dict[int, Path]:
    """Returns step -> file of all snapshots of the folder `run`, first step first."""
    names = ((re.fullmatch(r"step-(\d+)\.safetensors", path.name), path) for path in (run / FOLDER).glob("*"))
    return dict(sorted((int(name[1]), path) for name, path in names if name))


def load(path: Path) -> dict[str, Tensor]:
    """Loads the weights in the snapshot `path` on the CPU.

    Raises:
        InputError: it is damaged: no safetensors file, its digest differs, or a weight is not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            digest = (file.metadata() or {}).get(DIGEST)
    except OSError as error:
        raise InputError(describe_os_error(error)) from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, str(error)) from error
    if digest is not None and digest != digest_of_weights(tensors):
        raise _damaged(path, "its weights do not match its digest")
    infinite = next((name for name, value in tensors.items() if not is_finite(value)), None)
    if infinite is not None:
        raise _damaged(path, f"{infinite} is not finite")
    return tensors


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} cannot be read ({why}): remove it, and it is left out")


def drop_after(run: Path, step: int) -> None:
    """Removes the snapshots after `step`, which a resumed run makes again, and leftovers."""
    remove_leftovers(run / FOLDER)
    for later, path in list_snapshots(run).items():
        if later > step:
            path.unlink()
