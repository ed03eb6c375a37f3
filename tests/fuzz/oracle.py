"""The content of a damaged file that a user wrote, read without the program.

A damaged file can be valid, such as a box with a different digit. The program cannot notice this and must use the
content of the file. This module reads the file in its own way and writes it again in plain form; from that file the
program must get the same result. Impossible content is not written.
"""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image, ImageOps
from scipy.io import loadmat, savemat

from tests.fuzz.damage import remove
from tests.helpers.datasets import OBJECT

HEIGHT, WIDTH = 64, 80
SLACK = 1.0  # pixels; the conventions of boxes differ by this much


class Nonsense(Exception):
    """Reports a file that cannot be read or has impossible content."""


def rewrite(path: Path, target: Path) -> None:
    """Writes the content of the damaged file `path` over the complete file `target`; raises Nonsense if it has none."""
    writer = next((write for suffixes, write in WRITERS.items() if path.suffix in suffixes), None)
    if writer is None or not path.is_file():
        raise Nonsense
    try:
        writer(path, target)
    except Nonsense:
        raise
    except Exception as error:
        raise Nonsense(str(error)) from error


def _must(condition: bool) -> None:
    if not condition:
        raise Nonsense


def _inside(x1: float, y1: float, x2: float, y2: float) -> bool:
    """Returns whether a box has an area and lies in the toy images, allowing for the rounding of other conventions."""
    sane = all(map(math.isfinite, (x1, y1, x2, y2)))
    return sane and -SLACK <= x1 < x2 <= WIDTH + SLACK and -SLACK <= y1 < y2 <= HEIGHT + SLACK


def _no_twins(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    _must(len(dict(pairs)) == len(pairs))
    return dict(pairs)


def _picture(path: Path, target: Path) -> None:
    with Image.open(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        _must(upright is not None and sorted(upright.size) == sorted((WIDTH, HEIGHT)))
        pixels = upright.convert("RGB")
    remove(target)
    pixels.save(target.with_suffix(".png"))


def _xml(path: Path, target: Path) -> None:
    root = ElementTree.fromstring(path.read_bytes())

    def one(inside: ElementTree.Element, tag: str) -> ElementTree.Element:
        elements = inside.findall(tag)
        _must(len(elements) == 1)
        return elements[0]

    size = one(root, "size")
    width, height = (int(one(size, tag).text or "") for tag in ("width", "height"))
    text = f"<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
    known = {"size", "object"}
    _must(all(child.tag in known for child in root))
    for thing in root.findall("object"):
        box = [float(one(one(thing, "bndbox"), tag).text or "") for tag in ("xmin", "ymin", "xmax", "ymax")]
        _must(_inside(box[0] - 1, box[1] - 1, box[2], box[3]))
        difficult, name = (one(thing, "difficult").text or "").strip(), (one(thing, "name").text or "").strip()
        _must(difficult in ("0", "1") and bool(name))
        text += OBJECT.format(escape(name), *box, difficult)
    target.write_text(text + "</annotation>\n", encoding="utf-8")


def _split(path: Path, target: Path) -> None:
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    _must(bool(lines) and len(set(lines)) == len(lines))
    target.write_text("".join(f"{line}\n" for line in lines))


def _text(path: Path, target: Path) -> None:
    (_labels if "labels" in target.parts else _split)(path, target)


def _labels(path: Path, target: Path) -> None:
    """Reads rows of YOLO: class and box, or class and points, in fractions."""
    rows = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.split():
            continue
        number, *values = map(float, line.split())
        _must(number in (0, 1) and "_" not in line and all(map(math.isfinite, values)))
        if len(values) == 4:
            x, y, width, height = values
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            _must(width >= 0 and height >= 0)
        else:
            _must(len(values) >= 6 and len(values) % 2 == 0)
            box = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
        _must(_inside(box[0] * WIDTH, box[1] * HEIGHT, box[2] * WIDTH, box[3] * HEIGHT))
        rows.append(" ".join(line.split()))
    target.write_text("".join(f"{row}\n" for row in dict.fromkeys(rows)))


def _json(path: Path, target: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_twins)
    by_key = {"regions": _regions, "decisions": _decisions}
    known = [write for key, write in by_key.items() if key in content]
    write = _results if isinstance(content, list) else [*known, _coco][0]
    write(content, target)


def _results(content: list[dict[str, Any]], target: Path) -> None:
    """Writes results in COCO's format, each with its score, highest first, which must not change anything."""
    for one in content:
        x, y, width, height = one["bbox"]
        detected = "category_id" in one
        sane = _mostly_inside(x, y, width, height) if detected else _inside(x, y, x + width, y + height)
        _must(type(one["image_id"]) in (int, str) and sane and one.get("category_id", 1) in (1, 2))
        _must(-1e12 < one["score"] < 1e12 and type(one["score"]) in (int, float))
        _must(all(type(value) in (int, float) for value in one["bbox"]))
    ordered = sorted(content, key=lambda one: -one["score"])
    target.write_text(json.dumps(ordered))


def _mostly_inside(x: float, y: float, width: float, height: float) -> bool:
    """Returns whether at least half of a detection lies in the toy images."""
    across, down = min(x + width, WIDTH) - max(x, 0), min(y + height, HEIGHT) - max(y, 0)
    return min(width, height) >= 0 and max(across, 0) * max(down, 0) >= 0.5 * width * height


def _regions(content: dict[str, Any], target: Path) -> None:
    for one in content["regions"]:
        _must(len(one["box"]) == 4 and _inside(*one["box"]) and Path(one["image"]).is_file())
        _must(all(type(value) in (int, float) for value in one["box"]))
    target.write_text(json.dumps(content))


def _decisions(content: dict[str, Any], target: Path) -> None:
    """Writes the decisions of `ohem audit --apply`; a box may reach out of the image, which clips it."""
    known = json.loads(target.read_text())
    _must(content["sources"] == known["sources"] and content["classes"] == known["classes"])
    boxes = {json.dumps([d["image"], d["given"]]): d["given_box"] for d in known["decisions"]}
    for one in content["decisions"]:
        _must(one["decision"] in ("accept", "reject", "skip", "unsure"))
        _must({one["given_class"], one["proposed_class"]} <= {*known["classes"], None})
        place = json.dumps([one["image"], one["given"]])
        given, proposed = one["given_box"], one["proposed_box"]
        _must(place in boxes and (given is None) == (boxes[place] is None))
        _must(given is None or all(abs(a - b) < 0.1 for a, b in zip(given, boxes[place], strict=True)))
        _must(proposed is None or (proposed[0] < proposed[2] and proposed[1] < proposed[3]))
        _must(given is not None or None not in (proposed, one["proposed_class"]))
    target.write_text(json.dumps(content))


def _coco(content: dict[str, Any], target: Path) -> None:
    for group in ("images", "annotations", "categories"):
        ids = [one["id"] for one in content[group]]
        _must(len(set(ids)) == len(ids) and all(type(number) is int for number in ids))
    images = {one["id"] for one in content["images"]}
    categories = {one["id"] for one in content["categories"]}
    for thing in content["annotations"]:
        x, y, width, height = thing["bbox"]
        _must(_inside(x, y, x + width, y + height) and thing["iscrowd"] in (0, 1))
        _must(thing["image_id"] in images and thing["category_id"] in categories)
        _must(0 < thing.get("area", 1) <= WIDTH * HEIGHT)
    target.write_text(json.dumps(content))


class _NoTwins(yaml.SafeLoader):
    """Refuses a mapping that has a key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        _must(len(set(keys)) == len(keys))
        return super().construct_mapping(node, deep)


def _config(path: Path, target: Path) -> None:
    content = yaml.load(path.read_text(encoding="utf-8-sig"), _NoTwins)
    if target.name == "data.yaml":
        _must(all(type(name) in (int, str) for name in content["names"]) and len(content["names"]) == 2)
        content["names"] = [str(name) for name in content["names"]]
        _must(content.get("nc", 2) == 2)
    _must(isinstance(content, dict) and _sane(content))
    target.write_text(yaml.safe_dump(content))


def _sane(value: Any) -> bool:
    """Returns whether no value is empty, and no number is negative or extremely large."""
    if isinstance(value, dict | list):
        return bool(value) and all(map(_sane, value.values() if isinstance(value, dict) else value))
    if isinstance(value, bool):
        return True
    try:
        return 0 <= float(value) < 1e12
    except (TypeError, ValueError):
        return isinstance(value, str) and bool(value)


def _npz(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        _must(archive.testzip() is None and len(set(archive.namelist())) == len(archive.namelist()))
    arrays = dict(np.load(path))
    _must(all(_inside(*box) for boxes in arrays.values() for box in boxes))
    np.savez(target, **arrays)


def _mat(path: Path, target: Path) -> None:
    content = loadmat(path)
    boxes, images = content["boxes"].ravel(), content["images"].ravel()
    ids = [str(np.asarray(cell).ravel()[0]) for cell in images]
    _must(len(ids) == len(boxes) == len(set(ids)))
    for cell in boxes:
        _must(cell.ndim == 2 and cell.shape[1] == 4 and cell.dtype.kind in "iuf")
        _must(all(_inside(x1 - 1, y1 - 1, x2, y2) for y1, x1, y2, x2 in np.asarray(cell, np.float64)))
    names = np.empty((1, len(ids)), object)
    names.ravel()[:] = ids
    savemat(target, {"boxes": boxes.reshape(1, -1), "images": names})


def _weights(path: Path, target: Path) -> None:
    """Reads safetensors, which has a length for each tensor and no checksum."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size], object_pairs_hook=_no_twins)
    ranges = sorted(one["data_offsets"] for name, one in header.items() if name != "__metadata__")
    _must(ranges[0][0] == 0 and ranges[-1][1] == len(content) - 8 - size)
    tensors = safetensors.torch.load(content)
    _must(all(value.isfinite().all() for value in tensors.values()))
    target.write_bytes(safetensors.torch.save(tensors))


def _pickled_weights(path: Path, target: Path) -> None:
    """Reads a zip file, which has a checksum for each tensor."""
    with zipfile.ZipFile(path) as archive:
        _must(archive.testzip() is None)
    tensors = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
    tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    _must(all(value.isfinite().all() for value in tensors.values()))
    torch.save(tensors, target)


WRITERS: dict[tuple[str, ...], Callable[[Path, Path], None]] = {
    (".png", ".jpg"): _picture,
    (".xml",): _xml,
    (".txt",): _text,
    (".json",): _json,
    (".yaml",): _config,
    (".mat",): _mat,
    (".npz",): _npz,
    (".safetensors",): _weights,
    (".pth",): _pickled_weights,
}


# Files that the program wrote and a user may edit


def edited_settings(before: Path, after: Path) -> bool:
    """Returns whether a recipe.yaml differs only in plausible settings of the test and the machine."""
    try:
        was, now = (yaml.load(path.read_text(), _NoTwins) for path in (before, after))
        groups = {key for key in was | now if was.get(key) != now.get(key)}
        return groups <= {"test", "run"} and all(_same_kind(was[key], now[key]) for key in groups)
    except (Nonsense, yaml.YAMLError, OSError, ValueError, TypeError, AttributeError, KeyError):
        return False


def _same_kind(was: dict[str, Any], now: dict[str, Any]) -> bool:
    """Returns whether the same settings have plausible values of the same type."""
    return was.keys() == now.keys() and all(
        was[key] == now[key] or (type(was[key]) is type(now[key]) and _sane(now[key])) for key in was
    )


# Caffe's format


def says_caffe(path: Path, taken: Mapping[str, str]) -> bool:
    """Returns whether the weights that were read from a .caffemodel, as digests, are those of the file, and finite."""
    try:
        layers = _caffe_blobs(path.read_bytes())
    except (Nonsense, UnicodeDecodeError):
        return False
    said = [np.frombuffer(blob, "<f4") for name in ("conv1", "conv2", "fc6", "fc7") for blob in layers.get(name, [])]
    digests = [hashlib.sha256(blob.tobytes()).hexdigest() for blob in said]
    weights = [text.split()[-1] for name, text in taken.items() if name.endswith((".weight", ".bias"))]
    return digests == weights and all(np.isfinite(blob).all() for blob in said)


def _caffe_blobs(content: bytes) -> dict[str, list[bytes]]:
    """Returns layer name -> the raw float32 of its blobs, of a NetParameter (field 100: name 1, blobs 7: data 5)."""
    layers: dict[str, list[bytes]] = {}
    for layer in _fields(content, 100):
        names = _fields(layer, 1)
        _must(len(names) == 1 and names[0].decode() not in layers)
        layers[names[0].decode()] = [b"".join(_fields(blob, 5)) for blob in _fields(layer, 7)]
    return layers


def _fields(message: bytes, wanted: int) -> list[bytes]:
    """Returns the length-delimited fields `wanted` of a protocol-buffer message that has no other kind of field."""
    at, values = 0, []
    while at < len(message):
        tag, at = _varint(message, at)
        size, at = _varint(message, at)
        _must(tag & 7 == 2 and at + size <= len(message))
        if tag >> 3 == wanted:
            values.append(message[at : at + size])
        at += size
    return values


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        _must(at < len(message) and shift < 64)
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 128:
            return value, at
