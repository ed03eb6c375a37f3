"""The features of all training RoIs, computed once and kept in one memory-mapped file.

Shapes: R: RoIs of an image   W: distinct RoIs of an image   N: distinct RoIs of all images   D: features   K: classes
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.ops import box_iou

from ohem.checks import is_finite
from ohem.data.loader import Example
from ohem.detection.fast_rcnn import FastRCNN
from ohem.errors import InputError
from ohem.io.files import atomic_write
from ohem.rois import IGNORE, RoIs, match
from ohem.training.fingerprints import digest_of_weights

FORMAT = 2  # increase it when the content of the file or its computation changes
_KEY = "ohem.features"


class Overlaps(NamedTuple):
    """Highest IoU of RoIs with the objects of each class. There are R of them, or N after RoIs are merged."""

    objects: Tensor
    """(R, K) float32: highest IoU with objects that are not ignored; 0 for a RoI on an ignored region."""
    anything: Tensor
    """(R, K) float32: IoU with all objects, also difficult ones and crowds; 1 for a RoI on an ignored region."""

    def signs(self, positive_iou: float, negative_iou: float) -> NDArray[np.int8]:
        """Returns the sign of the RoIs for each class: 1 positive, -1 negative, 0 neither.

        Args:
            positive_iou: lowest IoU of a positive with an object of the class.
            negative_iou: IoU with every object of the class that a negative is below.

        Returns:
            (R, K) int8.
        """
        positive, negative = self.objects >= positive_iou, self.anything < negative_iou
        signs: NDArray[np.int8] = (positive.to(torch.int8) - negative.to(torch.int8)).numpy()
        return signs


class RoIFeatures(NamedTuple):
    """Features and overlaps of RoIs. RoIs with the same window on the feature map are one example."""

    features: Tensor
    """(N, D) float16 or float32: input of the output layers of the RoI network."""
    overlaps: Overlaps
    targets: Tensor | None = None
    """(N, 4) float32: box regression to the object with the highest IoU, not normalised; None where it is not used."""


class Parts:
    """Features of single images, each in a file of its own, so that a stopped computation goes on where it was.

    Args:
        folder: folder of the files, which is made.
        made_with: as for `cached_features`.
        count: number of images.
        make: computes the features of an image.
    """

    def __init__(
        self, folder: Path, made_with: Mapping[str, Any], count: int, make: Callable[[int], RoIFeatures]
    ) -> None:
        self.folder, self.made_with, self.count, self.make = folder, {"format": FORMAT, **made_with}, count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> RoIFeatures:
        """Returns the features of image `index`, from its file if it is whole."""
        path = self.folder / f"{index}.safetensors"
        if _reason_to_make(path, self.made_with):
            self.folder.mkdir(parents=True, exist_ok=True)
            _save(path, _as_tensors(self.make(index)), self.made_with)
        return _as_features(_tensors(path))

    def remove(self) -> None:
        """Removes the files: the features are in one file now."""
        shutil.rmtree(self.folder, ignore_errors=True)


def cached_features(
    path: Path, made_with: Mapping[str, Any], make: Iterable[RoIFeatures], dtype: torch.dtype
) -> RoIFeatures:
    """Returns the features in a file; writes the file first if it is missing, damaged or made from something else.

    The features are read from the file when they are used, so they need not fit into memory.

    Args:
        path: .safetensors file.
        made_with: everything that the features depend on, for JSON.
        make: features of each image, computed only if the file has to be written.
        dtype: number format of the features in the file.

    Raises:
        InputError: the file cannot be written, there is no RoI at all, or a feature is not finite in `dtype`.
    """
    made_with = {"format": FORMAT, **made_with}
    reason = _reason_to_make(path, made_with)
    if reason:
        print(f"{path}: {reason}")
        try:
            _write(path, made_with, make, dtype)
        except (OSError, SafetensorError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise InputError(
                f"{path}: the features cannot be written ({why}): make the folder writable or free space"
            ) from error
    return _as_features(_tensors(path))


@torch.inference_mode()
def roi_features(model: FastRCNN, examples: Iterable[Example]) -> Iterator[RoIFeatures]:
    """Computes the features of the W distinct RoIs of each image; they are on the CPU."""
    device = model.box_mean.device
    for example in examples:
        target = {name: value.to(device) for name, value in example.target.items()}
        rois = match([example.proposals.to(device)], [target])
        features, which = model.distinct_features(model.feature_map([example.image.to(device)]), rois)
        features = features[:, : model.scores.in_features]  # without those of the box regression alone
        parts = overlaps_of(rois, target, model.num_classes - 1)
        merged = (part.new_zeros(len(features), part.shape[1]) for part in parts)
        index = which[:, None].expand_as(parts.objects)
        highest = (m.scatter_reduce(0, index, part, "amax").cpu() for m, part in zip(merged, parts, strict=True))
        yield RoIFeatures(features.cpu(), Overlaps(*highest))


def overlaps_of(rois: RoIs, target: Mapping[str, Tensor], classes: int) -> Overlaps:
    """Computes the overlaps of the R RoIs of one image with its ground truth.

    Args:
        rois: the RoIs.
        target: ground truth of the image.
        classes: number of classes K.
    """
    ious = box_iou(rois.boxes, target["boxes"])
    labels = (target["labels"] - 1).expand_as(ious)
    nothing = ious.new_zeros(len(rois), classes)
    ignored = (rois.labels == IGNORE)[:, None]
    objects = nothing.scatter_reduce(1, labels, torch.where(target["ignore"], 0, ious), "amax")
    anything = nothing.scatter_reduce(1, labels, ious, "amax")
    return Overlaps(torch.where(ignored, 0, objects), torch.where(ignored, 1, anything))


def _reason_to_make(path: Path, made_with: Mapping[str, Any]) -> str:
    """Returns why the file has to be made, "" if it can be used."""
    if not path.exists():
        return "computing the features of all training RoIs"
    try:
        with safe_open(path, framework="pt") as file:
            before = json.loads(file.metadata()[_KEY])
        changed = [f"{key} {before.get(key)}, now {now}" for key, now in made_with.items() if before.get(key) != now]
        if changed:
            return f"made with {changed[0]}: made again"
        if digest_of_weights(_tensors(path)) != before["content"]:
            return "damaged: made again"
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        return f"not a complete file of features ({error}): made again"
    return ""


def _tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of the file, which are read when they are used."""
    with safe_open(path, framework="pt") as file:  # numpy would copy, torch maps the file
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping


def _as_features(tensors: Mapping[str, Tensor]) -> RoIFeatures:
    overlaps = Overlaps(tensors["objects"], tensors["anything"])
    return RoIFeatures(tensors["features"], overlaps, tensors.get("targets"))


def _as_tensors(rows: RoIFeatures) -> dict[str, Tensor]:
    tensors = {"features": rows.features, **rows.overlaps._asdict()}
    return tensors if rows.targets is None else {**tensors, "targets": rows.targets}


def _save(path: Path, tensors: dict[str, Tensor], made_with: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        head = {**made_with, "content": digest_of_weights(tensors)}
        save_file(tensors, temporary, {_KEY: json.dumps(head)})


def _write(path: Path, made_with: Mapping[str, Any], make: Iterable[RoIFeatures], dtype: torch.dtype) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A safetensors file begins with the number of rows, so the rows are kept in another file until it is known.
    with tempfile.TemporaryFile(dir=path.parent) as raw:
        others: list[dict[str, Tensor]] = []
        for part in make:
            rounded = part.features.to(dtype)
            if not is_finite(rounded):
                raise InputError(f"{path}: a feature is not finite in {dtype}: try --precision float32")
            raw.write(rounded.numpy().tobytes())
            others.append({name: value for name, value in _as_tensors(part).items() if name != "features"})
        raw.flush()
        tensors = {name: torch.cat([part[name] for part in others]) for name in others[0]}
        count = len(tensors["objects"])
        if not count:
            raise InputError(f"{path}: the training images have no RoI, neither object nor proposal: use other images")
        shape = (count, rounded.shape[1])
        tensors["features"] = torch.from_numpy(np.memmap(raw, rounded.numpy().dtype, "r+", shape=shape))
        _save(path, tensors, made_with)
