"""Proposals of a data set: made by several processes, kept with the data, and resumed after an interruption."""

import glob
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

from ohem.errors import InputError
from ohem.images.read import read_header
from ohem.io.digests import digests_of_files
from ohem.io.files import cache_folder
from ohem.io.locks import locked
from ohem.io.progress import Counter
from ohem.proposals.index import Digests
from ohem.proposals.methods import Method, opencv
from ohem.proposals.parallel import check_jobs, results_of
from ohem.proposals.selective_search import FAST
from ohem.proposals.shards import Shards, room, shard_files, shards_of, write_next
from ohem.proposals.store import OldFormat, Proposals, check_settings

PART_SECONDS = 3.0  # a SIGKILL loses at most the work of this time
Boxes = dict[str, NDArray[np.float32]]
FOLDER = "Proposals"
"""Folder of the proposal files in the folder of the data."""


def cache_name(split: str, method: Method = FAST) -> str:
    """Returns the name of the proposal file of `split`."""
    return f"{split}.{method.name}.safetensors"


def cache_path(folder: Path, split: str, method: Method = FAST) -> Path:
    """Returns the proposal file of `folder:split`: with the data, or in the cache of the user if that is read-only."""
    name = cache_name(split, method)
    local = folder / FOLDER / name
    if local.exists() or os.access(local.parent if local.parent.exists() else folder, os.W_OK):
        return local
    path = cache_folder(folder) / name
    if not path.exists():
        warnings.warn(f"{folder} cannot be written: its proposals are kept in {path}", UserWarning, stacklevel=2)
    return path


def generate(
    images: Mapping[str, Path],
    path: Path,
    method: Method = FAST,
    jobs: int = -1,
    progress: bool = True,
) -> Shards:
    """Makes the proposals of the images that the proposal file `path` does not have yet.

    Boxes in `path` of an image with the same content are used; boxes of new and changed images are made and added. The
    boxes do not depend on `jobs`, nor on an interruption of an earlier call, whose boxes are kept in `PATH.parts/`. It
    runs on the joblib backend of the caller (`joblib.parallel_config`), by default in its own processes. A progress bar
    is printed on standard error, and changed images are reported in one warning.

    Args:
        images: id -> image file.
        path: the proposal file.
        method: the method with its settings.
        jobs: number of processes; -1 uses all cores.
        progress: whether to print the progress.

    Raises:
        InputError: an image is missing or unreadable, the file or its parts have other settings, another process
            writes the same file, or the method cannot be used.
    """
    check_jobs(jobs)
    digests = _digests(images)
    cached = _cached(path, method.settings, images)
    if cached is not None and not len(cached.missing(digests)):
        _tidy(path)
        return cached
    del cached
    method.check()
    with _one_writer(path):
        _remove_leftovers(path, parts=False)
        cached = _cached(path, method.settings, images)  # which another process may have written in the meantime
        if cached is None or len(cached.missing(digests)):
            _add(images, digests, cached, path, method, jobs, progress)
        _remove_leftovers(path, parts=True)
    del cached  # so that memory has the index once
    return Shards(path)


def is_generated(images: Mapping[str, Path], path: Path, method: Method = FAST) -> bool:
    """Returns whether `path` has the boxes of all `images`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `generate` warns
        cached = _cached(path, method.settings, images)
    digests = _digests(images)
    return cached is not None and not len(cached.missing(digests))


def _digests(images: Mapping[str, Path]) -> Digests:
    try:
        numbers = (int(digest, 16) for digest in digests_of_files(images.values()))
        content = np.fromiter(numbers, np.uint64, len(images)).astype(">u8").view(np.uint8)
        return Digests(getattr(images, "ids", None) or list(images), content.reshape(-1, 8))
    except OSError as error:
        name, path = next((n, p) for n, p in images.items() if str(p) == str(error.filename))
        raise InputError(
            f"{path}: no image for id {name} ({error.strerror}): restore it, or remove the id from the split"
        ) from error


def _cached(path: Path, settings: Mapping[str, Any], images: Mapping[str, Path]) -> Shards | None:
    """Loads the proposals at `path`; returns None where there are none, or only in an earlier format.

    Those of a version that reduced no image are as good where none is wide.
    """
    if not path.exists() and not shard_files(path):
        return None
    try:
        cached = Shards(path)
    except OldFormat as old:
        check_settings(path, old.metadata, settings)
        return None
    for file in cached.files:
        earlier = "width" not in file.metadata and not _any_wider(images, settings["width"])
        file.check({key: value for key, value in settings.items() if key != "width" or not earlier})
    return cached


def _any_wider(images: Mapping[str, Path], width: int) -> bool:
    return any(read_header(image).upright[1] > width for image in images.values())


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
    """Removes temporary files of killed processes from a complete proposal file, unless another process writes it."""
    lock = path.with_name(f".{path.name}.lock")
    if lock.exists() or _parts_of(path).exists() or any(path.parent.glob(_temporary(path))):
        with suppress(InputError, OSError), _one_writer(path, wait=0):
            _remove_leftovers(path, parts=True)


def _remove_leftovers(path: Path, parts: bool) -> None:
    for file in (*path.parent.glob(_temporary(path)), *shards_of(path).glob(".*.tmp")):
        file.unlink(missing_ok=True)
    if parts:
        shutil.rmtree(_parts_of(path), ignore_errors=True)


def _temporary(path: Path) -> str:
    """Returns the pattern of temporary files of `atomic_write`; only the process with the lock may have some."""
    return f".{glob.escape(path.name)}.*.tmp"


def _parts_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.parts")


def _add(
    images: Mapping[str, Path],
    digests: Digests,
    cached: Shards | None,
    path: Path,
    method: Method,
    jobs: int,
    progress: bool,
) -> None:
    """Makes the boxes that neither `cached`, the files of `path`, nor its parts have; adds them, file by file."""
    boxes, made_with = _CollectedBoxes(), _made_with(method)
    if cached is None and path.exists():
        _warn(f"{path}: the proposals are in an earlier format without digests of the images: they are made again")
    todo: NDArray[Any] = np.arange(len(digests), dtype=np.int32) if cached is None else cached.missing(digests)
    finished = _finished(path, made_with, digests, boxes)
    changed: list[str] = []
    if cached is not None:
        finished = {name for name in finished if cached.digests.get(name) != digests[name]}
        missing = (digests.ids[at] for at in todo.tolist())
        changed = [name for name in missing if name in cached.digests and name not in finished]
    if changed:
        _warn(
            f"{path}: {len(changed)} image files have changed since their proposals were made, the first is "
            f"{images[changed[0]]}: their proposals are made again"
        )
    done = len(images) - len(todo) + len(finished)
    first = 0
    with Counter(method.title, len(images), done, enabled=progress) as counter:
        while first < len(todo) or cached is None:
            added = digests.take(todo[first : first + room(cached)])
            first += len(added)
            unmade = {name: images[name] for name in added if name not in finished}
            parts = _make_parts(unmade, added, boxes, path, method, jobs, counter.advance)
            cached = write_next(path, cached, boxes, added, digests, made_with)
            boxes.remove(added)
            for part in parts:
                part.unlink(missing_ok=True)


def _make_parts(
    images: Mapping[str, Path],
    digests: Mapping[str, str],
    boxes: "_CollectedBoxes",
    path: Path,
    method: Method,
    jobs: int,
    tick: Callable[[], None],
) -> list[Path]:
    """Makes the boxes of `images`, and writes them into parts of `path`, from which `boxes` reads."""
    parts: list[Path] = []

    def keep(part: Boxes) -> None:
        file = _parts_of(path) / f"{uuid.uuid4().hex}.safetensors"
        Proposals.from_boxes(part, digests, _made_with(method)).save(file)
        boxes.add(file, part)
        parts.append(file)

    if images:
        with results_of(images, method, jobs) as results:
            _in_parts(results, keep, tick)
    return parts


def _made_with(method: Method) -> dict[str, Any]:
    """Returns the settings of the boxes, and the version of OpenCV."""
    return {**method.settings, "opencv": opencv().__version__}


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)


class _CollectedBoxes(Mapping[str, NDArray[np.float32]]):
    """Boxes in files, of which a few are open at a time, since boxes of COCO are gigabytes in thousands of parts."""

    def __init__(self) -> None:
        self._places: dict[str, Path] = {}
        self._open = lru_cache(maxsize=64)(Proposals.load)

    def add(self, place: Path, names: Iterable[str]) -> None:
        """Reads the boxes of `names` from `place` from now on."""
        self._places |= dict.fromkeys(names, place)

    def remove(self, names: Iterable[str]) -> None:
        """Forgets the places of `names`, which must be known."""
        for name in names:
            del self._places[name]

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._open(self._places[name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _finished(path: Path, made_with: Mapping[str, Any], digests: Mapping[str, str], boxes: _CollectedBoxes) -> set[str]:
    """Adds boxes that an interrupted call left in the parts of `path`; returns the ids of their images."""
    done: set[str] = set()
    damaged = []
    for file in sorted(_parts_of(path).glob("*.safetensors")):
        try:
            part = Proposals.load(file)
            names = part.current(digests)
            for name in names:
                part[name]  # raises an error if it is damaged
        except InputError:  # after a power failure, or of an earlier format: the boxes are made again
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
    """Passes the results to `keep` every few seconds, and after an error."""
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
