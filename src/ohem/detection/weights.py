"""Pre-trained weights into a backbone: checked in full before the first tensor is copied, normalisation included."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from ohem.detection.backbones.base import Backbone, Normalisation
from ohem.detection.caffe import caffe_tensors
from ohem.errors import InputError
from ohem.files import check_crcs

# "torchvision", "torchvision:IMAGENET1K_V1", "torchvision:VGG16_Weights.IMAGENET1K_V1", "VGG16_Weights.IMAGENET1K_V1"
TORCHVISION_NAME = re.compile(r"torchvision(?::(?P<name>.*))?|(?P<member>\w+_Weights\.\w+)")


@dataclass(frozen=True)
class _Found:
    """The content of a source: its tensors, the name there of each tensor we need, and its input if it is known."""

    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    normalisation: Normalisation | None = None


def load_weights(backbone: Backbone, source: str | Path, normalisation: Normalisation | None = None) -> bool:
    """Fill `backbone` with pre-trained weights and set its normalisation to the one that they were trained with.

    source: a .safetensors, .pth or .pt file with torchvision's names or ours, a .caffemodel (no prototxt needed), or
        torchvision's by name, which may download: "torchvision:IMAGENET1K_V1", "VGG16_Weights.IMAGENET1K_V1", or
        "torchvision" for its default.
    normalisation: for a file that does not say; otherwise it follows from the source:
        our own checkpoints hold it; torchvision's weights, by name or as the file that torchvision downloads, state
        it; a .caffemodel has Caffe's; any other file is taken to be made for the input of the backbone's constructor.

    float16 is read as float32. Tensors of the file that the backbone has no use for (an ImageNet classifier) are left
    out; layers that the backbone does not take from published weights (a new RoI network) keep their values.
    Returns whether every tensor of the backbone is from the source, so that `init_head` has nothing left to do.
    InputError: the source cannot be read or does not fit. Nothing of the backbone is changed then.
    """
    found = _read(backbone, str(source))
    _copy(str(source), backbone.state_dict(), found)
    stated = normalisation or found.normalisation
    if stated is not None:
        backbone.normalisation = stated
    return len(found.names) == len(backbone.state_dict())


def check_source(source: str) -> None:
    """Raises InputError where `source` names a file that is not there."""
    if not TORCHVISION_NAME.fullmatch(source):
        _file(source)


def load_stages(stages: nn.Module, source: str, model: str, prefix: str) -> None:
    """Fill the stages of torchvision's classification network `model`, as its detectors hold them, from its weights.

    source: as for `load_weights`, but for .caffemodel.
    prefix: what the published names have before those in `stages`.

    InputError: the source cannot be read or does not fit. Nothing is changed then.
    """
    ours = {name: value for name, value in stages.state_dict().items() if not name.endswith("num_batches_tracked")}
    names = {name: prefix + name for name in ours}
    if TORCHVISION_NAME.fullmatch(source):
        tensors = _downloaded(torchvision_weights(model, source), source)
    else:
        tensors = _strip(_tensors(_file(source)))
    _copy(source, ours, _Found(tensors, names))


def stated_input(source: str, model: str) -> Normalisation | None:
    """The input of weights of torchvision's network `model` by their name, or by that of their file, if it says so."""
    if TORCHVISION_NAME.fullmatch(source):
        return _input_of(torchvision_weights(model, source))
    known = get_model_weights(model)
    # The name under which torchvision publishes them, "vgg16-397923af.pth".
    return next((_input_of(weights) for weights in known if weights.url.endswith(f"/{Path(source).name}")), None)


def _copy(source: str, ours: Mapping[str, Tensor], found: _Found) -> None:
    _check(source, ours, found)
    with torch.no_grad():
        for name, theirs in found.names.items():
            ours[name].copy_(found.tensors[theirs].reshape(ours[name].shape))


def _read(backbone: Backbone, source: str) -> _Found:
    if TORCHVISION_NAME.fullmatch(source):
        return _read_torchvision(backbone, source)
    path = _file(source)
    if path.suffix == ".caffemodel":
        return _read_caffe(backbone, path)
    tensors = _strip(_tensors(path))
    if "input_order" in tensors:  # saved by us
        _check_input(source, tensors)
        return _Found(tensors, {name: name for name in backbone.state_dict()})
    return _Found(tensors, _published_names(backbone, source), _stated(backbone, path))


def _published_names(backbone: Backbone, source: str) -> dict[str, str]:
    """Our name -> torchvision's, of every tensor that torchvision's weights hold."""
    prefixes = backbone.pretrained.names
    if not prefixes:
        raise InputError(
            f"{source}: this backbone has no weights in torchvision's layout; "
            "give a checkpoint of this program" + (" or a .caffemodel" if backbone.pretrained.caffe else "")
        )
    matches = ((name, prefix) for name in backbone.state_dict() for prefix in prefixes if name.startswith(prefix))
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
    """The named tensors of a .safetensors or a pickled state dict, on the CPU."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            check_crcs(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on how the file was written: what matters to us is said below
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
    """Without the prefix that saving a whole detector ("backbone.") or from several devices ("module.") adds."""
    prefix = next(
        (p for p in ("module.backbone.", "backbone.", "module.") if any(k.startswith(p) for k in tensors)), ""
    )
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


# torchvision


def _read_torchvision(backbone: Backbone, source: str) -> _Found:
    model = backbone.pretrained.torchvision
    if not model:
        raise InputError(f"{source}: torchvision has no weights for this backbone; give a file")
    weights = torchvision_weights(model, source)
    return _Found(_downloaded(weights, source), _published_names(backbone, source), _input_of(weights))


@contextmanager
def downloading(weights: Any, source: str) -> Iterator[None]:
    """Within it torchvision may fetch `weights`: turns its failure into a sentence."""
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
    """The member of torchvision's enum of the weights of its network `model` that `source` names.

    InputError: there is none of that name.
    """
    known = get_model_weights(model)
    found = TORCHVISION_NAME.fullmatch(source)
    name = (found and (found["name"] or found["member"])) or "DEFAULT"
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


def _read_caffe(backbone: Backbone, path: Path) -> _Found:
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
    return _Found(caffe_tensors(path, layers), names, backbone.pretrained.caffe_input)


# Checks


def _check(source: str, ours: Mapping[str, Tensor], found: _Found) -> None:
    """InputError unless every tensor that we need is there, of the right shape and finite."""
    missing, other, bad = [], [], []
    for name, theirs in found.names.items():
        tensor, want = found.tensors.get(theirs), tuple(ours[name].shape)
        if tensor is None:
            missing.append(theirs)
        elif _squeezed(tensor.shape) != _squeezed(want):
            other.append(f"{theirs} {tuple(tensor.shape)} instead of {want}")
        elif not tensor.isfinite().all():
            bad.append(theirs)
    faults = (("missing", missing), ("of another shape", other), ("with values that are not finite", bad))
    said = [f"{len(items)} {fault}: {_some(items)}" for fault, items in faults if items]
    if said:
        raise InputError(
            f"{source}: does not fit the backbone; of {len(found.names)} tensors {'; '.join(said)}; "
            "give weights made for this network, or choose the backbone that they were made for"
        )


def _check_input(source: str, tensors: Mapping[str, Tensor]) -> None:
    """InputError where what our own files say of the input is impossible."""
    order, std, scale = (tensors.get(name) for name in ("input_order", "input_std", "feature_scale"))
    possible = order is not None and order.tolist() in ([0, 1, 2], [2, 1, 0])
    if not possible or any(values is not None and not (values > 0).all() for values in (std, scale)):
        raise InputError(
            f"{source}: is damaged: its input_order, input_std or feature_scale is impossible; save it again"
        )


def _squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    """Without leading and trailing ones: old Caffe files hold a bias as 1 x 1 x 1 x N, OpenCV gives it as N x 1."""
    return tuple(n for n in shape if n != 1)


def _some(items: Sequence[str], show: int = 3) -> str:
    more = len(items) - show
    return ", ".join(items[:show]) + (f" and {more} more" if more > 0 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
