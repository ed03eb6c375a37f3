"""The choice among kernels: the fastest, once in a process, kept where the difference is small."""

import time
from collections.abc import Callable

import pytest
import torch

from ohem.kernels import choice
from ohem.kernels.fast_linear import onednn_is_faster


@pytest.fixture(autouse=True)
def no_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_chosen", {})


def measured(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> dict[str, Callable[[], object]]:
    monkeypatch.setattr(choice, "measure", lambda kernels: {name: seconds[name] for name in kernels})
    return dict.fromkeys(seconds, lambda: None)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"plain": 1.0, "fast": 0.5}, "fast"),
        ({"plain": 1.0, "fast": 0.9}, "plain"),  # too little
        ({"plain": 1.0, "fast": 17.0}, "plain"),
        ({"plain": 1.0, "fast": 0.5, "other": 0.3}, "other"),
        ({"plain": 1.0, "fast": 0.5, "other": 0.45}, "fast"),  # as fast as each other
    ],
)
def test_the_fastest_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], chosen: str
) -> None:
    assert choice.fastest("sum", measured(monkeypatch, **seconds), 0.8) == chosen


def test_a_choice_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.fastest("sum", measured(monkeypatch, plain=1.0, fast=0.5), 0.8) == "fast"
    assert choice.fastest("sum", measured(monkeypatch, plain=1.0, fast=2.0), 0.8) == "fast"
    assert choice.fastest("product", measured(monkeypatch, plain=1.0, fast=2.0), 0.8) == "plain"
    choice.forget()
    assert choice.fastest("sum", measured(monkeypatch, plain=1.0, fast=2.0), 0.8) == "plain"


def test_choices_of_a_checkpoint_are_for_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    choice.fastest("sum", measured(monkeypatch, plain=1.0, fast=0.5), 0.8)
    kept = choice.choices()
    choice.forget()
    choice.restore({**kept, "processor": "another"})
    assert choice.fastest("sum", measured(monkeypatch, plain=1.0, fast=2.0), 0.8) == "plain"
    choice.restore(kept)
    assert choice.fastest("sum", measured(monkeypatch, plain=1.0, fast=2.0), 0.8) == "fast"
    choice.restore({"processor": choice.processor(), "sum": "a kernel of another version"})
    assert choice.fastest("sum", measured(monkeypatch, plain=1.0, fast=2.0), 0.8) == "plain"


def test_the_measurement_warms_up_takes_turns_and_leaves_out_the_hopeless() -> None:
    calls: list[str] = []

    def work(name: str, loops: int) -> None:
        calls.append(name)
        started = time.thread_time()
        while time.thread_time() - started < loops * 1e-3:
            pass

    seconds = choice.measure({"short": lambda: work("short", 1), "long": lambda: work("long", 8)})
    assert seconds["short"] < seconds["long"]
    assert calls == ["short", "long", "short", "long", *["short"] * (choice.TRIALS - 1)]


@pytest.mark.parametrize("training", [True, False])
def test_the_measurement_keeps_random_numbers_and_threads(training: bool) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert onednn_is_faster(training) in (True, False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert len(choice.choices()) == 2
