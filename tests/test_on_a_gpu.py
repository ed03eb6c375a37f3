"""Training, mining and detection on a simulated GPU give the same results as on the CPU.

No GPU kernel runs. The tests detect a tensor that is left on the CPU, and a branch for the CPU that is taken on a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ohem import OHEMLoss, OHEMSampler, with_ohem
from ohem.detection.box_refinement import BoxRefinement
from ohem.kernels.low_precision import Float8Linear
from ohem.recorder import Recorder
from tests.detection.toy_detector import Implementation, assert_close, detector, mini_batch
from tests.helpers import one_stage, tiny_rcnn
from tests.helpers.contracts import EVERY_SAMPLER
from tests.helpers.fake_gpu import Pretended, on_gpu, pretended_gpu

every_sampler = pytest.mark.parametrize("sampler", EVERY_SAMPLER.values(), ids=EVERY_SAMPLER)
TORCHVISION: dict[str, tuple[Callable[[], nn.Module], Sequence[Any]]] = {
    **{name: (make, tiny_rcnn.mini_batch()) for name, make in tiny_rcnn.MODELS.items()},
    **{kind: (lambda kind=kind: one_stage.make(kind), one_stage.batch("two images")) for kind in one_stage.MAKE},
}


def held(values: dict[str, Tensor]) -> dict[str, Tensor]:
    assert all(isinstance(value, Pretended) for value in values.values())
    return {name: value.held for name, value in values.items() if isinstance(value, Pretended)}


def step(model: nn.Module, batch: Sequence[Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Runs a training step. Returns the losses, and the gradient of every parameter that has one."""
    torch.manual_seed(0)
    losses = model(*batch)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def check_step(make: Callable[[], nn.Module], batch: Sequence[Any]) -> None:
    expected = step(make(), batch)
    with pretended_gpu():
        results = step(on_gpu(make()), on_gpu(batch))
        for values, expected_values in zip(results, expected, strict=True):
            assert_close(held(values), expected_values)


def test_tensors_on_two_devices_cannot_be_mixed() -> None:
    with pretended_gpu():
        tensor = on_gpu(torch.tensor([1.0, 3.0, 2.0]))
        assert (tensor[tensor.argsort()] + torch.arange(3, device=tensor.device)).tolist() == [1, 3, 5]
        with pytest.raises(RuntimeError, match="two devices"):
            tensor + torch.arange(3)


@pytest.mark.parametrize("implementation", ["read_only", "loss_layer"])
@every_sampler
def test_fast_rcnn_trains_as_on_the_cpu(sampler: Any, implementation: Implementation) -> None:
    check_step(lambda: detector(sampler, implementation), mini_batch())


@pytest.mark.parametrize(("make", "batch"), TORCHVISION.values(), ids=TORCHVISION)
def test_torchvision_detectors_train_as_on_the_cpu(make: Callable[[], nn.Module], batch: Sequence[Any]) -> None:
    check_step(lambda: with_ohem(make(), OHEMSampler(8)).train(), batch)


def test_statistics_are_those_of_the_cpu() -> None:
    on_cpu, simulated = Recorder(OHEMSampler(8)), Recorder(OHEMSampler(8))
    step(detector(on_cpu), mini_batch())
    with pretended_gpu():
        step(on_gpu(detector(simulated)), on_gpu(mini_batch()))
        assert simulated.statistics() == pytest.approx(on_cpu.statistics(), rel=1e-5)


@pytest.mark.parametrize("refinement", [None, BoxRefinement(iterations=2, voting=True)], ids=["plain", "B"])
def test_detections_are_those_of_the_cpu(refinement: BoxRefinement | None) -> None:
    images, proposals, _ = mini_batch()
    model = detector(OHEMSampler(8), refinement=refinement).eval()
    expected = model(images, proposals)
    with pretended_gpu(), torch.no_grad():
        results = on_gpu(model)(on_gpu(images), on_gpu(proposals))
        for detections, expected_detections in zip(results, expected, strict=True):
            detached = {name: value.detach() for name, value in expected_detections.items()}
            torch.testing.assert_close(held(detections), detached)


def test_ohem_loss_is_that_of_the_cpu() -> None:
    criterion = OHEMLoss(nn.CrossEntropyLoss(reduction="none", ignore_index=255), keep=0.25, min_kept=16)
    rng = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(2, 19, 8, 8, generator=rng), torch.randint(0, 19, (2, 8, 8), generator=rng)
    labels[0, 0] = 255
    expected = criterion(scores, labels)
    with pretended_gpu():
        assert criterion(on_gpu(scores), on_gpu(labels)).item() == pytest.approx(expected.item())


@pytest.mark.skipif(not hasattr(nn.functional, "scaled_mm"), reason="torch has scaled_mm from 2.10 on")
def test_float8_is_that_of_the_cpu() -> None:
    layer, x = nn.Linear(32, 16), torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    expected = Float8Linear(layer)(x)
    with pretended_gpu(), torch.no_grad():
        output = Float8Linear(on_gpu(layer))(on_gpu(x))
        assert torch.equal(output.held, expected)
