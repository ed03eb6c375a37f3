"""Mining in detectors of transformers: RT-DETR, D-FINE and Deformable DETR, with random weights."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    PreTrainedModel,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
)
from transformers.loss.loss_rt_detr import RTDetrLoss

from ohem import AllSampler, OHEMSampler, RatioSampler, RoIs, with_ohem
from tests.helpers.contracts import EVERY_SAMPLER, check_detector

Label = dict[str, Tensor]
DIM, QUERIES, CLASSES, LAYERS, HEIGHT, WIDTH = 32, 20, 3, 2, 64, 96
STAGES: dict[str, Any] = {"out_features": ["stage2", "stage3", "stage4"], "depths": [1, 1, 1, 1]}
RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "layer_type": "basic", **STAGES}
HGNET: dict[str, Any] = STAGES | (
    {"stem_channels": [3, 8, 8], "hidden_sizes": [8, 16, 16, 16], "stage_downsample": [False, True, True, True]}
    | {"stage_in_channels": [8, 8, 16, 16], "stage_mid_channels": [8] * 4, "stage_out_channels": [8, 16, 16, 16]}
    | {"stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4, "stage_kernel_size": [3] * 4}
    | {"stage_light_block": [False] * 4}
)
DECODER: dict[str, Any] = {
    "d_model": DIM,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
    "decoder_layers": LAYERS,
    "dropout": 0.0,
} | {"encoder_ffn_dim": DIM, "decoder_ffn_dim": DIM, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
HYBRID: dict[str, Any] = DECODER | (
    {"encoder_hidden_dim": DIM, "encoder_in_channels": [16] * 3, "decoder_in_channels": [DIM] * 3}
    | {"hidden_expansion": 0.5, "decoder_n_points": 2, "num_denoising": 4}
)
DEFORMABLE: dict[str, Any] = DECODER | (
    {"use_timm_backbone": False, "encoder_layers": 1, "num_feature_levels": 3, "auxiliary_loss": True}
    | {"with_box_refine": True, "disable_custom_kernels": True}
)


class TorchvisionCalls:
    """Called as torchvision's detectors are: `model(images, targets)` returns a dict of losses or detections."""

    training: bool

    def forward(self, images: Sequence[Tensor], targets: Sequence[Label] | None = None) -> Any:
        outputs = super().forward(torch.stack([*images]), labels=targets)  # type: ignore[misc]
        if self.training:
            return {"loss": outputs.loss}
        return [{"boxes": b, "scores": s} for b, s in zip(outputs.pred_boxes, outputs.logits, strict=True)]


class CalledRTDetrForObjectDetection(TorchvisionCalls, RTDetrForObjectDetection): ...  # type: ignore[misc]


class CalledDFineForObjectDetection(TorchvisionCalls, DFineForObjectDetection): ...  # type: ignore[misc]


class CalledDeformableDetrForObjectDetection(TorchvisionCalls, DeformableDetrForObjectDetection): ...  # type: ignore[misc]


MAKE: dict[str, tuple[type, type, Callable[[], Any]]] = {
    "rt_detr": (
        RTDetrForObjectDetection,
        CalledRTDetrForObjectDetection,
        lambda: RTDetrConfig(backbone_config=RTDetrResNetConfig(**RESNET), **HYBRID),
    ),
    "d_fine": (
        DFineForObjectDetection,
        CalledDFineForObjectDetection,
        lambda: DFineConfig(backbone_config=HGNetV2Config(**HGNET), max_num_bins=8, **HYBRID),
    ),
    "deformable_detr": (
        DeformableDetrForObjectDetection,
        CalledDeformableDetrForObjectDetection,
        lambda: DeformableDetrConfig(backbone_config=ResNetConfig(**RESNET), **DEFORMABLE),
    ),
}
KINDS = pytest.mark.parametrize("kind", MAKE)
HARDEST = OHEMSampler(8, nms_iou=None)


@cache
def built(kind: str, called: bool) -> Any:
    torch.manual_seed(0)
    model = MAKE[kind][called](MAKE[kind][2]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bbox_embed" in name and name.endswith("weight"):
                parameter.normal_(std=0.1)
    return model.train()


def make(kind: str, called: bool = False) -> Any:
    """Returns a new model in train mode, with the same weights each time, and with different boxes in each layer."""
    return copy.deepcopy(built(kind, called))


def label(*boxes: list[float], **marks: list[bool]) -> Label:
    classes = torch.tensor([i % CLASSES for i in range(len(boxes))], dtype=torch.int64)
    marked = {key: torch.tensor(values) for key, values in marks.items()}
    return {"class_labels": classes, "boxes": torch.tensor(boxes).reshape(-1, 4), **marked}


BOXES = [0.3, 0.3, 0.4, 0.3], [0.7, 0.6, 0.3, 0.5], [0.5, 0.5, 0.2, 0.2]
LABELS = {
    "two images": [label(*BOXES[:2]), label(*BOXES)],
    "one object": [label(BOXES[0]), label()],
    "no object": [label(), label()],
}


def batch(name: str = "two images") -> dict[str, Any]:
    images = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": images, "labels": LABELS[name]}


def step(model: Any, name: str = "two images", run: Callable[..., Any] | None = None) -> Any:
    """Runs a training step, which leaves the gradients; returns the outputs."""
    model.zero_grad()
    torch.manual_seed(0)
    outputs = (run or model)(**batch(name))
    outputs.loss.backward()
    return outputs


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class EverySecond:
    """Chooses every second query."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self, rois: RoIs, losses: Callable[..., Tensor]) -> Tensor:
        return torch.arange(self.first, len(rois), 2)


# --- what is trained


@pytest.mark.parametrize(
    ("kind", "name"), [*((kind, "two images") for kind in MAKE), ("rt_detr", "one object"), ("d_fine", "no object")]
)
def test_with_all_queries_the_loss_is_theirs(kind: str, name: str) -> None:
    plain, mined = make(kind), with_ohem(make(kind), AllSampler())
    expected, actual = step(plain, name), step(mined, name)
    assert actual.loss == expected.loss
    assert actual.loss_dict == expected.loss_dict
    wanted, given = gradients(plain), gradients(mined)
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[key], wanted[key]) for key in wanted)
    # The last layer is the teacher of the others.
    trivial = {key for key, loss in actual.loss_dict.items() if loss == 0} - {"cardinality_error", "loss_ddf_dn_1"}
    assert name == "no object" or not trivial


@pytest.mark.parametrize("kind", ["rt_detr", "deformable_detr"])
def test_contract_of_a_detector(kind: str) -> None:
    batches = {"two images": ([*batch()["pixel_values"]], LABELS["two images"])}
    check_detector(partial(make, kind, called=True), HARDEST, batches)


@pytest.fixture(scope="module")
def rt_detr() -> Any:
    return make("rt_detr")


@pytest.mark.parametrize("sampler", EVERY_SAMPLER.values(), ids=EVERY_SAMPLER)
def test_every_sampler_trains(rt_detr: Any, sampler: Any) -> None:
    outputs = step(with_ohem(rt_detr, sampler))
    assert outputs.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(rt_detr).values())
    numbers = rt_detr.mining.statistics()
    assert numbers["chosen"] > 0
    assert all(math.isfinite(number) for number in numbers.values())


def arguments_of_the_loss(kind: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns what a model gives to its loss function in a training step."""
    given = []

    def capture(*args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor], None]:
        given.append((args, kwargs))
        return args[0].sum(), {}, None

    model = make(kind)
    model.loss_function = capture
    step(model)
    return given[0]


def losses_and_gradients(
    loss: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the losses by name, and the gradients of scores and boxes of the layers."""
    names = ["logits", "labels", "device", "boxes", "config", "all_logits", "all_boxes"]
    named = {**dict(zip(names, args, strict=True)), **kwargs}
    leaves = {
        name: value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in named.items()
    }
    total, losses, _ = loss(*[leaves[name] for name in names], **{name: leaves[name] for name in kwargs})
    total.backward()
    keys = ("logits", "boxes", "all_logits", "all_boxes", "enc_topk_logits", "enc_topk_bboxes")
    return losses, {key: leaves[key].grad for key in keys if leaves.get(key) is not None}


@KINDS
def test_only_the_chosen_queries_are_trained(kind: str) -> None:
    """Their scores and boxes have the gradient of the loss without mining, and those of the others have none."""
    given = arguments_of_the_loss(kind)
    losses, expected = losses_and_gradients(make(kind).loss_function, *given)
    halves = [with_ohem(make(kind), EverySecond(first)) for first in (0, 1)]
    parts, actual = zip(*(losses_and_gradients(model.loss_function, *given) for model in halves), strict=True)
    for name, loss in losses.items():
        if "_dn_" in name or "ddf" in name or "cardinality" in name:
            assert parts[0][name] == parts[1][name] == loss, name
        else:
            torch.testing.assert_close(parts[0][name] + parts[1][name], loss, msg=name)
    for name, gradient in expected.items():
        queries = gradient.movedim(-2, 0)
        assert queries[-QUERIES:].any(), name
        for first, half in enumerate(actual):
            own = half[name].movedim(-2, 0)
            assert torch.equal(own[:-QUERIES], queries[:-QUERIES]), f"{name} of denoising queries"
            assert torch.equal(own[-QUERIES:][first::2], queries[-QUERIES:][first::2]), name
            assert not own[-QUERIES:][1 - first :: 2].any(), name


@KINDS
def test_all_objects_are_kept_by_default(kind: str) -> None:
    model = with_ohem(make(kind))
    step(model)
    assert isinstance(model.mining.sampler, RatioSampler)
    assert model.mining.rois.foreground[model.mining.chosen].sum() == 5
    assert model.mining.statistics()["chosen"] == 5 * 4


# --- what the sampler gets


class Remember:
    """Chooses all queries, and keeps what it got in each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[RoIs, Tensor, Tensor]] = []

    def __call__(self, rois: RoIs, losses: Callable[..., Tensor]) -> Tensor:
        self.calls.append((rois, losses(1.0, 0.0), losses(0.0, 1.0)))
        return torch.arange(len(rois))


@KINDS
def test_queries_are_rois_of_the_last_layer(kind: str) -> None:
    sampler = Remember()
    model = with_ohem(make(kind), sampler)
    outputs = step(model)
    assert len(sampler.calls) == LAYERS + ("deformable" not in kind)  # the selection of queries in the encoder
    rois, classification, boxes = sampler.calls[0]
    assert model.mining.rois is rois
    last = outputs.pred_boxes[:, -QUERIES:].detach().clamp(0, 1)
    pixels = box_convert(last, "cxcywh", "xyxy") * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    torch.testing.assert_close(rois.boxes, pixels.flatten(0, 1))
    assert rois.images.tolist() == [0] * QUERIES + [1] * QUERIES
    for image, objects in enumerate(LABELS["two images"]):
        labels = rois.labels[rois.images == image]
        assert sorted(labels[labels > 0].tolist()) == sorted((objects["class_labels"] + 1).tolist())
    assert not boxes[~rois.foreground].any()
    losses, weight = outputs.loss_dict, (1, 1) if "deformable" not in kind else (5, 2)
    total = losses["loss_bbox"] * weight[0] + losses["loss_giou"] * weight[1]
    torch.testing.assert_close(boxes.sum() / 5, total.detach())
    name = "loss_ce" if "deformable" in kind else "loss_vfl"
    torch.testing.assert_close(classification.sum() / 5, losses[name].detach())


@pytest.mark.parametrize("key", ["ignore", "iscrowd"])
def test_objects_to_ignore_are_not_trained(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The denoising queries have no such object, and no query has it or is background inside it."""
    plain = make("rt_detr")
    expected = step(plain, "one object").loss_dict
    everything = [0.5, 0.5, 1.0, 1.0]
    marked = [label(BOXES[0], everything, **{key: [False, True]}), label(everything, **{key: [True]})]
    monkeypatch.setitem(LABELS, "one object", marked)
    model = with_ohem(make("rt_detr"), AllSampler())
    actual = step(model, "one object").loss_dict
    assert [actual[name] == expected[name] for name in expected if "_dn_" in name] == [True] * 6
    assert sorted(model.mining.rois.labels.tolist()) == [-1] * (2 * QUERIES - 1) + [1]
    assert model.mining.statistics()["chosen"] == 1


# --- how the model is used


def test_eval_mode_does_not_change() -> None:
    plain, mined = make("rt_detr").eval(), with_ohem(make("rt_detr"), HARDEST).eval()
    with torch.no_grad():
        assert mined(**batch()).loss == plain(**batch()).loss
    assert mined.mining.statistics() == {}


def test_saved_files_hold_nothing_of_mining(tmp_path: Path) -> None:
    plain, mined = make("rt_detr"), with_ohem(make("rt_detr"), HARDEST)
    loss = step(mined).loss
    step(plain)  # batch norm counts it
    plain.save_pretrained(tmp_path / "plain")
    mined.save_pretrained(tmp_path / "mined")
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "mined" / file.name).read_bytes() == file.read_bytes()
    loaded = RTDetrForObjectDetection.from_pretrained(tmp_path / "mined").train()
    assert step(with_ohem(loaded, HARDEST)).loss == loss


def test_wrappers_that_call_forward_mine_too() -> None:
    """PEFT calls `model.forward`, which does not run the hooks of the model."""
    model = with_ohem(make("rt_detr"), HARDEST)
    assert step(model, run=model.forward).loss == step(model).loss
    assert model.mining.statistics()["chosen"] == 16


def test_autocast_leaves_every_gradient() -> None:
    models = make("rt_detr"), with_ohem(make("rt_detr"), HARDEST)
    for model in models:
        with torch.autocast("cpu", torch.bfloat16):
            step(model)
    assert gradients(models[1]).keys() == gradients(models[0]).keys()
    assert all(gradient.isfinite().all() for gradient in gradients(models[1]).values())


# --- what is refused


def test_detr_is_refused() -> None:
    class Model(DetrForObjectDetection):  # type: ignore[misc]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.loss_type = "ForObjectDetection"

    with pytest.raises(TypeError, match=r"cannot mine in Model, whose cross entropy .* RTDetrForObjectDetection"):
        with_ohem(Model())


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match=r"DFineForObjectDetection.* and not that of RTDetrModel: use one of these"):
        with_ohem(make("rt_detr").model)


def test_old_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", "5.9.1")
    with pytest.raises(
        TypeError, match=r"cannot mine with transformers 5\.9\.1.*: install transformers 5\.18 or later"
    ):
        with_ohem(make("rt_detr"))


def test_replaced_loss_is_refused() -> None:
    model = make("rt_detr")
    model.loss_function = print
    with pytest.raises(TypeError, match="loss_function of this RTDetrForObjectDetection, which was replaced"):
        with_ohem(model)
    model = with_ohem(make("rt_detr"))
    model.loss_function = print
    with pytest.raises(TypeError, match="replaced after with_ohem, and nothing would be mined"):
        model(**batch())


def test_loss_without_a_mean_over_the_queries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RTDetrLoss, "loss_labels_vfl", lambda _, outputs, *rest: {"loss_vfl": outputs["logits"].sum()})
    with pytest.raises(TypeError, match="cannot see the losses of single queries in RTDetrLoss"):
        with_ohem(make("rt_detr"))(**batch())


def test_second_call_replaces_the_sampler() -> None:
    model = with_ohem(with_ohem(make("rt_detr")), HARDEST)
    step(model)
    assert model.mining.sampler is HARDEST
    assert model.mining.statistics()["chosen"] == 16
    assert len(model.model._forward_pre_hooks) == 1
