"""The index of a large file of COCO annotations, which opens in a second what took half a minute to read and check.

It is kept in the cache folder of the user, and made anew when the file or an image has changed. Without it, or where it
is damaged, the file is read as the first time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ohem.data import coco_arrays
from ohem.data.annotations.findings import Findings, Note
from ohem.data.annotations.table import AnnotationTable
from ohem.data.coco_json import Instances, read_instances
from ohem.io.digests import digest_of_file
from ohem.io.files import atomic_write, cache_folder, remove_leftovers
from ohem.io.texts import Ints, Texts

_ARRAYS = tuple(field.name for field in fields(AnnotationTable) if field.name not in ("files", "images", "names"))
_TEXTS = ("images", "ids")
_HEADER, _DIGEST = "header", 32
_FORMAT = "1"  # to be raised whenever files are read in another way


def read_indexed(path: Path, folder: Path, findings: Findings) -> Instances:
    """Does what `read_instances` does, and remembers the result if the file is large."""
    if not path.is_file() or path.stat().st_size < coco_arrays.LARGE:
        return read_instances(path, folder, findings)
    index = cache_folder(path.parent) / f"{path.name}-{_short(str(folder.resolve()))}.annotations"
    own = Findings()
    instances = _load(index, path, folder, own)
    if instances is None:
        own = Findings()
        instances = read_instances(path, folder, own)
        if not own.faults:
            with suppress(OSError):  # the folder cannot be written, or the disk is full: it is read again next time
                _save(index, path, folder, instances, own)
    findings.add(own)
    return instances


def _save(index: Path, path: Path, folder: Path, instances: Instances, findings: Findings) -> None:
    table = instances.annotations
    header = {
        **_origin(path, folder),
        "categories": instances.category_ids,
        "groups": instances.groups,
        "names": table.names,
        "notes": {kind.name: places for kind, places in findings.notes.items()},
    }
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(table, name) for name in _ARRAYS}
    for name, texts in zip(_TEXTS, (table.images, Texts.of(instances.names)), strict=True):
        arrays[name], arrays[f"{name} from"] = texts.content, texts.starts
    arrays["image ids"] = np.array(instances.image_ids, np.int64)
    arrays["files"] = _stamps(table.images)
    arrays[_HEADER] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    content = save(arrays)
    index.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(index.parent, escape(index.name))
    with atomic_write(index) as temporary:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)


def _load(index: Path, path: Path, folder: Path, findings: Findings) -> Instances | None:
    """Returns what the index has; None where it is missing, damaged, or of other files."""
    try:
        content = index.read_bytes()
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            return None
        arrays = load(content[_DIGEST:])
        header: Mapping[str, Any] = json.loads(arrays[_HEADER].tobytes())
        if not header.items() >= _origin(path, folder).items():
            return None
        images, ids = (Texts(arrays[name], arrays[f"{name} from"]) for name in _TEXTS)
        if not np.array_equal(_stamps(images), arrays["files"]):
            return None
    except (OSError, SafetensorError):
        return None
    findings.notes = {Note[kind]: Counter(places) for kind, places in header["notes"].items()}
    columns = {name: arrays[name] for name in _ARRAYS}
    files = Texts.of([str(path)] * len(images))
    table = AnnotationTable(files=files, images=images, names=tuple(header["names"]), **columns)
    image_ids = arrays["image ids"].tolist()
    return Instances(dict(header["categories"]), list(header["groups"]), image_ids, list(ids), table)


def _origin(path: Path, folder: Path) -> dict[str, str]:
    """Returns what an index must agree in. The names of images and notes have both paths as they were given."""
    return {"format": _FORMAT, "file": str(path), "folder": str(folder), "digest": digest_of_file(path)}


def _stamps(images: Texts) -> Ints:
    """Returns size and time of the last change of each image, `int64 [M, 2]`; 0 where it is missing."""
    stamps = np.zeros((len(images), 2), np.int64)
    for row, image in zip(stamps, images, strict=True):
        with suppress(OSError):
            stat = os.stat(image)  # noqa: PTH116  a Path for each image takes as long as the rest
            row[:] = stat.st_size, stat.st_mtime_ns
    return stamps


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
