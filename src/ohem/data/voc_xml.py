"""One VOC annotation. The XML file and every field are checked; a fault ends in one sentence.

Boxes in XML are 1-based with the end included; here they are `[xmin - 1, ymin - 1, xmax, ymax]`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeXML

from ohem.data.annotations.annotation import Annotation, check_in_pixels, class_name, clip_box, find_frame
from ohem.data.annotations.findings import Findings, Note
from ohem.errors import InputError, closest
from ohem.images.orientation import Size
from ohem.io.files import describe_os_error

MOST = 1e12
"""Number of pixels that no image has."""

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ONCE = ("name", "difficult", "bndbox")
_LIKE = 0.85
"""Likeness of misspelled names, by `difflib`."""
_TAGS = {"annotation", "size", "width", "height", "object", *_ONCE, *_CORNERS}


def read_annotation(path: Path, image: Path, findings: Findings) -> Annotation:
    """Reads the annotation `path` of the image file `image`.

    Raises:
        InputError: a field is missing, given twice or impossible, or would not be read.
    """
    root = _parse_xml(path)
    _check_tags(root, path, findings)
    frame = find_frame(_read_size(root, path), image, str(path), findings)
    names, boxes, difficult, raw = [], [], [], []
    for number, thing in enumerate(root.findall("object"), start=1):
        where = f"object {number} of {path}"
        _check_once(thing, _ONCE, where)
        names.append(_read_name(thing, where, path, findings))
        raw.append(_read_box(thing, where))
        difficult.append(_read_flag(thing, where))
    check_in_pixels(raw, str(path))
    for number, (xmin, ymin, xmax, ymax) in enumerate(raw, start=1):
        # A box of one pixel, xmin = xmax, is legal in VOC, but in practice an error of the annotator.
        whole = xmax > xmin and ymax > ymin
        box = (xmin - 1, ymin - 1, xmax, ymax) if whole else (0, 0, 0, 0)
        boxes.append(clip_box(box, frame, f"object {number} of {path}", str(path), findings))
    kept = [i for i, box in enumerate(boxes) if box is not None]
    kept_boxes = np.array([boxes[i] for i in kept], np.float32).reshape(-1, 4)
    return Annotation(
        path, image, frame, [names[i] for i in kept], frame.turned(kept_boxes), [difficult[i] for i in kept]
    )


def _parse_xml(path: Path) -> Element:
    try:
        data = path.read_bytes()
        root = SafeXML.fromstring(data, forbid_dtd=True)
    except FileNotFoundError as error:
        raise InputError(f"the annotation {path} does not exist: add it, or remove its id from the split") from error
    except OSError as error:
        raise InputError(f"the annotation {describe_os_error(error)}") from error
    except DefusedXmlException as error:
        raise InputError(f"{path} defines a document type or entities, which are not expanded: remove them") from error
    except (ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not well-formed XML ({error}): {_remedy(data)}") from error
    assert root is not None  # it is None only for an empty tree
    return root


def _remedy(data: bytes) -> str:
    """Returns the remedy: the encoding is a common cause, which the message of the parser does not name."""
    declared = re.match(rb"""\s*<\?xml[^>]*encoding=["']([\w.:-]+)""", data)
    if declared and declared[1].lower() not in (b"utf-8", b"utf8", b"us-ascii", b"iso-8859-1"):
        return f"save it in UTF-8 (it declares the encoding {declared[1].decode()})"
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "it is not in UTF-8, so save it in that, or declare its encoding in the first line"
    return "correct it, or export it again"


def _check_tags(root: Element, path: Path, findings: Findings) -> None:
    """Raises `InputError` where something would not be read: other spellings of tags, objects in other places."""
    for element in root.iter():
        if not isinstance(element.tag, str) or element.tag in _TAGS:
            continue
        plain = element.tag.rpartition("}")[2].lower()
        if plain in _TAGS:
            raise InputError(f"{path} has <{element.tag}>, which VOC writes <{plain}>: rename it, or it is not read")
        if element.find("bndbox") is not None and element.tag != "part":
            raise InputError(f"{path} has a <bndbox> in <{element.tag}>, where it is not read: put it into an <object>")
        if closest(plain, _TAGS, _LIKE):
            findings.note(Note.UNREAD, path)
    if root.tag != "annotation":
        raise InputError(f"{path} begins with <{root.tag}> and is no annotation of VOC: begin it with <annotation>")
    if len(list(root.iter("object"))) > len(root.findall("object")):
        raise InputError(
            f"{path} has an <object> within another element, where it is not read: put it directly below <annotation>"
        )
    _check_once(root, ("size",), str(path))


def _check_once(parent: Element, tags: Sequence[str], where: str) -> None:
    for tag in tags:
        if len(parent.findall(tag)) > 1:
            raise InputError(f"{where} has more than one <{tag}>: leave one of them, or make an object of each")


def _read_name(thing: Element, where: str, path: Path, findings: Findings) -> str:
    text = thing.findtext("name") or ""
    name = class_name(text)
    if not name:
        raise InputError(f"{where} has no <name>: write its class there")
    if name != text.strip():
        findings.note(Note.RENAMED, path)
    return name


def _read_flag(thing: Element, where: str) -> bool:
    flag = (thing.findtext("difficult") or "0").strip()
    if flag not in {"0", "1"}:
        raise InputError(f"{where} has <difficult>{flag}</difficult>: write 0 or 1")
    return flag == "1"


def _read_size(root: Element, path: Path) -> Size | None:
    """Returns the stated `(height, width)`; None where it is missing, empty or 0, as some programs write it."""
    size = root.find("size")
    if size is None:
        return None
    _check_once(size, ("width", "height"), f"the <size> of {path}")
    stated = [size.findtext(tag) for tag in ("height", "width")]
    if not all(text and text.strip() for text in stated):
        return None
    height, width = (_number(size, tag, f"<size> of {path}") for tag in ("height", "width"))
    # A size that is not whole fails in the comparison with the image.
    return None if 0 in (height, width) else (height, width)  # type: ignore[return-value]


def _read_box(thing: Element, where: str) -> list[float]:
    box = thing.find("bndbox")
    if box is None:
        raise InputError(
            f"{where} has no <bndbox>: add one with <xmin>, <ymin>, <xmax> and <ymax>, or remove the object"
        )
    _check_once(box, _CORNERS, f"the <bndbox> of {where}")
    return [_number(box, tag, f"<bndbox> of {where}") for tag in _CORNERS]


def _number(parent: Element, tag: str, where: str) -> float:
    text = parent.findtext(tag)
    if text is None:
        raise InputError(f"<{tag}> is missing in the {where}: add it")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < MOST:
        raise InputError(f"<{tag}>{text.strip()}</{tag}> in the {where} is not a number: write it in pixels")
    return value
