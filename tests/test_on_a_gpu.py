"""Training, mining and detection on a device that is not the CPU: a pretended one, which gives what the CPU gives.

No kernel of a GPU runs; what fails is a tensor left on the CPU, or a branch for the CPU that is taken elsewhere.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ohem import OHEMLoss, OHEMSampler, with_ohem
from ohem.detection.coarse import Float8Linear
from ohem.detection.refinement import BoxRefinement
from ohem.recording import Recorder
from tests.contracts import EVERY_SAMPLER
from tests.detection.test_fast_rcnn import Implementation, assert_close, detector, mini_batch
from tests.integrations import one_stage, tiny_rcnn
from tests.pretend_gpu import Pretended, on_gpu, pretended_gpu

every_sampler = pytest.mark.parametrize("sampler", EVERY_SAMPLER.values(), ids=EVERY_SAMPLER)
TORCHVISION: dict[str, tuple[Callable[[], nn.Module], Sequence[Any]]] = {
    **{name: (make, tiny_rcnn.mini_batch()) for name, make in tiny_rcnn.MODELS.items()},
    **{kind: (lambda kind=kind: one_stage.make(kind), one_stage.batch("two images")) for kind in one_stage.MAKE},
}


def held(values: dict[str, Tensor]) -> dict[str, Tensor]:
    assert all(isinstance(value, Pretended) for value in values.values())
    return {name: value.held for name, value in values.items() if isinstance(value, Pretended)}


def step(model: nn.Module, batch: Sequence[Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses, and the gradient of every parameter that has one."""
    torch.manual_seed(0)
    losses = model(*batch)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def check_step(make: Callable[[], nn.Module], batch: Sequence[Any]) -> None:
    expected = step(make(), batch)
    with pretended_gpu():
        found = step(on_gpu(make()), on_gpu(batch))
        for some, others in zip(found, expected, strict=True):
            assert_close(held(some), others)


def test_two_devices_do_not_mix() -> None:
    with pretended_gpu():
        there = on_gpu(torch.tensor([1.0, 3.0, 2.0]))
        assert (there[there.argsort()] + torch.arange(3, device=there.device)).tolist() == [1, 3, 5]
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.arange(3)


@pytest.mark.parametrize("implementation", ["read_only", "loss_layer"])
@every_sampler
def test_fast_rcnn_trains_alike(sampler: Any, implementation: Implementation) -> None:
    check_step(lambda: detector(sampler, implementation), mini_batch())


@pytest.mark.parametrize(("make", "batch"), TORCHVISION.values(), ids=TORCHVISION)
def test_torchvisions_detectors_train_alike(make: Callable[[], nn.Module], batch: Sequence[Any]) -> None:
    check_step(lambda: with_ohem(make(), OHEMSampler(8)).train(), batch)


def test_what_was_mined_is_told_alike() -> None:
    here, there = Recorder(OHEMSampler(8)), Recorder(OHEMSampler(8))
    step(detector(here), mini_batch())
    with pretended_gpu():
        step(on_gpu(detector(there)), on_gpu(mini_batch()))
        assert there.statistics() == pytest.approx(here.statistics(), rel=1e-5)


@pytest.mark.parametrize("refinement", [None, BoxRefinement(iterations=2, voting=True)], ids=["plain", "B"])
def test_detections_are_alike(refinement: BoxRefinement | None) -> None:
    images, proposals, _ = mini_batch()
    model = detector(OHEMSampler(8), refinement=refinement).eval()
    expected = model(images, proposals)
    with pretended_gpu(), torch.no_grad():
        for found, one in zip(on_gpu(model)(on_gpu(images), on_gpu(proposals)), expected, strict=True):
            torch.testing.assert_close(held(found), {name: value.detach() for name, value in one.items()})


def test_losses_of_any_criterion_are_alike() -> None:
    criterion = OHEMLoss(nn.CrossEntropyLoss(reduction="none", ignore_index=255), keep=0.25, min_kept=16)
    rng = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(2, 19, 8, 8, generator=rng), torch.randint(0, 19, (2, 8, 8), generator=rng)
    labels[0, 0] = 255
    expected = criterion(scores, labels)
    with pretended_gpu():
        assert criterion(on_gpu(scores), on_gpu(labels)).item() == pytest.approx(expected.item())


def test_float8_is_alike() -> None:
    layer, x = nn.Linear(32, 16), torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    expected = Float8Linear(layer)(x)
    with pretended_gpu(), torch.no_grad():
        found = Float8Linear(on_gpu(layer))(on_gpu(x))
        assert torch.equal(found.held, expected)
