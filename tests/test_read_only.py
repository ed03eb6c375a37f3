"""The read-only pass leaves no graph and no statistics, and computes the same as the training pass."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ohem.kernels.fast_linear import fast_layers
from ohem.read_only import read_only


def network() -> nn.Sequential:
    """Returns a network with every kind of normalisation and with dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, momentum=None),  # a cumulative average: it counts batches
        nn.InstanceNorm2d(4, track_running_stats=True, affine=True),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Dropout(0.5),
    )


def images(n: int = 4) -> Tensor:
    return 3 + torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(module.named_buffers()))


def assert_same_buffers(module: nn.Module, before: dict[str, Tensor]) -> None:
    after = dict(module.named_buffers())
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_statistics_stay_as_they_are() -> None:
    module = network().train()
    module(images())  # so that they differ from their initial values
    before = buffers(module)
    with read_only(module):
        module(images() * 5)
    assert_same_buffers(module, before)


def test_statistics_move_again_afterwards() -> None:
    """Checks that they are the same tensors, which optimizers, checkpoints and averages may hold."""
    module, twin = network().train(), network().train()
    twin.load_state_dict(module.state_dict())
    held = dict(module.named_buffers())
    with read_only(module):
        module(images() * 5)
    module(images())
    twin(images())
    assert all(value is held[name] for name, value in module.named_buffers())
    assert_same_buffers(module, buffers(twin))


def test_statistics_are_restored_after_an_exception() -> None:
    module = network().train()
    before = buffers(module)

    def fail() -> None:
        with read_only(module):
            module(images())
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail()
    assert_same_buffers(module, before)
    assert torch.is_grad_enabled()


def test_no_graph() -> None:
    module = network().train()
    with read_only(module):
        assert not module(images()).requires_grad
    assert module(images()).requires_grad


def test_gradients_are_switched_back_to_what_they_were() -> None:
    with torch.no_grad():
        with read_only(network()):
            pass
        assert not torch.is_grad_enabled()


def test_the_pass_is_that_of_training() -> None:
    """Checks normalisation by the batch, active dropout, and an unchanged mode."""
    module = network().train()
    torch.manual_seed(0)
    with read_only(module):
        actual = module(images())
        assert all(m.training for m in module.modules())
    assert all(m.training for m in module.modules())
    torch.manual_seed(0)
    with fast_layers(module):  # dropout there draws different numbers from PyTorch's
        torch.testing.assert_close(actual, module(images()))
    assert 0.3 < (actual == 0).float().mean() < 0.7  # dropped


def test_every_pass_has_its_own_dropout() -> None:
    module = network().train()
    with read_only(module):
        first, second = module(images()), module(images())
    assert not torch.equal(first, second)


def test_evaluation_mode_uses_the_statistics() -> None:
    module = network().train()
    module(images())
    module.eval()
    expected, before = module(images()), buffers(module)
    with read_only(module):
        assert torch.equal(module(images()), expected)
    assert_same_buffers(module, before)


def test_frozen_normalisation_keeps_using_its_statistics() -> None:
    """Uses a detector in train mode whose batch norm stays in evaluation mode."""
    module = network().train()
    module(images())
    for layer in module:
        if not isinstance(layer, nn.Dropout):
            layer.eval()
    torch.manual_seed(0)
    with fast_layers(module):
        expected = module(images())
    torch.manual_seed(0)
    with read_only(module):
        assert torch.equal(module(images()), expected)


def test_nesting() -> None:
    module = network().train()
    before = buffers(module)
    with read_only(module), read_only(module):
        module(images())
    assert_same_buffers(module, before)


def test_checkpoints_are_the_same_before_and_after() -> None:
    module = network().train()
    names = list(module.state_dict())
    with read_only(module):
        module(images())
    assert list(module.state_dict()) == names


def test_processes_do_not_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that a pass of `SyncBatchNorm` does not wait: one process may rank more RoIs than another."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)).train()
    module = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    assert [type(m) for m in module[1:]] == [nn.SyncBatchNorm] * 2
    with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on"):
        module(images())  # it would wait for the others, which it cannot do on the CPU
    before = buffers(module)
    with read_only(module):
        actual = module(images())
    assert all(m.training for m in module.modules())
    assert_same_buffers(module, before)
    torch.testing.assert_close(actual, plain(images()).detach())
