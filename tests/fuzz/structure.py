"""Damage after which a file is still of its kind: changed fields of trees, columns of tables and values of tensors."""

import copy
import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import numpy as np
import safetensors.torch
import torch
import yaml
from scipy.io import loadmat, savemat
from torch import Tensor

Change = Callable[[bytes, Random], bytes]
VALUES = (None, "", "x", -1, 0, 1e30, float("nan"), [], {}, True, 10**12)
NUMBERS = (float("nan"), float("inf"), 1e30, -1e30, -1.0)


# Trees: JSON, YAML, and what torch saves


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Returns (container, key) of every value in nested mappings and lists."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _change_tree(tree: Any, random: Random) -> Any:
    """Returns a copy with one value removed, doubled or replaced."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    if not places:
        return random.choice(VALUES)
    inside, key = random.choice(places)
    way = random.choice(("remove", "replace", "replace", "rename" if isinstance(inside, dict) else "duplicate"))
    if way == "remove":
        del inside[key]
    elif way == "replace":
        inside[key] = random.choice(VALUES)
    elif way == "rename":
        inside[f"{key}x" if isinstance(key, str) else 77] = inside.pop(key)
    else:
        inside.insert(key, copy.deepcopy(inside[key]))
    return tree


def _json_field(content: bytes, random: Random) -> bytes:
    return json.dumps(_change_tree(json.loads(content), random), indent=1).encode()


def _yaml_field(content: bytes, random: Random) -> bytes:
    return yaml.safe_dump(_change_tree(yaml.safe_load(content), random), sort_keys=False).encode()


def _xml_field(content: bytes, random: Random) -> bytes:
    root = ElementTree.fromstring(content)
    inside = random.choice([element for element in root.iter() if len(element)])
    child = random.choice(list(inside))
    way = random.choice(("remove", "duplicate", "rename", "text"))
    if way == "remove":
        inside.remove(child)
    elif way == "duplicate":
        inside.append(copy.deepcopy(child))
    elif way == "rename":
        child.tag += "x"
    else:
        child.text = random.choice(("", " ", "nan", "1e30", "-5", "unknown", "0"))
    return ElementTree.tostring(root)


def _csv_column(content: bytes, random: Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    column = random.randrange(len(rows[0]))
    way = random.choice(("remove", "duplicate", "blank", "cell", "rename"))
    for row in rows:
        if way == "remove":
            del row[column]
        elif way == "duplicate":
            row.append(row[column])
        elif way == "blank" and row is not rows[0]:
            row[column] = ""
    if way == "cell":
        random.choice(rows)[column] = random.choice(("nan", "", "1e30", "-5", "x", "inf"))
    elif way == "rename":
        rows[0][column] += "x"
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


# Images

ORIENTATION = (b"\x12\x01\x03\x00\x01\x00\x00\x00", b"\x01\x12\x00\x03\x00\x00\x00\x01")  # little-, big-endian


def _orientation(content: bytes, random: Random) -> bytes:
    """Writes a different EXIF orientation and keeps the pixels."""
    for i, tag in enumerate(ORIENTATION):
        at = content.find(tag) + len(tag)
        if at >= len(tag):
            value = random.choice((0, 2, 3, 6, 8, 9)).to_bytes(2, ("little", "big")[i])
            return content[:at] + value + content[at + 2 :]
    return content


# Tensors


def _spoil(value: Tensor, random: Random) -> Tensor:
    """Returns a copy in which one element is an implausible number."""
    value = value.clone()
    if not value.numel():
        return value
    limits = None if value.is_floating_point() else torch.iinfo(value.dtype)
    number = random.choice(NUMBERS) if limits is None else random.choice((limits.min, limits.max, 7))
    value.view(-1)[random.randrange(value.numel())] = number
    return value


def _change_tensors(tensors: dict[str, Tensor], random: Random) -> dict[str, Tensor]:
    name = random.choice(sorted(tensors))
    way = random.choice(("number", "number", "number", "remove", "rename", "flatten", "type"))
    value = tensors[name]
    others = {key: other for key, other in tensors.items() if key != name}
    if way == "remove":
        return others
    if way == "rename":
        return others | {f"{name}x": value}
    if way == "flatten":
        return others | {name: value.reshape(-1)[: value.numel() // 2].clone()}
    if way == "type":
        return others | {name: value.double() if value.is_floating_point() else value.float()}
    return others | {name: _spoil(value, random)}


def _safetensors(content: bytes, random: Random) -> bytes:
    tensors = _change_tensors(safetensors.torch.load(content), random)
    return safetensors.torch.save(tensors, metadata_of(content))


def metadata_of(content: bytes) -> dict[str, str] | None:
    """Returns the metadata of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] | None = json.loads(content[8 : 8 + size]).get("__metadata__")
    return metadata


def _safetensors_metadata(content: bytes, random: Random) -> bytes:
    metadata = {key: _metadata_field(value, random) for key, value in (metadata_of(content) or {}).items()}
    return safetensors.torch.save(safetensors.torch.load(content), metadata)


def _metadata_field(value: str, random: Random) -> str:
    try:
        return _json_field(value.encode(), random).decode()
    except ValueError:  # plain text
        return random.choice(("", value[:-1], value[::-1]))


def _torch(content: bytes, random: Random) -> bytes:
    state = torch.load(io.BytesIO(content), weights_only=True)
    if random.random() < 0.5 and isinstance(state.get("model"), dict):
        state["model"] = _change_tensors(state["model"], random)
    elif all(isinstance(value, Tensor) for value in state.values()):
        state = _change_tensors(state, random)
    else:
        state = _change_tree({key: value for key, value in state.items() if key != "model"}, random) | {
            "model": state["model"]
        }
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def _mat(content: bytes, random: Random) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mat"
        path.write_bytes(content)
        variables = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
        cells = variables["boxes"].ravel()
        way = random.choice(("number", "number", "remove", "shape", "shorten"))
        if way == "number":
            at = random.randrange(len(cells))
            boxes = np.array(cells[at], np.float64)
            if boxes.size:
                boxes.flat[random.randrange(boxes.size)] = random.choice(NUMBERS)
            cells[at] = boxes
        elif way == "remove":
            del variables[random.choice(sorted(variables))]
        elif way == "shape":
            cells[random.randrange(len(cells))] = np.zeros((3, 5))
        else:
            variables["boxes"] = variables["boxes"].reshape(1, -1)[:, 1:]
        savemat(path, variables)
        return path.read_bytes()


STRUCTURED: dict[str, tuple[tuple[str, ...], Change]] = {
    "change a field (json)": ((".json",), _json_field),
    "change a field (yaml)": ((".yaml",), _yaml_field),
    "change a field (xml)": ((".xml",), _xml_field),
    "change a column": ((".csv",), _csv_column),
    "change the orientation": ((".jpg",), _orientation),
    "change a tensor": ((".safetensors",), _safetensors),
    "change the metadata": ((".safetensors",), _safetensors_metadata),
    "change a value (torch)": ((".pt", ".pth"), _torch),
    "change a cell (mat)": ((".mat",), _mat),
}
