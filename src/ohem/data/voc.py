"""Data sets in the layout of PASCAL VOC. They are checked completely before the first image is used.

A source is `FOLDER:SPLIT`::

    FOLDER/ImageSets/Main/SPLIT.txt   an image id or file name in each line; the flag of class files is not read
    FOLDER/JPEGImages/ID.jpg          or another image format
    FOLDER/Annotations/ID.xml

Boxes in XML are 1-based with the end included; here they are `[xmin - 1, ymin - 1, xmax, ymax]`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ohem.data.annotations.annotation import without_objects
from ohem.data.annotations.findings import Findings
from ohem.data.annotations.table import AnnotationTable
from ohem.data.dataset import DetectionSet, Source
from ohem.data.voc_xml import read_annotation
from ohem.errors import InputError
from ohem.images.files import SUFFIXES
from ohem.io.archives import unpacked, without_chains
from ohem.io.remote import RemoteFolder, is_remote


class VOCDetection(DetectionSet):
    """One or several `FOLDER:SPLIT` sources, concatenated (the paper's 07+12).

    The ids of a source are file stems. The default of `classes` is the sorted names of the annotations. `ignore` of a
    target marks `difficult` objects.
    """

    form = "FOLDER:SPLIT"
    layout = "in VOC layout"

    def _read(self, text: str, findings: Findings) -> tuple[Source, AnnotationTable]:
        folder, split = self._on_this_machine(text)
        lines = _read_split(folder, split)
        images = _image_files(folder)
        annotations = []
        ids = _ids_of(lines, images, _split_file(folder, split), findings)
        for stem in ids:
            path = folder / "Annotations" / f"{stem}.xml"
            with findings.collected(path):
                image = _only(images[stem], stem)
                read = self._must_be_annotated or path.exists()
                annotations.append(read_annotation(path, image, findings) if read else without_objects(path, image))
        return Source(f"{folder}:{split}", folder, split, tuple(ids)), AnnotationTable.of(annotations)

    def _on_this_machine(self, text: str) -> tuple[Path, str]:
        """Returns folder and split of a source, which is unpacked or fetched first."""
        place, split = _divide(without_chains(text))
        place = unpacked(place)
        if not is_remote(place):
            return Path(place), split
        remote = RemoteFolder(place)
        remote.fetch([f"ImageSets/Main/{split}.txt"])
        images = _remote_images(remote, _read_split(remote.copy, split).values())
        stems = {PurePosixPath(name).stem for name in images}
        remote.fetch(images)
        remote.fetch([f"Annotations/{stem}.xml" for stem in stems], required=self._must_be_annotated)
        return remote.copy, split

    def _given_classes(self, findings: Findings) -> tuple[str, ...]:
        return tuple(sorted(self._annotations.names))


def parse_source(text: str) -> tuple[Path, str]:
    """Divides `FOLDER:SPLIT` at the last colon; raises `InputError` where folder or split is missing."""
    folder, split = _divide(text)
    return Path(folder), split


def _divide(text: str) -> tuple[str, str]:
    folder, _, split = text.rpartition(":")
    is_drive = len(folder) == 1 and split.startswith(("\\", "/"))
    if not folder or not split or is_drive or (is_remote(text) and split.startswith("//")):
        raise InputError(f"the source {text!r} has no split: write FOLDER:SPLIT, as in VOC2007:trainval")
    return folder, split


def _remote_images(remote: RemoteFolder, lines: Iterable[str]) -> list[str]:
    """Returns the images of the lines of a split; a server that does not list its folders must have them as ID.jpg."""
    try:
        listed = remote.names("JPEGImages", _has_suffix)
    except (FileNotFoundError, InputError):
        listed = []
    if not listed:
        return [f"JPEGImages/{stem}.jpg" for stem in (list(_forms_of(line))[-1] for line in lines)]
    names: dict[str, list[str]] = {}
    for name in listed:
        names.setdefault(PurePosixPath(name).stem, []).append(name)
    stems = (next((form for form in _forms_of(line) if form in names), "") for line in lines)
    return [name for stem in stems for name in names.get(stem, ())]


def no_such_folder(folder: Path, text: str) -> InputError:
    """Returns the error for a source whose folder is missing; a Windows path on another system is a common cause."""
    remedy = f"correct the source {text!r}"
    if "\\" in str(folder) and os.sep == "/":
        remedy += ", with / between folders (a drive of Windows has another name here, such as /mnt/c)"
    return InputError(f"the folder {folder} does not exist: {remedy}")


def _split_file(folder: Path, split: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def _read_split(folder: Path, split: str) -> dict[int, str]:
    """Reads the lines that are not empty, by number."""
    if not folder.is_dir():
        raise no_such_folder(folder, f"{folder}:{split}")
    path = _split_file(folder, split)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt")))
        remedy = f"choose among {known}" if known else "create it, with one image id in each line"
        raise InputError(f"the split file {path} does not exist: {remedy}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the split file {path} cannot be read ({error}): save it as UTF-8 text") from error
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    if not lines:
        raise InputError(f"the split file {path} is empty: write one image id in each line")
    return lines


def _ids_of(
    lines: Mapping[int, str], images: Mapping[str, Sequence[Path]], split: Path, findings: Findings
) -> list[str]:
    """Returns the ids of the lines of `split` that have images; other lines are faults."""
    seen: dict[str, int] = {}
    for number, line in lines.items():
        with findings.collected(f"line {number}: {line}"):
            stem = next((form for form in _forms_of(line) if form in images), None)
            if stem is None:
                raise InputError(
                    f"{split.parents[2] / 'JPEGImages'} has no image of the id {line!r} in {split}: add {line}.jpg, or "
                    "remove the id; images in folders below it are not read"
                )
            if stem in seen:
                raise InputError(
                    f"{split} lists {stem!r} twice, in lines {seen[stem]} and {number}: remove one of them"
                )
            seen[stem] = number
    return list(seen)


def _forms_of(line: str) -> Iterator[str]:
    """Yields the meanings of a line, the most likely first: an id, perhaps with blanks, a file, or either with a flag.

    The split file of a class has the flags -1, 0 and 1.
    """
    columns = line.rsplit(maxsplit=1)
    for text in [line, columns[0]] if columns[-1] in {"-1", "0", "1"} else [line]:
        yield text
        file = PurePosixPath(text.replace("\\", "/"))
        if file.parent.name in ("", "JPEGImages"):
            yield file.name
            if file.suffix.lower() in SUFFIXES:
                yield file.stem


def _only(files: Sequence[Path], stem: str) -> Path:
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise InputError(f"{files[0].parent} has two images of the id {stem!r}, {names}: remove or rename one of them")
    return files[0]


def _image_files(folder: Path) -> dict[str, list[Path]]:
    """Returns stem -> images of the folder, from one listing, since tests of each id and suffix would be slow."""
    images = folder / "JPEGImages"
    if not images.is_dir():
        raise InputError(f"the folder {images} does not exist: put the images there, as ID.jpg")
    files: dict[str, list[Path]] = {}
    for file in sorted(images.iterdir()):
        if _has_suffix(file):
            files.setdefault(file.stem, []).append(file)
    return files


def _has_suffix(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES
