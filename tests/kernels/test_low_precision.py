"""Ranking in low precision: close to full precision, exact for the rescored RoIs, and no trace afterwards."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.regions import Regions
from ohem.kernels import low_precision as module
from ohem.kernels.low_precision import (
    Float8Linear,
    Int8Linear,
    PackedInt8Linear,
    Rounded,
    as_float8,
    is_exact,
    low_precision,
    quantised,
    quantised_range,
    suited,
)
from ohem.kernels.roi_pool import roi_max_pool
from ohem.mining import hard_examples
from ohem.rois import RoIs, match
from ohem.samplers import AllSampler, OHEMSampler
from ohem.samplers.base import by_image
from tests.detection.toy_detector import detector, losses_and_gradients, mini_batch


def rows(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def fast_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the tests use int8 on a CPU, also on one where it is slow."""
    monkeypatch.setattr(module, "_fastest_on_cpu", lambda: "int8")


def all_losses(model: FastRCNN, rescore_top: int) -> tuple[Tensor, RoIs]:
    images, proposals, targets = mini_batch()
    model.rescore_top = rescore_top
    rois = match(proposals, targets, mean=model.box_mean, std=model.box_std)
    return model.read_only_losses(model.backbone(images), rois), rois


def test_quantised_rows_by_hand() -> None:
    values, scales = quantised(torch.tensor([[1.27, -0.5, 0.004], [0.0, 0.0, 0.0]]))
    assert values.tolist() == [[127, -50, 0], [0, 0, 0]]
    assert scales.tolist() == pytest.approx([0.01, 0.0])


def test_a_range_has_all_eight_bits() -> None:
    values, steps, middle = quantised_range(torch.tensor([[0.0, 2.55, 1.0], [-1.0, 0.0, 1.55]]))
    assert values.tolist() == [[-128, 127, -28], [-128, -28, 127]]
    torch.testing.assert_close(steps[:, 0], torch.tensor([0.01, 0.01]))
    torch.testing.assert_close(middle[:, 0], torch.tensor([1.28, 0.28]))


@given(st.integers(0, 40), st.integers(1, 70), st.integers(1, 40), st.booleans())
def test_a_linear_layer_to_within_its_steps(r: int, inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(r)
    layer, x = nn.Linear(inputs, outputs, bias=bias), rows(r, inputs)
    # Half a step of each factor, times the sum of the magnitudes of the other.
    (_, steps, _), (_, weight_steps) = quantised_range(x), quantised(layer.weight.detach())
    bound = 0.51 * (steps * layer.weight.abs().sum(dim=1) + x.abs().sum(dim=1, keepdim=True) * weight_steps)
    actual = Int8Linear(layer)(x)
    assert actual.shape == (r, outputs)
    assert ((actual - layer(x)).abs() <= bound + 0.26 * inputs * steps * weight_steps + 1e-6).all()


def test_an_input_that_is_rounded_already() -> None:
    layer, x = nn.Linear(30, 5), rows(7, 30)
    by_row, whole = quantised_range(x), quantised_range(x.flatten()[None])
    assert torch.equal(Int8Linear(layer, by_row)(by_row.values), Int8Linear(layer)(x))
    scalars = Rounded(whole.values.view(7, 30), whole.steps[0, 0], whole.middle[0, 0])
    torch.testing.assert_close(Int8Linear(layer, scalars)(scalars.values), layer(x), atol=0.1, rtol=0)


@pytest.mark.parametrize(("precision", "layer"), [("int8", "Int8Linear"), ("int8-packed", "PackedInt8Linear")])
def test_kernels_get_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch, precision: str, layer: str) -> None:
    """As in tests/kernels/test_fast_linear.py: oneDNN keeps a kernel for each number."""
    rows, call = [], getattr(module, layer).__call__
    monkeypatch.setattr(module, "suited", lambda device: precision)
    monkeypatch.setattr(getattr(module, layer), "__call__", lambda self, x: rows.append(len(x)) or call(self, x))
    head = nn.Sequential(nn.Flatten(), nn.Linear(16, 16))
    inputs = [torch.randint(-128, 127, (count, 16), dtype=torch.int8) for count in (1, 64, 65)]
    with low_precision(head, torch.rand(1, 16, 2, 2)):
        assert [len(head(x)) for x in inputs] == [1, 64, 65]
    assert rows == [64, 64, 128]


def test_layers_are_as_before_afterwards() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    x = rows(5, 8, 1, 1)
    before = model(x)
    with low_precision(model, x) as rounded:
        assert rounded.dtype == torch.int8
        within = model(rounded)
    assert not within.requires_grad
    assert not torch.equal(within, before)
    torch.testing.assert_close(within, before, atol=0.05, rtol=0)
    with pytest.raises(RuntimeError, match="broken"), low_precision(model, x):
        raise RuntimeError("broken")
    assert torch.equal(model(x), before)
    assert model(x).requires_grad
    assert all("forward" not in vars(layer) for layer in model)


@pytest.mark.parametrize("first", [nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)])
def test_a_head_that_begins_otherwise_is_given_the_map_as_it_is(first: nn.Module) -> None:
    model = nn.Sequential(first, nn.Flatten(), nn.Linear(8, 2)).eval()
    x = rows(5, 8, 1, 1)
    with low_precision(model, x) as features:
        assert features is x
        within = model(x)
    assert not torch.equal(within, model(x))
    torch.testing.assert_close(within, model(x), atol=0.05, rtol=0)


# ------------------------------------- precisions of a GPU, which a CPU rounds to in the same way


FLOAT8 = ["float8"] if hasattr(torch.nn.functional, "scaled_mm") else []
needs_float8 = pytest.mark.skipif(not FLOAT8, reason="torch has scaled_mm from 2.10 on")


@pytest.fixture(params=[*FLOAT8, "bfloat16"])
def as_on_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ohem.kernels.low_precision.suited", lambda device: request.param)


@pytest.mark.parametrize(("capability", "actual"), [((9, 0), "float8"), ((8, 9), "float8"), ((8, 6), "bfloat16")])
def test_the_precision_that_a_device_is_fast_in(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], actual: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert suited(torch.device("cuda")) == (actual if FLOAT8 else "bfloat16")
    monkeypatch.setattr(torch.version, "cuda", None)  # as with ROCm, which has different numbers of capability
    assert suited(torch.device("cuda")) == "bfloat16"
    assert suited(torch.device("mps")) == "bfloat16"


def test_float8_by_hand() -> None:
    """Checks that 448 is the highest value, with steps of 32 next to it, and steps of an eighth next to 1."""
    values, scale = as_float8(torch.tensor([[896.0, -600.0], [2.1, 0.0]]))
    assert scale == 2
    assert values.float().tolist() == [[448, -288], [1, 0]]
    assert as_float8(torch.zeros(0, 4))[0].shape == (0, 4)


@needs_float8
@given(st.integers(0, 40), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_a_linear_layer_in_float8_to_within_its_steps(r: int, inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(r)
    layer, x = nn.Linear(16 * inputs, 16 * outputs, bias=bias), rows(r, 16 * inputs)
    actual = Float8Linear(layer)(x)
    assert actual.shape == (r, 16 * outputs)
    # A sixteenth of each factor, or half the smallest step, and the rounding to bfloat16 at the end.
    magnitude = x.abs() @ layer.weight.abs().t()
    smallest = (1 + x.abs().sum(dim=1, keepdim=True)) * 2**-10 / 100
    assert ((actual - layer(x)).abs() <= (2 / 16 + 1 / 256) * magnitude + smallest + 0.01).all()


@pytest.mark.usefixtures("as_on_a_gpu")
def test_on_a_gpu_layers_are_as_before_afterwards() -> None:
    """Uses a second layer that does not fit float8; the feature map is not changed."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    x = rows(5, 16, 1, 1)
    before = model(x)
    with low_precision(model, x) as features:
        assert features is x
        within = model(features)
    assert within.dtype == torch.bfloat16
    assert not within.requires_grad
    assert not torch.equal(within.float(), before)
    torch.testing.assert_close(within.float(), before, atol=0.1, rtol=0)
    assert torch.equal(model(x), before)
    assert all("forward" not in vars(layer) for layer in model)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_on_a_gpu_the_hardest_have_their_losses_in_full() -> None:
    model = detector(AllSampler())
    (exact, rois), (actual, _), (again, _) = (all_losses(model, n) for n in (0, 10, 1000))
    minable = rois.labels >= 0
    assert torch.equal(again[minable], exact[minable])
    assert 2 * 10 <= (actual == exact).sum() < minable.sum()
    torch.testing.assert_close(actual, exact, atol=0.1 * float(exact.max()), rtol=0)


# ---------------------------------------------------------------------------------------------------- in a detector


def test_pooling_of_the_rounded_is_the_pooled_rounded() -> None:
    features = rows(2, 3, 9, 13).relu()
    flat = quantised_range(features.flatten()[None])
    # The last lies outside the map.
    windows = torch.tensor([[0, 0, 0, 12, 8], [1, 3, 2, 5, 5], [0, 4, 4, 4, 4], [1, 13, 9, 14, 10]])
    pooled = roi_max_pool(flat.values.view(features.shape), windows, 3)
    again = roi_max_pool(features, windows, 3)
    assert (pooled[-1] == -128).all()
    expected = ((again - flat.middle) / flat.steps).round().clamp(-128, 127)
    assert torch.equal(pooled.float(), expected)


def test_only_the_hardest_of_an_image_are_rescored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts by hand: those marked -1 are not rescored, and an image may have fewer RoIs, or none."""
    rois = RoIs(
        torch.zeros(6, 4),
        torch.tensor([0, 0, 0, 0, 1, 1]),
        torch.tensor([0, 1, 0, -1, 0, 0]),
        torch.zeros(6, 4),
        torch.zeros(6),
        3,
    )
    ranked = torch.tensor([0.1, 3.0, 2.0, 9.0, 0.6, 0.5])
    calls: list[list[float]] = []

    def parts(self: FastRCNN, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        calls.append(rois.ious.tolist())
        return rois.ious.clone(), torch.zeros(len(rois))

    monkeypatch.setattr(FastRCNN, "read_only_parts", parts)
    model = detector(AllSampler(), rescore_top=2)
    model.read_only_losses(torch.zeros(3, 8, 4, 4), replace(rois, ious=ranked))
    assert calls == [pytest.approx(ranked.tolist()), pytest.approx([3.0, 2.0, 0.6, 0.5])]


def test_rescoring_all_is_ranking_in_full() -> None:
    model = detector(AllSampler())
    (exact, rois), (actual, _) = all_losses(model, 0), all_losses(model, 1000)
    minable = rois.labels >= 0
    assert torch.equal(actual[minable], exact[minable])


def test_the_hardest_have_their_losses_in_full_and_the_others_nearly() -> None:
    model = detector(AllSampler())
    (exact, rois), (actual, _) = all_losses(model, 0), all_losses(model, 10)
    assert (actual == exact).sum() >= 2 * 10
    assert not torch.equal(actual, exact)
    torch.testing.assert_close(actual, exact, atol=0.1 * float(exact.max()), rtol=0)
    for image in range(2):
        here = rois.images == image
        hardest = exact[here & (rois.labels >= 0)].max()
        assert (actual[here] == hardest).any()


@pytest.mark.parametrize("precision", ["int8-packed", "bfloat16"])
def test_other_precisions_of_a_cpu_rank_nearly_the_same(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    if precision == "int8-packed" and torch.backends.quantized.engine == "none":
        pytest.skip("this PyTorch has no quantised operators")
    monkeypatch.setattr(module, "_fastest_on_cpu", lambda: precision)
    model = detector(AllSampler())
    (exact, _), (actual, _) = all_losses(model, 0), all_losses(model, 10)
    assert (actual == exact).sum() >= 2 * 10
    assert not torch.equal(actual, exact)
    torch.testing.assert_close(actual, exact, atol=0.1 * float(exact.max()), rtol=0)


def test_training_is_on_nearly_the_same() -> None:
    """Compares the chosen RoIs; they are exactly the same if all RoIs are rescored."""
    exact, rescore_top = (detector(OHEMSampler(8), rescore_top=n) for n in (0, 1000))
    (losses, gradients), (others, other_gradients) = (
        losses_and_gradients(model, mini_batch()) for model in (exact, rescore_top)
    )
    assert all(torch.equal(losses[name], others[name]) for name in losses)
    assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)
    actual, _ = losses_and_gradients(detector(OHEMSampler(8), rescore_top=16), mini_batch())
    assert sum(actual.values()).item() == pytest.approx(sum(losses.values()).item(), rel=0.05)


# ---------------------------------------- choice by measurement

MEASURE = module._fastest_on_cpu


def test_the_precision_of_a_cpu_is_measured_on_the_same_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANKED", 128)
    given = {}

    def fastest(what: str, kernels: dict[str, object], gain: float) -> str:
        given.update(kernels=kernels, gain=gain)
        return "int8-packed"

    monkeypatch.setattr(module, "fastest", fastest)
    assert MEASURE() == "int8-packed"
    assert list(given["kernels"])[:3] == ["float32", "int8", "bfloat16"]
    assert given["gain"] < 1
    calls = []
    head, _ = module._probe()
    head.register_forward_hook(lambda *args: calls.append(args[-1].dtype))
    for kernel in given["kernels"].values():
        kernel()
    assert calls[:3] == [torch.float32, torch.float32, torch.bfloat16]


@pytest.mark.skipif(torch.backends.quantized.engine == "none", reason="this PyTorch has no quantised operators")
@pytest.mark.parametrize("bias", [True, False])
def test_packed_int8_is_as_exact_as_seven_bits(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(300, 7, bias=bias), rows(20, 300)
    actual = PackedInt8Linear(layer)(x)
    assert (actual - layer(x)).abs().max() < 0.05 * layer(x).std()
    whole = quantised_range(x.flatten()[None])
    rounded = Rounded(whole.values.view(20, 300), whole.steps[0, 0], whole.middle[0, 0])
    torch.testing.assert_close(PackedInt8Linear(layer, rounded)(rounded.values), layer(x), atol=0.1, rtol=0)


def test_regions_are_ranked_in_low_precision() -> None:
    model = detector(OHEMSampler(8), regions=Regions())
    (exact, rois), (ranked, _) = all_losses(model, 0), all_losses(model, 4)
    hardest = torch.cat([here[hard_examples(exact[here], 2)] for here in by_image(rois)])
    torch.testing.assert_close(ranked[hardest], exact[hardest])
    assert not torch.equal(ranked, exact)
    torch.testing.assert_close(ranked, exact, rtol=0.1, atol=0.2)


def test_where_int8_is_slow_the_exact_pass_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_fastest_on_cpu", lambda: "float32")
    assert suited(torch.device("cpu")) == "float32"
    assert is_exact(torch.device("cpu"))
    model, calls = detector(AllSampler()), []
    real = FastRCNN.read_only_parts
    monkeypatch.setattr(FastRCNN, "read_only_parts", lambda *args: calls.append(1) or real(*args))
    (exact, _), (actual, _) = all_losses(model, 0), all_losses(model, 10)
    assert torch.equal(actual, exact)
    assert len(calls) == 2  # no second pass for the hardest
    features = torch.rand(1, 4, 3, 3)
    with low_precision(model.backbone.roi_head, features) as given:
        assert given is features
