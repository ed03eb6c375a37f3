"""Proposals of a whole data set: spread over processes, cached beside the data, resumed where they stopped."""

import glob
import hashlib
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ohem.console import make_console
from ohem.errors import InputError
from ohem.files import digests_of_files
from ohem.locks import locked
from ohem.proposals.parallel import results_of
from ohem.proposals.selective_search import Mode, check_mode, opencv
from ohem.proposals.store import OldFormat, Proposals, check_settings, write_proposals

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
    """Selective search over `images` (id -> image file), as far as `path` does not have it from an earlier call.

    The cache is by image: what is at `path` of an image file of the same content is used, what is new or has changed
    is made and added, and other images stay in it. The boxes are the same whatever `jobs` is (-1: every usable CPU)
    and wherever an earlier call was stopped: what that one finished waits in `PATH.parts/`. Runs on the joblib backend
    the caller configured (`joblib.parallel_config`), its own processes by default. The progress bar goes to standard
    error.

    Raises InputError for an image that is missing or unreadable, for a cache or parts of other settings, and while
    another process writes the same cache. Warns once where images have changed.
    """
    check_mode(mode)
    if jobs == 0:
        raise InputError("--jobs 0 does nothing: give 1 or more, or -1 for every core")
    settings = {"method": "selective search", "mode": mode, "seed": seed}
    digests = _digests(images)
    found = _cached(path, settings)
    if found is not None and len(found.current(digests)) == len(digests):
        _tidy(path)
        return found
    made_with = {**settings, "opencv": opencv().__version__}
    with _one_writer(path):
        _remove_leftovers(path, parts=False)
        found = _cached(path, settings)  # which another process may have written in the meantime
        if found is None or len(found.current(digests)) < len(digests):
            _add(images, digests, found, path, made_with, jobs, progress)
        _remove_leftovers(path, parts=True)
    return Proposals.load(path)


def is_generated(images: Mapping[str, Path], path: Path, mode: Mode = "fast", seed: int = 0) -> bool:
    """Returns whether `path` has the boxes of all `images`, so that `generate` would make none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `generate` says it
        found = _cached(path, {"method": "selective search", "mode": mode, "seed": seed})
    digests = _digests(images)
    return found is not None and len(found.current(digests)) == len(digests)


def _digests(images: Mapping[str, Path]) -> dict[str, str]:
    try:
        return dict(zip(images, digests_of_files(images.values()), strict=True))
    except OSError as error:
        name, path = next((n, p) for n, p in images.items() if str(p) == str(error.filename))
        raise InputError(
            f"{path}: no image for id {name} ({error.strerror}): restore it or take the id off the split"
        ) from error


def _cached(path: Path, settings: Mapping[str, Any]) -> Proposals | None:
    """What is at `path`, unless nothing is, or proposals in an earlier format."""
    if not path.exists():
        return None
    try:
        found = Proposals.load(path)
    except OldFormat as old:
        check_settings(path, old.metadata, settings)
        return None
    found.check(settings)
    return found


@contextmanager
def _one_writer(path: Path, wait: float | None = None) -> Iterator[None]:
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, f"the file of proposals {path}", wait):
            yield
    except OSError as error:
        if error.filename not in (str(lock), str(path.parent)):
            raise
        raise InputError(
            f"{path}: the proposals cannot be written ({error.strerror}): name another folder (--proposals.folder)"
        ) from error


def _tidy(path: Path) -> None:
    """Removes what a killed process left of a cache that is complete, unless another process writes it."""
    lock = path.with_name(f".{path.name}.lock")
    if lock.exists() or _parts_of(path).exists() or any(path.parent.glob(_temporary(path))):
        with suppress(InputError, OSError), _one_writer(path, wait=0):
            _remove_leftovers(path, parts=True)


def _remove_leftovers(path: Path, parts: bool) -> None:
    for file in path.parent.glob(_temporary(path)):
        file.unlink(missing_ok=True)
    if parts:
        shutil.rmtree(_parts_of(path), ignore_errors=True)


def _temporary(path: Path) -> str:
    """A pattern of the names of the files that `replacing` writes to; only the holder of the lock may have any."""
    return f".{glob.escape(path.name)}.*.tmp"


def _parts_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.parts")


def _add(
    images: Mapping[str, Path],
    digests: Mapping[str, str],
    found: Proposals | None,
    path: Path,
    made_with: dict[str, Any],
    jobs: int,
    progress: bool,
) -> None:
    """Makes the boxes that neither `found`, the cache at `path`, nor its parts have, and writes all to `path`."""
    boxes = _Collected()
    if found is not None:
        boxes.add(found, found.ids)
    elif path.exists():
        _warn(f"{path}: proposals in an earlier format, which does not say of which pictures: they are made anew")
    done = set(found.current(digests)) if found is not None else set()
    done |= _finished(path, made_with, digests, boxes)
    todo = {name: image for name, image in images.items() if name not in done}
    changed = [name for name in todo if found is not None and name in found]
    if changed:
        _warn(
            f"{path}: {len(changed)} image files have changed since their proposals were made, the first is "
            f"{images[changed[0]]}: their proposals are made anew"
        )

    def keep(part: Boxes) -> None:
        file = _parts_of(path) / f"{uuid.uuid4().hex}.safetensors"
        Proposals.from_boxes(part, digests, made_with).save(file)
        boxes.add(file, part)

    with _progress_bar(progress) as bar:
        task = bar.add_task(f"selective search ({made_with['mode']})", total=len(images), completed=len(done))
        with results_of(todo, made_with["mode"], made_with["seed"], jobs) as results:
            _in_parts(results, keep, lambda: bar.advance(task))
    others = {name: digest for name, digest in found.digests.items() if name not in digests} if found else {}
    if found is not None:
        versions = {found.metadata.get("opencv"), made_with["opencv"]}
        made_with = {**made_with, "opencv": ", ".join(sorted(str(version) for version in versions))}
    write_proposals(path, boxes, {**digests, **others}, made_with)


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)


class _Collected(Mapping[str, NDArray[np.float32]]):
    """Boxes that lie in files, a few of which are open at a time: those of COCO are gigabytes in thousands of parts."""

    def __init__(self) -> None:
        self._places: dict[str, Proposals | Path] = {}
        self._open = lru_cache(maxsize=64)(Proposals.load)

    def add(self, place: Proposals | Path, names: Iterable[str]) -> None:
        """Takes the boxes of `names` from `place` from now on."""
        self._places |= dict.fromkeys(names, place)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        place = self._places[name]
        return (self._open(place) if isinstance(place, Path) else place)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _finished(path: Path, made_with: Mapping[str, Any], digests: Mapping[str, str], boxes: _Collected) -> set[str]:
    """Ids of the images, still the same, whose boxes an interrupted call left in the parts of `path`; adds these."""
    done: set[str] = set()
    damaged = []
    for file in sorted(_parts_of(path).glob("*.safetensors")):
        try:
            part = Proposals.load(file)
            names = part.current(digests)
            for name in names:
                part[name]  # raises where it is damaged
        except InputError:  # a machine that lost power, or an earlier format; its images are made again
            damaged.append(file)
            continue
        part.check(made_with)
        boxes.add(file, names)
        done.update(names)
    if damaged:
        _warn(f"{_parts_of(path)}: {len(damaged)} damaged files of unfinished proposals are ignored")
    return done


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
    return Progress(*columns, console=make_console(stderr=True), disable=not enabled)
