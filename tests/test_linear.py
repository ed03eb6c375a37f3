"""Linear layers by oneDNN: the same numbers and gradients as PyTorch's own, and no trace afterwards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ohem.linear import by_onednn, forwards

needed = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="this PyTorch does not multiply by MKL, or has no oneDNN",
)


def called(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Fills with the shape of each input that goes to oneDNN."""
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
    found, gradients = [], []
    for layer, context in ((ours, by_onednn(ours)), (plain, by_onednn(nn.Identity()))):
        given_x = x.clone().requires_grad_()
        with context:
            out = layer(given_x)
        (out * weights).sum().backward()
        found.append(out.detach())
        gradients.append([given_x.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


@needed
def test_it_is_used_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    shapes = called(model, monkeypatch)
    with by_onednn(model):
        model(torch.randn(3, 4))
    assert shapes == [(3, 4), (3, 4)]
    model(torch.randn(3, 4))
    assert len(shapes) == 2


@needed
def test_it_is_left_alone_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    shapes = called(model, monkeypatch)
    with by_onednn(model):
        assert model(torch.randn(2, 3, 4)).shape == (2, 3, 2)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(torch.randn(3, 4)).dtype == torch.bfloat16
        model.double()
        assert model(torch.randn(3, 4, dtype=torch.float64)).dtype == torch.float64
    assert shapes == []


def test_a_forward_of_its_own_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    model[0].forward = lambda x: torch.full((len(x), 2), 7.0)  # as some quantising and logging tools do
    own = model[0].forward
    with by_onednn(model):
        assert model[0](torch.randn(3, 4)).unique().tolist() == [7.0]
    assert model[0].forward is own
    assert "forward" not in vars(model[1])


def test_no_trace_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="shapes"), by_onednn(model):
        model(torch.randn(3, 5))
    assert "forward" not in vars(model[0])


def test_the_inner_of_two_leaves_the_outer_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    x = torch.randn(3, 4)
    with forwards(model, lambda layer: lambda x: x[:, :2]):
        with by_onednn(model):
            assert torch.equal(model(x), x[:, :2])
        assert torch.equal(model(x), x[:, :2])
    assert not torch.equal(model(x), x[:, :2])
