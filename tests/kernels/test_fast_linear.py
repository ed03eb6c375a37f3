"""Faster linear layers and dropout: the numbers, gradients and distribution of PyTorch, and no trace afterwards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ohem.kernels import fast_linear as fast_linear_module
from ohem.kernels.fast_linear import fast_layers, fast_linear, forwards, kernels_of, with_whole_rows

needed = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="this PyTorch does not multiply by MKL, or has no oneDNN",
)


def called(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Records the shape of each input that goes to oneDNN."""
    shapes, convert = [], Tensor.to_mkldnn

    def to_mkldnn(x: Tensor, *args: object) -> Tensor:
        shapes.append(tuple(x.shape))
        return convert(x, *args)

    monkeypatch.setattr(Tensor, "to_mkldnn", to_mkldnn)
    return shapes


@given(st.integers(0, 40), st.integers(1, 70), st.integers(1, 40), st.booleans(), st.booleans())
def test_same_numbers_and_gradients(r: int, inputs: int, outputs: int, bias: bool, transposed: bool) -> None:
    torch.manual_seed(r)
    ours, plain = (nn.Linear(inputs, outputs, bias=bias) for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(inputs, r).t() if transposed else torch.randn(r, inputs)
    weights = torch.randn(r, outputs)
    actual, gradients = [], []
    for layer, context in ((ours, fast_linear(ours)), (plain, fast_linear(nn.Identity()))):
        given_x = x.clone().requires_grad_()
        with context:
            out = layer(given_x)
        (out * weights).sum().backward()
        actual.append(out.detach())
        gradients.append([given_x.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*actual, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


@needed
def test_onednn_is_used_where_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    shapes = called(model, monkeypatch)
    with fast_linear(model):
        model(torch.randn(3, 4))
    assert shapes == [(64, 4), (64, 4)]
    model(torch.randn(3, 4))
    assert len(shapes) == 2


@needed
def test_onednn_gets_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps a kernel for each, so that a training would take more memory from step to step."""
    model = nn.Sequential(nn.Linear(4, 2))
    shapes = called(model, monkeypatch)
    with fast_linear(model), torch.no_grad():
        assert [len(model(torch.randn(rows, 4))) for rows in range(130)] == list(range(130))
    assert {rows for rows, _ in shapes} == {0, 64, 128, 192}


@needed
def test_the_kernel_of_autocast_gets_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch itself multiplies bfloat16 by oneDNN."""
    rows, forward = [], nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: rows.append(len(x)) or forward(layer, x))
    model = nn.Sequential(nn.Linear(4, 2))
    with fast_linear(model), torch.autocast("cpu", torch.bfloat16):
        assert [len(model(torch.randn(count, 4))) for count in (1, 64, 65)] == [1, 64, 65]
    assert rows == [64, 64, 128]


@given(st.integers(0, 130))
def test_rows_of_zeros_are_added_and_removed(rows: int) -> None:
    numbers = []

    def forward(x: Tensor) -> Tensor:
        numbers.append(len(x))
        return x.sum(dim=1, keepdim=True)

    x = torch.rand(rows, 3)
    assert torch.equal(with_whole_rows(forward, x), forward(x))
    assert numbers == [-(-rows // 64) * 64, rows]


@needed
def test_onednn_is_not_used_for_other_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    shapes = called(model, monkeypatch)
    with fast_linear(model):
        assert model(torch.randn(2, 3, 4)).shape == (2, 3, 2)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(torch.randn(3, 4)).dtype == torch.bfloat16
        model.double()
        assert model(torch.randn(3, 4, dtype=torch.float64)).dtype == torch.float64
    assert shapes == []


@needed
@pytest.mark.parametrize("faster", [True, False])
def test_large_layers_are_multiplied_by_the_faster_kernel(monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    requests = []
    monkeypatch.setattr(fast_linear_module, "onednn_is_faster", lambda training: requests.append(training) or faster)
    model = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 2))
    shapes = called(model, monkeypatch)
    with fast_linear(model):
        expected = model(torch.randn(3, 1024))
        with torch.no_grad():
            model(torch.randn(3, 1024))
    assert expected.requires_grad
    assert requests == [True, False]
    assert len(shapes) == (4 if faster else 2)  # the small layer is always multiplied by oneDNN
    name = "oneDNN" if faster else "MKL"
    assert kernels_of(model) == f"large linear layers are multiplied by {name}, without gradient by {name}"
    assert kernels_of(model[1]) == ""


def test_a_replaced_forward_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    model[0].forward = lambda x: torch.full((len(x), 2), 7.0)  # as some quantising and logging tools do
    own = model[0].forward
    with fast_linear(model):
        assert model[0](torch.randn(3, 4)).unique().tolist() == [7.0]
    assert model[0].forward is own
    assert "forward" not in vars(model[1])


def test_no_trace_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="shapes"), fast_linear(model):
        model(torch.randn(3, 5))
    assert "forward" not in vars(model[0])


def test_another_forward_replaces_the_fast_one_and_is_removed_again() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    x = torch.randn(3, 4)
    with fast_linear(model):
        fast = model[0].forward
        with forwards(model, {nn.Linear: lambda layer: lambda x: x[:, :2]}):
            with fast_layers(model):
                assert torch.equal(model(x), x[:, :2])
            assert torch.equal(model(x), x[:, :2])
        assert model[0].forward is fast
    assert "forward" not in vars(model[0])


@pytest.mark.parametrize("p", [0.5, 0.25, 1 / 256, 0.0])
@pytest.mark.parametrize("size", [100_000, 99_997])
def test_dropout_has_the_distribution_of_pytorchs(p: float, size: int) -> None:
    model, x = nn.Sequential(nn.Dropout(p)).train(), torch.ones(size)
    torch.manual_seed(0)
    with fast_layers(model):
        actual = model(x)
    kept = actual != 0
    assert torch.equal(actual[kept], torch.full_like(actual[kept], 1 / (1 - p)))
    # Five standard deviations of a binomial count; neighbours are independent.
    spread = 5 * (p * (1 - p) / size) ** 0.5
    assert abs((~kept).float().mean().item() - p) <= spread
    for separate in (1, 8):
        assert abs((kept[separate:] & kept[:-separate]).float().mean().item() - (1 - p) ** 2) <= 2 * spread


def test_dropout_follows_the_seed_and_only_drops_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.Dropout(0.5)).train(), torch.randn(50, 7)
    actual = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with fast_layers(model):
            actual.append(model(x))
    assert torch.equal(actual[0], actual[1])
    assert not torch.equal(actual[0], actual[2])
    with fast_layers(model.eval()):
        assert torch.equal(model(x), x)


@pytest.mark.parametrize("p", [0.1, 1.0])
def test_dropout_without_a_byte_fraction_is_pytorchs(p: float) -> None:
    model, x, actual = nn.Sequential(nn.Dropout(p)).train(), torch.randn(50, 7), []
    for module in (model, nn.Identity()):
        torch.manual_seed(0)
        with fast_layers(module):
            actual.append(model(x))
    assert torch.equal(*actual)
