"""Checkpoints: the newest complete checkpoint of a training is used."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ohem.errors import InputError
from ohem.training import checkpoint

State = dict[str, Any]


def layer(inputs: int = 3) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, 2)


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    groups = [{"params": [p], "factor": 1.0} for p in model.parameters()]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def trained(step: int = 7) -> State:
    model = layer()
    optimizer = optimizer_of(model)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "step": step,
        "window": {"sums": {"loss": 1.5, "grad_norm": float("inf")}, "counts": {"loss": 2, "grad_norm": 1}},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "precision": {},
        "metrics": "step\r\n",
    }


def spoil(change: Callable[[State], object]) -> State:
    state = copy.deepcopy(trained(9))
    change(state)
    return state


CONTENTS: dict[str, Any] = {
    "a list": [1, 2],
    "a tensor": torch.zeros(3),
    "nothing": {},
    "a state dict": layer().state_dict(),
    "no step": spoil(lambda s: s.pop("step")),
    "no optimizer": spoil(lambda s: s.pop("optimizer")),
    "step below 0": spoil(lambda s: s.update(step=-1)),
    "step of text": spoil(lambda s: s.update(step="9")),
    "step that is True": spoil(lambda s: s.update(step=True)),
    "model of a number": spoil(lambda s: s["model"].update(bias=3)),
    "model without a tensor": spoil(lambda s: s.update(model={})),
    "NaN": spoil(lambda s: s["model"]["weight"][0].fill_(torch.nan)),
    "infinity": spoil(lambda s: s["model"]["bias"].fill_(-torch.inf)),
    "NaN in a momentum": spoil(lambda s: s["optimizer"]["state"][0]["momentum_buffer"].fill_(torch.nan)),
    "groups of text": spoil(lambda s: s["optimizer"].update(param_groups="x")),
    "momentum of text": spoil(lambda s: s["optimizer"]["state"][0].update(momentum_buffer="x")),
    "counts of other names": spoil(lambda s: s["window"].update(counts={})),
    "counts of 0": spoil(lambda s: s["window"]["counts"].update(loss=0)),
    "window of a list": spoil(lambda s: s.update(window=[])),
    "precision of a list": spoil(lambda s: s.update(precision=[])),
    "metrics of a number": spoil(lambda s: s.update(metrics=3)),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_no_checkpoint_gives_way_to_the_one_before(name: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, trained(7))
    (tmp_path / checkpoint.NAME).rename(tmp_path / checkpoint.PREVIOUS)
    torch.save(CONTENTS[name], tmp_path / checkpoint.NAME)
    with pytest.warns(
        UserWarning, match=r"checkpoint\.pt is damaged or is no checkpoint .* the previous checkpoint is used"
    ):
        loaded = checkpoint.find(tmp_path)
    assert loaded is not None
    assert (loaded.path.name, loaded.state["step"]) == (checkpoint.PREVIOUS, 7)
    (tmp_path / checkpoint.PREVIOUS).unlink()
    with pytest.raises(InputError, match=r"no whole checkpoint, checkpoint\.pt is .*: remove it"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_of_an_older_version_has_no_metrics(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, spoil(lambda s: s.pop("metrics")))
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == 9
    assert checkpoint.metrics_of(tmp_path) is None


def test_torch_files_of_other_formats(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / checkpoint.NAME, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="not a zip file"):
        checkpoint.load(tmp_path)
    (tmp_path / checkpoint.NAME).write_bytes(b"")
    with pytest.raises(InputError, match="no whole checkpoint"):
        checkpoint.load(tmp_path)


def test_weights_that_were_changed_in_a_whole_file_are_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, trained())
    state = torch.load(tmp_path / checkpoint.NAME)
    state["model"]["bias"][0] += 1
    torch.save(state, tmp_path / checkpoint.NAME)
    with pytest.raises(InputError, match="its content does not match its digest"):
        checkpoint.load(tmp_path)


def test_a_newest_one_that_is_missing_is_said(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, trained())
    (tmp_path / checkpoint.NAME).rename(tmp_path / checkpoint.PREVIOUS)
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is missing: the previous checkpoint is used"):
        assert checkpoint.load(tmp_path) is not None


def test_both_are_named_where_neither_is_whole(tmp_path: Path) -> None:
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(b"no")
    with (
        pytest.warns(UserWarning, match="the previous checkpoint is used"),
        pytest.raises(InputError, match=r"checkpoint\.pt .*previous\.pt .*remove both"),
    ):
        checkpoint.load(tmp_path)


def test_a_damaged_one_never_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    """Checks the case that a run dies between the two renames."""
    checkpoint.save(tmp_path, trained(7))
    checkpoint.save(tmp_path, trained(8))
    (tmp_path / checkpoint.NAME).write_bytes(b"no")
    checkpoint.save(tmp_path, trained(9), keep_newest=False)
    steps = [torch.load(tmp_path / name)["step"] for name in (checkpoint.PREVIOUS, checkpoint.NAME)]
    assert steps == [7, 9]


def test_restoring_gives_back_what_was_saved() -> None:
    state, model = trained(), layer()
    optimizer = optimizer_of(model)
    checkpoint.restore(model, state, Path("run"))
    checkpoint.restore_optimizer(optimizer, state, Path("run"))
    again = optimizer.state_dict()
    assert all(
        torch.equal(again["state"][i]["momentum_buffer"], v["momentum_buffer"]) for i, v in enumerate_state(state)
    )
    assert again["param_groups"] == state["optimizer"]["param_groups"]


def enumerate_state(state: State) -> list[tuple[int, Any]]:
    loaded = list(state["optimizer"]["state"].items())
    assert loaded
    return loaded


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["optimizer"]["param_groups"].pop(),
        lambda s: s["optimizer"]["param_groups"][0].update(params=[0, 1]),
        lambda s: s["optimizer"]["state"].update({5: {}}),
        lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(2, 4)),
        lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(2, 3, dtype=torch.float64)),
        lambda s: s["optimizer"]["state"][0].pop("momentum_buffer"),
        lambda s: s["optimizer"]["state"].pop(1),
    ],
)
def test_momenta_of_other_parameters_are_refused(change: Callable[[State], object]) -> None:
    with pytest.raises(InputError, match=re.escape("the checkpoint of run is of another detector")):
        checkpoint.restore_optimizer(optimizer_of(layer()), spoil(change), Path("run"))


def test_options_of_the_optimizer_are_those_of_the_recipe() -> None:
    optimizer = optimizer_of(layer())
    foreign = spoil(lambda s: s["optimizer"]["param_groups"][0].update(momentum=0.1, factor="x", odd=1))
    checkpoint.restore_optimizer(optimizer, foreign, Path("run"))
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.param_groups[0]["factor"] == 1.0
