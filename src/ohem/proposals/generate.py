"""Proposals of a whole data set: spread over processes, cached beside the data, resumed where they stopped."""

import hashlib
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ohem.errors import InputError
from ohem.proposals.selective_search import Mode, check_mode, opencv
from ohem.proposals.store import Proposals
from ohem.proposals.worker import propose

PART_SECONDS = 3.0  # what a SIGKILL can lose
Boxes = dict[str, NDArray[np.float32]]


def cache_name(split: str, mode: Mode = "fast") -> str:
    """Of the file of proposals of `split`."""
    return f"{split}.selective-search-{mode}.safetensors"


def cache_path(folder: Path, split: str, mode: Mode = "fast") -> Path:
    """Where the proposals of `folder:split` are kept: beside the data, or in the user's cache if that is read-only."""
    name = cache_name(split, mode)
    beside = folder / "Proposals" / name
    if beside.exists() or os.access(beside.parent if beside.parent.exists() else folder, os.W_OK):
        return beside
    where = folder.resolve()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(where).encode()).hexdigest()[:8]
    path = caches / "ohem" / f"{where.name}-{digest}" / name
    if not path.exists():
        warnings.warn(f"{folder} cannot be written: its proposals go to {path}", UserWarning, stacklevel=2)
    return path


def generate(
    images: Mapping[str, Path], path: Path, mode: Mode = "fast", seed: int = 0, jobs: int = -1, progress: bool = True
) -> Proposals:
    """Selective search over `images` (id -> image file), or what an earlier call left at `path`.

    The same boxes whatever `jobs` is (-1: every usable CPU) and wherever an earlier call was stopped: what that one
    finished waits in `PATH.parts/`. Runs on the joblib backend the caller configured (`joblib.parallel_config`), its
    own processes by default. The progress bar goes to standard error.

    Raises InputError for an image that is missing or unreadable, and for a cache or parts of other images or settings.
    """
    check_mode(mode)
    if jobs == 0:
        raise InputError("--jobs 0 does nothing: give 1 or more, or -1 for every core")
    settings = {"method": "selective search", "mode": mode, "seed": seed}
    fingerprint = {name: _file_size(name, image) for name, image in images.items()}
    if path.exists():
        found = Proposals.load(path)
        found.check(settings, fingerprint)
        return found
    made_with = {**settings, "opencv": opencv().__version__}
    parts = path.with_name(f"{path.name}.parts")
    done = _finished(parts, made_with, fingerprint)
    todo = {name: image for name, image in images.items() if name not in done}

    def keep(part: Boxes) -> None:
        Proposals.from_boxes(part, fingerprint, made_with).save(parts / f"{uuid.uuid4().hex}.safetensors")
        done.update(part)

    with _progress_bar(progress) as bar:
        task = bar.add_task(f"selective search ({mode})", total=len(images), completed=len(done))
        _in_parts(_results(todo, mode, seed, jobs), keep, lambda: bar.advance(task))
    Proposals.from_boxes({name: done[name] for name in images}, fingerprint, made_with).save(path)
    shutil.rmtree(parts, ignore_errors=True)
    return Proposals.load(path)


def _file_size(image_id: str, path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: no image for id {image_id}: restore it or take the id off the split") from error


def _finished(parts: Path, made_with: Mapping[str, Any], fingerprint: Mapping[str, int]) -> Boxes:
    """The boxes an earlier, interrupted call left in `parts`, of the images that are still the same."""
    done: Boxes = {}
    damaged = 0
    for file in sorted(parts.glob("*.safetensors")):
        try:
            part = Proposals.load(file)
        except InputError:  # a machine that lost power; its images are made again
            damaged += 1
            continue
        part.check(made_with, {})
        done |= {i: boxes for i, boxes in part.items() if part.fingerprint[i] == fingerprint.get(i)}
    if damaged:
        warnings.warn(
            f"{parts}: {damaged} damaged files of unfinished proposals are ignored", UserWarning, stacklevel=3
        )
    return done


def _results(todo: Mapping[str, Path], mode: Mode, seed: int, jobs: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(id, boxes) as they are finished, in any order."""
    parallel = Parallel(n_jobs=jobs, return_as="generator_unordered")
    results: Iterator[tuple[str, NDArray[np.float32]]] = parallel(
        delayed(propose)(image_id, image, mode, seed) for image_id, image in todo.items()
    )
    return results


def _in_parts(
    results: Iterable[tuple[str, NDArray[np.float32]]], keep: Callable[[Boxes], None], tick: Callable[[], None]
) -> None:
    """Hand the results to `keep` every few seconds, and what is there when something goes wrong."""
    part: Boxes = {}
    kept_at = time.monotonic()
    try:
        for image_id, boxes in results:
            part[image_id] = boxes
            tick()
            if time.monotonic() - kept_at >= PART_SECONDS:
                keep(part)
                part, kept_at = {}, time.monotonic()
    finally:
        if part:
            keep(part)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.2f} images/s" if speed else "", style="progress.data.speed")


def _progress_bar(enabled: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not enabled)
