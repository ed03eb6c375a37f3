"""Data sets in YOLO layout, as ultralytics has it. They are checked completely before the first image is used.

A source is `data.yaml:SPLIT`, where SPLIT is train, val or test:

    path: DATA                  root of the other paths; default: the folder of the YAML file
    train: images/train         a folder of images, which is searched with the folders below it, a .txt list of image
                                files, or a list of these
    names: [ace, king]          or {0: ace, 1: king}

The labels of DATA/images/train/ID.jpg are in DATA/labels/train/ID.txt: `labels` replaces the last folder `images`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from reprlib import repr as shortened
from typing import Any

import yaml

from ohem.data.annotations.annotation import class_name
from ohem.data.annotations.findings import Findings, Note
from ohem.data.annotations.table import AnnotationTable
from ohem.data.dataset import DetectionSet, Source
from ohem.data.yolo_labels import read_labels
from ohem.errors import InputError
from ohem.images.files import images_below, images_by_id, is_image
from ohem.io.archives import local_file, unpacked, without_chains
from ohem.io.files import describe_os_error
from ohem.io.remote import RemoteFolder, divide, is_remote
from ohem.io.yaml_texts import LOADER, parse_yaml

SPLITS = ("train", "val", "test")
_FORM = re.compile(r"(?P<file>.*?\.ya?ml)(?::(?P<split>.*))?", re.IGNORECASE | re.DOTALL)
_PLACE = "a folder of images, or a .txt list of them"


@dataclass(frozen=True)
class YOLOSource(Source):
    """One source `data.yaml:SPLIT`."""

    names: tuple[str, ...] = ()
    """Class names, in order."""


class YOLODetection(DetectionSet):
    """One or several `data.yaml:SPLIT` sources, concatenated.

    The ids of a source are the paths of its images, relative to the root and without suffix: `images/train/ID`. The
    default of `classes` is `names`, in their order, with or without objects. A script in `download` is never run.
    """

    form = "data.yaml:SPLIT"
    layout = "in YOLO layout"
    sources: Sequence[YOLOSource]

    def _read(self, text: str, findings: Findings) -> tuple[Source, AnnotationTable]:
        place, split = _divide(without_chains(text))
        place = unpacked(place)
        path = local_file(place)
        content = _parse_yaml(path)
        if is_remote(place):
            _fetch(content, split, place)
        names, keypoints = _read_names(content, path, findings), _keypoints(content, path)
        root = _root(content, path)
        images = images_by_id(_images(content, split, root, path), root, f"{path}:{split}")
        labels = {name: label_path(image) for name, image in images.items()}
        if not any(map(Path.exists, labels.values())):
            first, image = next(iter(labels.values())), next(iter(images.values()))
            raise InputError(
                f"no image of {path}:{split} has a label file: put the labels of {image} into {first}, and so on"
            )
        annotations = []
        for name, image in images.items():
            with findings.collected(labels[name]):
                annotations.append(read_labels(labels[name], image, names, keypoints, findings))
        source = YOLOSource(f"{path}:{split}", root, split, tuple(images), names=tuple(names))
        return source, AnnotationTable.of(annotations)

    def _given_classes(self, findings: Findings) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for source in self.sources for name in source.names))


def is_yolo(text: str) -> bool:
    """Returns whether the source `text` has the form `data.yaml:SPLIT`."""
    return _FORM.fullmatch(text) is not None


def parse_source(text: str) -> tuple[Path, str]:
    """Divides `data.yaml:SPLIT` into file and split; raises `InputError` where the split is missing or unknown."""
    file, split = _divide(text)
    return Path(file), split


def _divide(text: str) -> tuple[str, str]:
    match = _FORM.fullmatch(text)
    if match is None or match["split"] not in SPLITS:
        raise InputError(
            f"the source {text!r} has no split: write data.yaml:SPLIT, where SPLIT is {', '.join(SPLITS[:-1])} or "
            f"{SPLITS[-1]}"
        )
    return match["file"], match["split"]


def label_path(image: Path) -> Path:
    """Returns the label file of an image: in `labels` in place of the last folder `images`, or next to the image."""
    folders = list(image.parent.parts)
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return Path(*folders, f"{image.stem}.txt")


def _fetch(content: Mapping[Any, Any], split: str, file: str) -> None:
    """Fetches images and labels of `split`; faults of `content` are left to `_images`."""
    given = content.get("path")
    root = RemoteFolder(f"{divide(file)[0].address}/{given if isinstance(given, str) else ''}".replace("\\", "/"))
    root.copy.mkdir(parents=True, exist_ok=True)
    entries = [entry.replace("\\", "/") for entry in _entries(content.get(split)) if isinstance(entry, str)]
    images = [name for entry in entries for name in _remote_images(root, entry)]
    root.fetch(images)
    root.fetch([label_path(Path(name)).as_posix() for name in images], required=False)


def _remote_images(root: RemoteFolder, entry: str) -> list[str]:
    """Returns the images of a folder or list; those of a list are fetched."""
    for form in dict.fromkeys(_forms_of(entry)):
        if form.lower().endswith(".txt"):
            if form not in root.fetch([form], required=False):
                return _remote_listed(root, form)
        else:
            with suppress(FileNotFoundError):
                names = root.names(form, is_image, below=True)
                if names:
                    return names
    raise InputError(
        f"{root.address} has no images {entry}, or its server does not list them: correct the entry, or name a .txt "
        "list of images there"
    )


def _remote_listed(root: RemoteFolder, file: str) -> list[str]:
    lines = root.path(file).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    texts = [line.strip().replace("\\", "/") for line in lines if line.strip()]
    places = [
        [(PurePosixPath(folder) / text).as_posix() for folder in (PurePosixPath(file).parent, "")] for text in texts
    ]
    missing = root.fetch((name for names in places for name in names), required=False)
    present = [next((name for name in names if name not in missing), None) for names in places]
    if None in present:
        raise InputError(
            f"{root.address}/{file} lists {texts[present.index(None)]!r}, which does not exist there: put it there, or "
            "remove the line"
        )
    return [name for name in present if name is not None]


class _Loader(LOADER):  # type: ignore[valid-type, misc]
    """Refuses a mapping with two values of one key, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        content: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(content) < len(node.value):
            raise yaml.YAMLError("one mapping has a key twice")
        return content


def _parse_yaml(path: Path) -> Mapping[Any, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"), _Loader)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: correct the source") from error
    except OSError as error:
        raise InputError(f"the data set {describe_os_error(error)}") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not well-formed YAML ({reason}): correct it, or export it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not in YOLO layout: write train, val and names")
    return content


def _read_names(content: Mapping[Any, Any], path: Path, findings: Findings) -> list[str]:
    """Returns the class names in the order of their numbers; names with invisible differences are one."""
    given = content.get("names")
    if isinstance(given, dict):
        if sorted(given, key=str) != sorted(range(len(given)), key=str):
            raise InputError(f"{path} has names with the numbers {shortened(list(given))}: number them 0, 1, 2, ...")
        given = [given[i] for i in range(len(given))]
    if not isinstance(given, list) or not given:
        raise InputError(f"{path} has no names: list the class names there, in the order of their numbers")
    names: list[str] = []
    written: set[str] = set()
    for number, value in enumerate(given):
        text = str(value) if type(value) is int else value
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{path} has the name {shortened(value)} of class {number}: write it in quotes")
        if text in written:
            raise InputError(f"{path} has the name {text!r} twice: rename or merge one of the classes")
        written.add(text)
        names.append(class_name(text))
        if names[-1] != text or names[-1] in names[:-1]:
            findings.note(Note.RENAMED, path)
    count = content.get("nc")
    if count is not None and (isinstance(count, bool) or count != len(names)):
        raise InputError(f"{path} has nc {shortened(count)} and {len(names)} names: correct one of them")
    return names


def _keypoints(content: Mapping[Any, Any], path: Path) -> int:
    """Returns the number of values of the keypoints in a row of labels; 0 where there are none."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)):
        raise InputError(f"{path} has the kpt_shape {shortened(shape)}: write [number of points, 2 or 3]")
    return int(shape[0] * shape[1])


def _root(content: Mapping[Any, Any], path: Path) -> Path:
    """Returns the folder `path` of the YAML file: relative to the file, or else to the present folder."""
    given = content.get("path")
    if given is None:
        return path.parent.resolve()
    if not isinstance(given, str):
        raise InputError(f"{path} has the path {shortened(given)}: write the root folder of the data there")
    for folder in (path.parent / given, Path(given), path.parent / given.replace("\\", "/")):
        if _is_folder(folder):
            return folder.resolve()
    raise InputError(
        f"{path} has the path {given!r}, which is no folder in {path.parent.resolve()}: correct it, or leave it "
        "out if the data are there (a download script is not run)"
    )


def _images(content: Mapping[Any, Any], split: str, root: Path, path: Path) -> Iterator[Path]:
    """Yields the images of `split`."""
    given = content.get(split)
    if not given:
        known = ", ".join(name for name in SPLITS if content.get(name))
        raise InputError(f"{path} has no {split}: " + (f"choose among {known}, or add it" if known else "add it"))
    for entry in _entries(given):
        if not isinstance(entry, str):
            raise InputError(f"{path} has {shortened(entry)} in {split}: write {_PLACE}")
        place = _place(entry, root)
        if place is None:
            raise InputError(f"{path} has {entry!r} in {split}, which does not exist in {root}: correct it")
        if place.is_dir():
            yield from images_below(place)
        elif place.suffix.lower() == ".txt":
            yield from _listed(place, root)
        else:
            raise InputError(f"{path} has {entry!r} in {split}, which is neither: write {_PLACE}")


def _entries(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def _place(entry: str, root: Path) -> Path | None:
    """Returns the folder or list of an entry; Roboflow writes ../train/images where train/images is meant."""
    return next(((root / form).resolve() for form in _forms_of(entry) if _exists(root / form)), None)


def _forms_of(entry: str) -> list[str]:
    texts = dict.fromkeys((entry, entry.replace("\\", "/")))
    return [form for text in texts for form in (text, text.removeprefix("../"))]


def _listed(file: Path, root: Path) -> Iterator[Path]:
    """Yields the images of a list, whose lines are relative to the folder of the list, or else to the root."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list {file} cannot be read ({error}): save it as UTF-8 text") from error
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        forms = dict.fromkeys((text, text.replace("\\", "/")))
        places = [folder / form for form in forms for folder in (file.parent, root)]
        image = next((place for place in places if _exists(place)), None)
        if image is None or not is_image(image):
            raise InputError(f"line {number} of {file} is {text!r}, which is no image file: correct or remove it")
        yield Path(os.path.abspath(image))  # noqa: PTH100  links stay, since labels are found by the names of folders


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a zero byte
        return False


def _is_folder(path: Path) -> bool:
    return _exists(path) and path.is_dir()
