"""Image files in folders."""

import os
from collections.abc import Iterable
from pathlib import Path

from ohem.errors import InputError
from ohem.io.files import describe_os_error

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Suffixes of the images that are read."""
_OTHERS = (".avif", ".heic", ".heif", ".jp2", ".mpo", ".pfm")
"""Suffixes of images that Pillow reads on some machines only: they end in a sentence, and are not passed over."""


def is_image(path: Path) -> bool:
    """Returns whether the suffix is that of an image."""
    return path.suffix.lower() in SUFFIXES + _OTHERS


def images_below(folder: Path) -> list[Path]:
    """Returns the images in `folder` and in all folders below it, sorted; hidden files and folders are left out.

    Raises:
        InputError: a folder cannot be read.
    """
    images: list[Path] = []
    visited: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images += [Path(place, name) for name in files if not name.startswith(".") and is_image(Path(name))]
    return sorted(images)


def images_by_id(images: Iterable[Path], root: Path, where: str) -> dict[str, Path]:
    """Returns id -> image; an id is the path of the image relative to the folder `root`, without suffix.

    Args:
        images: image files.
        root: folder.
        where: what error messages call the images.

    Raises:
        InputError: there is no image, an image is there twice, or two images have one id.
    """
    files: dict[str, Path] = {}
    for image in images:
        name = Path(os.path.relpath(image.with_suffix(""), root)).as_posix()
        other = files.setdefault(name, image)
        if other is not image:
            twice = "is there twice" if other == image else f"has the id {name!r} of {other.name}"
            raise InputError(f"{image} of {where} {twice}: remove or rename one of them")
    if not files:
        raise InputError(f"{where} has no image: put some there, or name another")
    return files


def _refuse(error: OSError) -> None:
    raise InputError(f"the folder {describe_os_error(error)}") from error
