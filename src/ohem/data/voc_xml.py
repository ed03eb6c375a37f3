"""One VOC annotation, read without trust: harmless, well-formed XML and boxes inside the image, or a sentence.

Boxes in XML are 1-based with the end included; here they are `[xmin - 1, ymin - 1, xmax, ymax]`.
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeXML

from ohem.data.annotation import Annotation, Defects, Floats, checked_size, mend
from ohem.errors import InputError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_annotation(path: Path, image: Path, defects: Defects) -> Annotation:
    root = _parse_xml(path)
    size = _read_size(root, path, image)
    names, boxes, difficult = [], [], []
    for number, thing in enumerate(root.findall("object"), start=1):
        where = f"object {number} of {path}"
        name = (thing.findtext("name") or "").strip()
        if not name:
            raise InputError(f"{where} has no <name>: write its class there")
        flag = (thing.findtext("difficult") or "0").strip()
        if flag not in {"0", "1"}:
            raise InputError(f"{where} has <difficult>{flag}</difficult>: write 0 or 1")
        box = _mend(_read_box(thing, where), size, path, defects)
        if box is not None:
            names.append(name)
            boxes.append(box)
            difficult.append(flag == "1")
    return Annotation(path, image, size, names, np.array(boxes, np.float32).reshape(-1, 4), difficult)


def _parse_xml(path: Path) -> Element:
    try:
        root = SafeXML.parse(path, forbid_dtd=True).getroot()
    except FileNotFoundError as error:
        raise InputError(f"the annotation {path} does not exist: add it, or remove its id from the split") from error
    except DefusedXmlException as error:
        raise InputError(f"{path} defines a document type or entities, which are not expanded: remove them") from error
    except (ParseError, OSError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not well-formed XML ({error}): correct it, or export it again") from error
    assert root is not None  # only of a tree built empty
    return root


def _read_size(root: Element, path: Path, image: Path) -> tuple[int, int]:
    """`(height, width)`, which the annotation and the image's header agree on."""
    size = root.find("size")
    if size is None:
        raise InputError(f"{path} has no <size>: add <size> with the <width> and <height> of {image}")
    height, width = [_number(size, tag, f"<size> of {path}") for tag in ("height", "width")]
    return checked_size(height, width, image, f"{path} has a <size>")


def _read_box(thing: Element, where: str) -> list[float]:
    box = thing.find("bndbox")
    if box is None:
        raise InputError(
            f"{where} has no <bndbox>: add one with <xmin>, <ymin>, <xmax> and <ymax>, or remove the object"
        )
    return [_number(box, tag, f"<bndbox> of {where}") for tag in _CORNERS]


def _number(parent: Element, tag: str, where: str) -> float:
    text = parent.findtext(tag)
    if text is None:
        raise InputError(f"<{tag}> is missing in the {where}: add it")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"<{tag}>{text.strip()}</{tag}> in the {where} is not a number: write it in pixels")
    return value


def _mend(box: list[float], size: tuple[int, int], path: Path, defects: Defects) -> Floats | None:
    """The box in our convention and inside the image, or None if it has no area; counts what was wrong."""
    xmin, ymin, xmax, ymax = box
    # A box of one pixel, xmin = xmax, is legal VOC, but in practice a slip of the mouse.
    ours = (xmin - 1, ymin - 1, xmax, ymax)
    mended = mend(ours, size, str(path), defects) if xmax > xmin and ymax > ymin else None
    if mended is None:
        defects.skipped[str(path)] += 1
    return mended
