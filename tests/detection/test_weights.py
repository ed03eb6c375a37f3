"""Weights of every source reach the right layers with the right normalisation, or are refused with the reason."""

import os
import pickle
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import get_model, get_model_weights
from torchvision.transforms.functional import center_crop, resize

from ohem.data.transforms import read_image
from ohem.detection.backbones import BACKBONES
from ohem.detection.backbones.base import IMAGENET, Pretrained
from ohem.detection.weights import load_weights
from ohem.errors import InputError
from tests.detection.toy_backbone import CAFFE, OWN, published, refused, snapshot, toy
from tests.helpers.reference import SHARED, needs_shared

# Files in torchvision's layout


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_file_in_torchvisions_layout(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(published(), path) if suffix == ".safetensors" else torch.save(published(), path)
    backbone = toy()
    before = snapshot(backbone)
    load_weights(backbone, path)
    theirs = published()
    for ours, name in (
        ("features.0.weight", "features.0.weight"),
        ("features.2.bias", "features.2.bias"),
        ("roi_head.1.weight", "classifier.0.weight"),
        ("roi_head.1.bias", "classifier.0.bias"),
    ):
        actual = backbone.state_dict()[ours]
        assert actual.dtype == torch.float32
        assert torch.equal(actual, theirs[name].float())
        assert not torch.equal(actual, before[ours])
    assert torch.equal(backbone.roi_head[4].weight, before["roi_head.4.weight"])  # new, so left alone
    assert backbone.normalisation == OWN


def test_the_caller_may_state_the_normalisation(tmp_path: Path) -> None:
    save_file(published(), tmp_path / "weights.safetensors")
    backbone = toy()
    load_weights(backbone, tmp_path / "weights.safetensors", CAFFE)
    assert backbone.normalisation == CAFFE


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_in_a_training_file(key: str, tmp_path: Path) -> None:
    torch.save({key: published(), "epoch": 3}, tmp_path / "weights.pth")
    backbone = toy()
    load_weights(backbone, tmp_path / "weights.pth")
    assert torch.equal(backbone.features[0].weight, published()["features.0.weight"].float())


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.", "module.backbone."])
def test_our_own_state_dict_brings_its_normalisation(prefix: str, tmp_path: Path) -> None:
    trained = toy(seed=2)
    trained.normalisation = CAFFE
    state = {prefix + name: tensor for name, tensor in trained.state_dict().items()}
    if prefix.endswith("backbone."):  # a detector has more
        state[prefix.replace("backbone.", "scores.") + "weight"] = torch.zeros(2, 2)
    save_file(state, tmp_path / "own.safetensors")
    backbone = toy()
    load_weights(backbone, tmp_path / "own.safetensors")
    assert backbone.normalisation == CAFFE
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in backbone.state_dict().items())


def test_our_own_state_dict_must_have_the_whole_head(tmp_path: Path) -> None:
    state = toy().state_dict()
    del state["roi_head.4.bias"]
    save_file(state, tmp_path / "own.safetensors")
    refused(toy(), tmp_path / "own.safetensors", "1 missing: roi_head.4.bias;")


# Files that do not fit


def test_missing_tensors_are_named_and_counted(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    refused(
        toy(),
        tmp_path / "w.safetensors",
        "of 6 tensors 6 missing: features.0.weight, features.0.bias, features.2.weight and 3 more",
    )


def test_shapes_and_values_are_checked_before_anything_is_copied(tmp_path: Path) -> None:
    """Uses tensors of which the last are wrong: the first ones must not have been copied."""
    state = published()
    state["classifier.0.weight"] = torch.zeros(5, 54)
    state["classifier.0.bias"][0] = torch.nan
    save_file(state, tmp_path / "w.safetensors")
    arguments = (
        "1 of another shape: classifier.0.weight (5, 54) instead of (5, 24)",
        "1 with values that are not finite: classifier.0.bias",
    )
    refused(toy(), tmp_path / "w.safetensors", *arguments)


def test_no_such_file(tmp_path: Path) -> None:
    refused(toy(), tmp_path / "nothing.pth", "no such file")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".caffemodel"])
@pytest.mark.parametrize("content", [b"", b"not weights at all" * 20])
def test_a_file_of_something_else(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    refused(toy(Pretrained(names={"features.": "features."}, caffe=("conv1", "conv2"))), path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_cut_short(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(published(), path) if suffix == ".safetensors" else torch.save(published(), path)
    path.write_bytes(path.read_bytes()[:-3000])
    refused(toy(), path)


def test_a_pickle_with_any_one_byte_changed(tmp_path: Path) -> None:
    """Checks that the caller gets one sentence or the weights, whatever error the unpickler raises."""
    torch.save(published(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content, spoilt, backbone = (tmp_path / "w.pth").read_bytes(), tmp_path / "spoilt.pth", toy()
    refusals = 0
    for i in range(0, 600, 3):
        spoilt.write_bytes(content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :])
        try:
            load_weights(backbone, spoilt)
        except InputError:
            refusals += 1
    assert refusals > 100


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(3)], ids=["list", "numbers", "tensor"])
def test_a_file_without_named_tensors(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    refused(toy(), tmp_path / "w.pth", "no named tensors")


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)

    def __init__(self, folder: str) -> None:
        self.folder = folder


@pytest.mark.parametrize("plain", [True, False], ids=["pickle", "torch.save"])
def test_code_in_a_pickle_is_not_run(plain: bool, tmp_path: Path) -> None:
    content = {"features.0.weight": Attack(str(tmp_path / "pwned"))}
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(content)) if plain else torch.save(content, path)
    refused(toy(), path, "can run code")
    assert not (tmp_path / "pwned").exists()


def test_a_backbone_that_nobody_publishes_weights_of(tmp_path: Path) -> None:
    save_file(published(), tmp_path / "w.safetensors")
    tiny = BACKBONES["tiny"]()
    refused(tiny, tmp_path / "w.safetensors", "a checkpoint of this program")
    refused(tiny, "torchvision", "torchvision has no weights for this backbone")
    (tmp_path / "w.caffemodel").write_bytes(b"")
    refused(tiny, tmp_path / "w.caffemodel", "no Caffe model for this backbone")


# torchvision's weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes torch.hub's folder of downloads, without network."""

    def unplugged(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unplugged)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def save_as_downloaded(model: str, folder: Path, member: str = "IMAGENET1K_V1") -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(3)
    state = get_model(model, weights=None).state_dict()
    path = folder / Path(get_model_weights(model)[member].url).name
    torch.save(state, path)
    return path, state


@pytest.mark.parametrize(
    "source",
    [
        "torchvision",
        "torchvision:IMAGENET1K_V1",
        "torchvision:SqueezeNet1_0_Weights.IMAGENET1K_V1",
        "SqueezeNet1_0_Weights.IMAGENET1K_V1",
        None,
    ],
)
def test_torchvisions_weights_come_with_torchvisions_input(source: str | None, hub: Path) -> None:
    """Loads by name, and (None) by the file that torchvision downloads, known by its file name."""
    path, state = save_as_downloaded("squeezenet1_0", hub)
    backbone = BACKBONES["squeezenet1_0"]()
    assert backbone.normalisation.order == "bgr"
    load_weights(backbone, source or path)
    assert backbone.normalisation.order == "rgb"
    assert backbone.normalisation.mean == pytest.approx(IMAGENET.mean)
    assert backbone.normalisation.std == pytest.approx(IMAGENET.std)
    assert all(
        torch.equal(tensor, state[f"features.{name}"]) for name, tensor in backbone.features.state_dict().items()
    )


def test_torchvisions_preset_is_our_normalisation(hub: Path) -> None:
    path, _ = save_as_downloaded("squeezenet1_0", hub)
    backbone = BACKBONES["squeezenet1_0"]()
    load_weights(backbone, path)
    image = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8)
    preset = get_model_weights("squeezenet1_0").DEFAULT.transforms(resize_size=224)
    torch.testing.assert_close(backbone.normalise(image), preset(image), atol=1e-5, rtol=1e-5)


def test_torchvisions_weights_that_are_not_there(hub: Path) -> None:
    backbone = BACKBONES["squeezenet1_0"]()
    refused(backbone, "torchvision:IMAGENET1K_V9", "no such weights", "IMAGENET1K_V1")
    refused(backbone, "ResNet50_Weights.IMAGENET1K_V1", "no such weights for squeezenet1_0")
    refused(backbone, "torchvision", "no network in tests", "https://", "give its path")


@pytest.mark.parametrize("name", ["vgg16", "squeezenet1_0", "mobilenet_v2", "resnet50"])
def test_layout_is_torchvisions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that every tensor that we read is in torchvision's state dict in our shape, and that all are required."""
    with torch.device("meta"):
        backbone, net = BACKBONES[name](), get_model(name, weights=None)
    state = {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in net.state_dict().items()}

    def get(*_: object, **__: object) -> Mapping[str, Tensor]:
        return state

    monkeypatch.setattr(get_model_weights(name), "get_state_dict", get)
    load_weights(backbone, "torchvision")
    del state["classifier.0.bias" if name == "vgg16" else list(state)[6]]
    with pytest.raises(InputError, match="1 missing"):
        load_weights(backbone, "torchvision")


def test_vgg16_takes_its_head_from_torchvisions_classifier() -> None:
    from ohem.detection.weights import _published_names

    with torch.device("meta"):
        names = _published_names(BACKBONES["vgg16"](), "")
    assert {ours: theirs for ours, theirs in names.items() if ours.startswith("roi_head")} == {
        "roi_head.1.weight": "classifier.0.weight",
        "roi_head.1.bias": "classifier.0.bias",
        "roi_head.4.weight": "classifier.3.weight",
        "roi_head.4.bias": "classifier.3.bias",
    }


# The real ones

SURE = {  # photographs of COCO that show little else, and what ImageNet calls it
    "squeezenet1_0": {
        "000000331352.jpg": "toilet seat",
        "000000058636.jpg": "street sign",
        "000000565778.jpg": "passenger car",
        "000000239274.jpg": "speedboat",
    },
    "mobilenet_v2": {
        "000000331352.jpg": "toilet seat",
        "000000058636.jpg": "street sign",
        "000000314294.jpg": "African elephant",
        "000000418281.jpg": "ox",
    },
}


@needs_shared
@pytest.mark.parametrize("name", SURE)
def test_shared_weights_recognise_photographs_in_our_normalisation(name: str) -> None:
    """Checks that ImageNet's classifier recognises the photographs, and less surely with red and blue exchanged."""
    path = SHARED / "weights" / f"{name}_imagenet_fp16.safetensors"
    net = get_model(name, weights=None).eval()
    net.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    backbone = BACKBONES[name]()
    load_weights(backbone, path)
    images = [read_image(SHARED / "data/tiny_coco/val2017" / file) for file in SURE[name]]
    images = [center_crop(resize(image, [240]), [224, 224]) for image in images]
    with torch.no_grad():
        ours, exchanged = (
            net(torch.stack([backbone.normalise(image) for image in batch])).softmax(1)
            for batch in (images, [image.flip(0) for image in images])
        )
    categories = get_model_weights(name).DEFAULT.meta["categories"]
    assert [categories[i] for i in ours.argmax(1)] == list(SURE[name].values())
    right = ours.argmax(1, keepdim=True)
    assert ours.gather(1, right).mean() > 0.7
    assert exchanged.gather(1, right).mean() < ours.gather(1, right).mean() - 0.02


@needs_shared
@pytest.mark.parametrize("name", SURE)
def test_shared_weights_on_a_photograph_of_the_data(name: str) -> None:
    """Checks that features differ from place to place and channel to channel, as those of a trained network do."""
    backbone = BACKBONES[name]()
    load_weights(backbone, SHARED / "weights" / f"{name}_imagenet_fp16.safetensors")
    image = read_image(sorted((SHARED / "data/cards/JPEGImages").iterdir())[0])
    with torch.no_grad():
        features = backbone([image])
    assert features.isfinite().all()
    assert (features[0].flatten(1).std(1) > 0.01 * features.std()).float().mean() > 0.5


@pytest.mark.parametrize(
    "change",
    [{"input_order": torch.tensor([0, 1, 7])}, {"input_std": torch.zeros(3)}, {"feature_scale": -torch.ones(())}],
)
def test_an_impossible_input_of_our_own_files_is_refused(change: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({**BACKBONES["tiny"]().state_dict(), **change}, path)
    with pytest.raises(InputError, match=f"{path}: .* is impossible"):
        load_weights(BACKBONES["tiny"](), path)
