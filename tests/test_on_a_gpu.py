"""Training, mining and detection on a GPU give the same results as on the CPU.

Every test runs on a simulated GPU, whose kernels are those of the CPU: it detects a tensor that is left on the CPU, and
a branch for the CPU that is taken on a GPU. Where there is a GPU, every test runs on it too.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ohem import OHEMLoss, OHEMSampler, with_ohem
from ohem.detection.box_refinement import BoxRefinement
from ohem.kernels.low_precision import Float8Linear
from ohem.recorder import Recorder
from ohem.samplers import IoUBalancedSampler, RandomSampler
from tests.detection.toy_detector import Implementation, detector, mini_batch
from tests.helpers import one_stage, tiny_rcnn
from tests.helpers.contracts import EVERY_SAMPLER
from tests.helpers.fake_gpu import Pretended, on_gpu, pretended_gpu
from tests.kernels.test_low_precision import needs_float8

every_sampler = pytest.mark.parametrize("sampler", EVERY_SAMPLER.values(), ids=EVERY_SAMPLER)
TORCHVISION: dict[str, tuple[Callable[[], nn.Module], Sequence[Any]]] = {
    **{name: (make, tiny_rcnn.mini_batch()) for name, make in tiny_rcnn.MODELS.items()},
    **{kind: (lambda kind=kind: one_stage.make(kind), one_stage.batch("two images")) for kind in one_stage.MAKE},
}
DRAWS = (RandomSampler, IoUBalancedSampler)
"""Samplers that draw: a GPU has other random numbers than the CPU."""


class Device(ABC):
    """A GPU, or what stands for one."""

    rtol, atol = 1e-5, 1e-7
    same_random_numbers = True

    @abstractmethod
    def running(self) -> AbstractContextManager[None]:
        """Returns the context in which tensors are made on the device."""

    @abstractmethod
    def move(self, values: Any) -> Any:
        """Moves the tensors of `values`, or a module, to the device."""

    @abstractmethod
    def held(self, value: Tensor) -> Tensor:
        """Returns the values of a tensor, which must be on the device, on the CPU."""

    def check(self, results: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        held = {name: self.held(value.detach()) for name, value in results.items()}
        assert held.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                held[name],
                value.detach(),
                rtol=self.rtol,
                atol=self.atol,
                msg=lambda text, name=name: f"{name}: {text}",
            )


class Simulated(Device):
    """Tensors that keep their values on the CPU, and do not mix with those of the CPU."""

    def running(self) -> AbstractContextManager[None]:
        return pretended_gpu()

    def move(self, values: Any) -> Any:
        return on_gpu(values)

    def held(self, value: Tensor) -> Tensor:
        assert isinstance(value, Pretended)
        return value.held


class Cuda(Device):
    """A GPU of NVIDIA, in float32 without TF32. Sums have another order than on the CPU."""

    rtol, atol = 2e-4, 2e-5
    same_random_numbers = False

    @contextmanager
    def running(self) -> Iterator[None]:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield

    def move(self, values: Any) -> Any:
        if isinstance(values, nn.Module):
            return values.cuda()
        return tree_map(lambda value: value.cuda() if isinstance(value, Tensor) else value, values)

    def held(self, value: Tensor) -> Tensor:
        assert value.is_cuda
        return value.cpu()


@pytest.fixture(
    params=[
        Simulated(),
        pytest.param(Cuda(), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    ],
    ids=["simulated", "cuda"],
)
def device(request: pytest.FixtureRequest) -> Device:
    gpu: Device = request.param
    return gpu


def step(model: nn.Module, batch: Sequence[Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Runs a training step. Returns the losses, and the gradient of every parameter that has one."""
    torch.manual_seed(0)
    losses = model(*batch)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def check_step(device: Device, make: Callable[[], nn.Module], batch: Sequence[Any], *, draws: bool = False) -> None:
    expected = step(make(), batch)
    with device.running():
        results = step(device.move(make()), device.move(batch))
        for values, expected_values in zip(results, expected, strict=True):
            if draws and not device.same_random_numbers:
                assert values.keys() == expected_values.keys()
                assert all(device.held(value).isfinite().all() for value in values.values())
            else:
                device.check(values, expected_values)


def test_tensors_on_two_devices_cannot_be_mixed(device: Device) -> None:
    with device.running():
        tensor = device.move(torch.tensor([1.0, 3.0, 2.0]))
        assert (tensor[tensor.argsort()] + torch.arange(3, device=tensor.device)).tolist() == [1, 3, 5]
        with pytest.raises(RuntimeError, match=r"two devices|same device"):
            tensor + torch.arange(3)


@pytest.mark.parametrize("implementation", ["read_only", "loss_layer"])
@every_sampler
def test_fast_rcnn_trains_as_on_the_cpu(device: Device, sampler: Any, implementation: Implementation) -> None:
    check_step(device, lambda: detector(sampler, implementation), mini_batch(), draws=isinstance(sampler, DRAWS))


@pytest.mark.parametrize(("make", "batch"), TORCHVISION.values(), ids=TORCHVISION)
def test_torchvision_detectors_train_as_on_the_cpu(
    device: Device, make: Callable[[], nn.Module], batch: Sequence[Any]
) -> None:
    # Their region proposal network draws the anchors it is trained on.
    draws = isinstance(make(), tiny_rcnn.FasterRCNN)
    check_step(device, lambda: with_ohem(make(), OHEMSampler(8)).train(), batch, draws=draws)


def test_statistics_are_those_of_the_cpu(device: Device) -> None:
    on_cpu, on_device = Recorder(OHEMSampler(8)), Recorder(OHEMSampler(8))
    step(detector(on_cpu), mini_batch())
    with device.running():
        step(device.move(detector(on_device)), device.move(mini_batch()))
        assert on_device.statistics() == pytest.approx(on_cpu.statistics(), rel=device.rtol)


@pytest.mark.parametrize("refinement", [None, BoxRefinement(iterations=2, voting=True)], ids=["plain", "B"])
def test_detections_are_those_of_the_cpu(device: Device, refinement: BoxRefinement | None) -> None:
    images, proposals, _ = mini_batch()
    model = detector(OHEMSampler(8), refinement=refinement).eval()
    expected = model(images, proposals)
    with device.running(), torch.no_grad():
        results = device.move(model)(device.move(images), device.move(proposals))
        for detections, expected_detections in zip(results, expected, strict=True):
            device.check(detections, expected_detections)


def test_ohem_loss_is_that_of_the_cpu(device: Device) -> None:
    criterion = OHEMLoss(nn.CrossEntropyLoss(reduction="none", ignore_index=255), keep=0.25, min_kept=16)
    rng = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(2, 19, 8, 8, generator=rng), torch.randint(0, 19, (2, 8, 8), generator=rng)
    labels[0, 0] = 255
    expected = criterion(scores, labels)
    with device.running():
        assert criterion(device.move(scores), device.move(labels)).item() == pytest.approx(expected.item())


@needs_float8
def test_float8_is_that_of_the_cpu(device: Device) -> None:
    layer, x = nn.Linear(32, 16), torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    expected = Float8Linear(layer)(x)
    with device.running(), torch.no_grad():
        output = device.held(Float8Linear(device.move(layer))(device.move(x)))
        # Both are bfloat16, with 8 bits.
        torch.testing.assert_close(output, expected, rtol=2**-7, atol=2**-7)
