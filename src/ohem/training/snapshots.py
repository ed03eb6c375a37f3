"""Snapshots: the weights of a run at some of its steps, RUN/snapshots/step-0001200.safetensors, to look back at."""

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ohem.errors import InputError
from ohem.files import replacing

FOLDER = "snapshots"


def keep(run: Path, step: int, weights: Mapping[str, Tensor]) -> None:
    """Writes `weights`, the state dict of a detector, as the snapshot of `step`; one that is there already is left."""
    path = run / FOLDER / f"step-{step:07d}.safetensors"
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as beside:
        tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        beside.write_bytes(save(tensors))  # save_file would make it readable by us alone


def found(run: Path) -> dict[int, Path]:
    """Step -> file of every snapshot of the folder `run`, first step first."""
    names = ((re.fullmatch(r"step-(\d+)\.safetensors", path.name), path) for path in (run / FOLDER).glob("*"))
    return dict(sorted((int(name[1]), path) for name, path in names if name))


def load(path: Path) -> dict[str, Tensor]:
    """The weights in the snapshot `path`, on the CPU; raises `InputError` where it is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): remove it, it is left out then") from error


def drop_after(run: Path, step: int) -> None:
    """Removes the snapshots behind `step`, which a run that goes on from there makes anew."""
    for later, path in found(run).items():
        if later > step:
            path.unlink()
