"""Pre-trained weights of backbones. They are checked completely before the first tensor is copied."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from ohem.checks import is_finite
from ohem.detection.backbones.base import Backbone, Normalisation
from ohem.errors import InputError
from ohem.extras import import_extra
from ohem.io.digests import check_crcs

# "torchvision", "torchvision:IMAGENET1K_V1", "torchvision:VGG16_Weights.IMAGENET1K_V1", "VGG16_Weights.IMAGENET1K_V1"
TORCHVISION_NAME = re.compile(r"torchvision(?::(?P<name>.*))?|(?P<member>\w+_Weights\.\w+)")


@dataclass(frozen=True)
class _PretrainedWeights:
    """Content of a source: its tensors, our name -> its name of each tensor, and its input normalisation if known."""

    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    normalisation: Normalisation | None = None


def load_weights(backbone: Backbone, source: str | Path, normalisation: Normalisation | None = None) -> bool:
    """Loads pre-trained weights into `backbone`, and sets the input normalisation that they were trained with.

    float16 is read as float32. Tensors that the backbone does not have, such as an ImageNet classifier, are left out.
    Layers that published weights do not have, such as a new RoI network, keep their values.

    Args:
        backbone: the backbone to fill.
        source: a .safetensors, .pth or .pt file with torchvision's names or ours; a .caffemodel (without prototxt); or
            weights of torchvision by name, which may be downloaded: "torchvision:IMAGENET1K_V1",
            "VGG16_Weights.IMAGENET1K_V1", or "torchvision" for the default.
        normalisation: input normalisation of a file that does not state it. Our checkpoints hold it; torchvision's
            weights, by name or in the file that torchvision downloads, state it; a .caffemodel has Caffe's; other files
            are assumed to have the normalisation of the backbone's constructor.

    Returns:
        Whether every tensor of the backbone is from the source, so that `init_head` is not needed.

    Raises:
        InputError: the source cannot be read or does not fit. The backbone is not changed.
    """
    weights = _read(backbone, str(source))
    _copy(str(source), backbone.state_dict(), weights)
    stated = normalisation or weights.normalisation
    if stated is not None:
        backbone.normalisation = stated
    return len(weights.names) == len(backbone.state_dict())


def check_source(source: str) -> None:
    """Raises `InputError` where `source` names a file that does not exist."""
    if not TORCHVISION_NAME.fullmatch(source):
        _file(source)


def load_stages(stages: nn.Module, source: str, model: str, prefix: str) -> None:
    """Loads pre-trained weights of torchvision's network `model` into `stages`, its stages in a detector.

    Args:
        stages: the stages to fill.
        source: as for `load_weights`, except .caffemodel.
        model: name of the classification network.
        prefix: prefix of the published names.

    Raises:
        InputError: the source cannot be read or does not fit. Nothing is changed.
    """
    ours = {name: value for name, value in stages.state_dict().items() if not name.endswith("num_batches_tracked")}
    names = {name: prefix + name for name in ours}
    if TORCHVISION_NAME.fullmatch(source):
        tensors = _downloaded(torchvision_weights(model, source), source)
    else:
        tensors = _strip(_tensors(_file(source)))
    _copy(source, ours, _PretrainedWeights(tensors, names))


def stated_input(source: str, model: str) -> Normalisation | None:
    """Returns the input normalisation of weights of torchvision's network `model`, by their name or file name."""
    if TORCHVISION_NAME.fullmatch(source):
        return _input_of(torchvision_weights(model, source))
    known = get_model_weights(model)
    # The name under which torchvision publishes them, "vgg16-397923af.pth".
    return next((_input_of(weights) for weights in known if weights.url.endswith(f"/{Path(source).name}")), None)


def _copy(source: str, ours: Mapping[str, Tensor], weights: _PretrainedWeights) -> None:
    _check(source, ours, weights)
    with torch.no_grad():
        for name, theirs in weights.names.items():
            ours[name].copy_(weights.tensors[theirs].reshape(ours[name].shape))


def _read(backbone: Backbone, source: str) -> _PretrainedWeights:
    if TORCHVISION_NAME.fullmatch(source):
        return _read_torchvision(backbone, source)
    path = _file(source)
    if path.suffix == ".caffemodel":
        return _read_caffe(backbone, path)
    tensors = _strip(_tensors(path))
    if "input_order" in tensors:  # saved by us
        _check_input(source, tensors)
        return _PretrainedWeights(tensors, {name: name for name in backbone.state_dict()})
    return _PretrainedWeights(tensors, _published_names(backbone, source), _stated(backbone, path))


def _published_names(backbone: Backbone, source: str) -> dict[str, str]:
    """Returns our name -> torchvision's name of every tensor that torchvision's weights have."""
    prefixes = backbone.pretrained.names
    if not prefixes:
        raise InputError(
            f"{source}: this backbone has no weights in torchvision's layout; "
            "give a checkpoint of this program" + (" or a .caffemodel" if backbone.pretrained.caffe else "")
        )
    covered = filter(backbone.pretrained.covers, backbone.state_dict())
    matches = ((name, prefix) for name in covered for prefix in prefixes if name.startswith(prefix))
    return {name: prefixes[prefix] + name.removeprefix(prefix) for name, prefix in matches}


# Files


def _file(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise InputError(
            f"{source}: no such file of weights; give a .safetensors, .pth or .caffemodel file, "
            "or torchvision:NAME for torchvision's"
        )
    return path


def _tensors(path: Path) -> dict[str, Tensor]:
    """Loads the named tensors of a .safetensors file or a pickled state dict on the CPU."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            check_crcs(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the file was written; faults are reported below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: not a plain state dict: it is damaged, or holds Python objects, which are not loaded since they "
            "can run code; save its state_dict() alone with torch.save or as .safetensors"
        ) from error
    except Exception as error:  # reading a damaged pickle may raise anything
        raise InputError(f"{path}: cannot be read as weights ({_first_line(error)}); download it again") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = (
        {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise InputError(f"{path}: holds no named tensors; give a state dict (name -> tensor)")
    return tensors


def _strip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes the prefix of a whole detector ("backbone.") or of several devices ("module.") from the names."""
    prefix = next(
        (p for p in ("module.backbone.", "backbone.", "module.") if any(k.startswith(p) for k in tensors)), ""
    )
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


# torchvision


def _read_torchvision(backbone: Backbone, source: str) -> _PretrainedWeights:
    model = backbone.pretrained.torchvision
    if not model:
        raise InputError(f"{source}: torchvision has no weights for this backbone; give a file")
    weights = torchvision_weights(model, source)
    return _PretrainedWeights(_downloaded(weights, source), _published_names(backbone, source), _input_of(weights))


@contextmanager
def downloading(weights: Any, source: str) -> Iterator[None]:
    """Turns a failed download of `weights` in this context into one sentence."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{source}: could not be downloaded from {weights.url} ({_first_line(error)}); "
            "fetch that file yourself and give its path"
        ) from error


def _downloaded(weights: Any, source: str) -> Mapping[str, Tensor]:
    with downloading(weights, source):
        return weights.get_state_dict(progress=False, check_hash=True)  # type: ignore[no-any-return]


def torchvision_weights(model: str, source: str) -> Any:
    """Returns the weights of torchvision's network `model` that `source` names, a member of its enum.

    Raises:
        InputError: there are no weights of that name.
    """
    known = get_model_weights(model)
    match = TORCHVISION_NAME.fullmatch(source)
    name = (match and (match["name"] or match["member"])) or "DEFAULT"
    member = known.__members__.get(name.removeprefix(f"{known.__name__}."))
    if member is None:
        raise InputError(
            f"{source}: torchvision has no such weights for {model}; it has {', '.join(known.__members__)}"
        )
    return member


def _stated(backbone: Backbone, path: Path) -> Normalisation | None:
    model = backbone.pretrained.torchvision
    return stated_input(str(path), model) if model else None


def _input_of(weights: Any) -> Normalisation:
    preset = weights.transforms()
    return Normalisation.unit(preset.mean, preset.std)


# Caffe


def _read_caffe(backbone: Backbone, path: Path) -> _PretrainedWeights:
    layers = backbone.pretrained.caffe
    if not layers:
        raise InputError(f"{path}: there is no Caffe model for this backbone; give a .safetensors or .pth file")
    modules = (
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and backbone.pretrained.covers(f"{name}.")
    )
    names = {
        f"{module}.{kind}": f"{layer}.{kind}"
        for module, layer in zip(modules, layers, strict=True)
        for kind in ("weight", "bias")
    }
    return _PretrainedWeights(_caffe_tensors(path, layers), names, backbone.pretrained.caffe_input)


# Checks


def _check(source: str, ours: Mapping[str, Tensor], weights: _PretrainedWeights) -> None:
    """Raises `InputError` unless all tensors of the backbone are in `weights`, of the right shape and finite."""
    missing, other, bad = [], [], []
    for name, theirs in weights.names.items():
        tensor, want = weights.tensors.get(theirs), tuple(ours[name].shape)
        if tensor is None:
            missing.append(theirs)
        elif _squeezed(tensor.shape) != _squeezed(want):
            other.append(f"{theirs} {tuple(tensor.shape)} instead of {want}")
        elif not is_finite(tensor):
            bad.append(theirs)
    faults = (("missing", missing), ("of another shape", other), ("with values that are not finite", bad))
    texts = [f"{len(items)} {fault}: {_some(items)}" for fault, items in faults if items]
    if texts:
        raise InputError(
            f"{source}: does not fit the backbone; of {len(weights.names)} tensors {'; '.join(texts)}; "
            "give weights made for this network, or choose the backbone that they were made for"
        )


def _check_input(source: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises `InputError` where our own file has an impossible input normalisation."""
    order, std, scale = (tensors.get(name) for name in ("input_order", "input_std", "feature_scale"))
    possible = order is not None and order.tolist() in ([0, 1, 2], [2, 1, 0])
    if not possible or any(values is not None and not (values > 0).all() for values in (std, scale)):
        raise InputError(
            f"{source}: is damaged: its input_order, input_std or feature_scale is impossible; save it again"
        )


def _squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    """Returns the shape without ones: old Caffe files have a bias as 1 x 1 x 1 x N, OpenCV returns it as N x 1."""
    return tuple(n for n in shape if n != 1)


def _some(items: Sequence[str], show: int = 3) -> str:
    more = len(items) - show
    return ", ".join(items[:show]) + (f" and {more} more" if more > 0 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _caffe_tensors(path: Path, layers: Sequence[str]) -> dict[str, Tensor]:
    """Reads the weights and biases of the named layers of a .caffemodel; layers that it does not have are left out.

    Raises:
        InputError: it cannot be read, or OpenCV is not installed.
    """
    cv2 = import_extra("cv2", f"{path}: reading a .caffemodel")
    try:
        net = cv2.dnn.readNetFromCaffe(_prototxt(layers), np.fromfile(path, np.uint8))
    except (cv2.error, OSError) as error:
        raise InputError(f"{path}: is not a .caffemodel, or is cut short; download it again") from error
    tensors = {}
    for layer, (i, kind) in ((layer, p) for layer in layers for p in enumerate(("weight", "bias"))):
        try:
            tensors[f"{layer}.{kind}"] = torch.from_numpy(net.getParam(layer, i).copy())
        except cv2.error:  # the layer is missing, or has no bias
            continue
    return tensors


def _prototxt(layers: Iterable[str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns the shortest network description that makes OpenCV keep the tensors of these layers, of any shape.

    It is never run. All layers are declared as convolutions, since OpenCV returns the tensors of those unchanged.
    """
    data = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
    conv = 'layer {{ name: "{0}" type: "Convolution" bottom: "data" top: "{0}" convolution_param {{ {1} }} }}'
    lines = chain([data], (conv.format(layer, "num_output: 1 kernel_size: 1") for layer in layers))
    return np.frombuffer("\n".join(lines).encode(), np.uint8)
