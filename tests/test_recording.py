"""What is told of a choice, counted by hand."""

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ohem.recording import Recorder
from ohem.rois import RoIs
from ohem.samplers import AllSampler, OHEMSampler, RandomSampler
from tests.contracts import check_sampler, mini_batches
from tests.make_rois import make_rois

UNIT = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]
ELSEWHERE = [90.0, 90.0, 99.0, 99.0]


def given(*losses: float) -> Callable[[], Tensor]:
    return lambda: torch.tensor(losses)


def mined() -> RoIs:
    return make_rois(
        [1, 0, 0, -1, 0], boxes=[UNIT, UNIT, FAR, FAR, ELSEWHERE], ious=[0.9, 0.45, 0.05, 0.0, 0.1], num_images=1
    )


@pytest.mark.parametrize("sampler", [AllSampler(), RandomSampler(8), OHEMSampler(8)], ids=str)
def test_choices_are_passed_on_unchanged(sampler: AllSampler | RandomSampler | OHEMSampler) -> None:
    recorder = Recorder(sampler)
    check_sampler(recorder)
    for rois in mini_batches().values():
        losses = torch.rand(len(rois))
        torch.manual_seed(0)
        expected = sampler(rois, lambda losses=losses: losses)  # type: ignore[misc]
        torch.manual_seed(0)
        assert torch.equal(recorder(rois, lambda losses=losses: losses), expected)  # type: ignore[misc]
        assert recorder.rois is rois
        assert torch.equal(recorder.chosen, expected)  # type: ignore[arg-type]


def test_nothing_to_tell_before_the_first() -> None:
    assert Recorder(AllSampler()).statistics() == {}


def test_of_mining() -> None:
    recorder = Recorder(OHEMSampler(2))
    # Survivors are the RoIs 0, 2 and 4; chosen are 4 and 0.
    assert recorder(mined(), given(2.0, 1.0, 0.5, 100.0, 4.0)).tolist() == [4, 0]
    assert recorder.statistics() == pytest.approx(
        {
            "rois": 4,
            "chosen": 2,
            "foreground": 1 / 2,
            "far": 0,  # IoU 0.1 is not below 0.1
            "survivors": 3,
            "loss_chosen": 3.0,
            "loss_all": 7.5 / 4,
            "nan": 0,
        }
    )


def test_of_far_background() -> None:
    recorder = Recorder(OHEMSampler(4))
    assert recorder(mined(), given(1.0, 2.0, 3.0, 0.0, 4.0)).tolist() == [4, 2, 1]
    found = recorder.statistics()
    assert found["far"] == pytest.approx(1 / 3)
    assert found["foreground"] == 0


def test_a_sampler_that_does_not_look_at_the_losses_has_none_to_tell() -> None:
    def not_called() -> Tensor:
        raise AssertionError("the read-only pass was run")

    recorder = Recorder(AllSampler())
    recorder(mined(), not_called)
    assert recorder.losses is None
    assert recorder.statistics() == {"rois": 4, "chosen": 4, "foreground": 1 / 4, "far": 1 / 4}


def test_losses_of_another_strategy_are_told_without_survivors() -> None:
    recorder = Recorder(lambda rois, losses: losses().argmax()[None])
    recorder(make_rois([0, 1]), given(1.0, 3.0))
    found = recorder.statistics()
    assert "survivors" not in found
    assert (found["loss_chosen"], found["loss_all"]) == (3.0, 2.0)


def test_the_losses_are_computed_once_a_call_and_never_kept_for_the_next() -> None:
    calls = []

    def losses() -> Tensor:
        calls.append(1)
        return torch.full((2,), float(len(calls)))

    def twice(rois: RoIs, losses: Callable[[], Tensor]) -> Tensor:
        assert torch.equal(losses(), losses())
        return torch.tensor([0])

    recorder = Recorder(twice)
    for n in (1, 2):
        recorder(make_rois([0, 0]), losses)
        assert len(calls) == n
        recorder.statistics()
        assert recorder.statistics()["loss_all"] == n
    assert len(calls) == 2


def test_the_last_mini_batch_is_told() -> None:
    lazy = True
    recorder = Recorder(lambda rois, losses: torch.arange(len(rois)) if lazy else losses().argsort())
    lazy = False
    recorder(make_rois([1]), given(5.0))
    assert recorder.statistics()["foreground"] == 1
    lazy = True
    recorder(make_rois([0, 0]), given(1.0, 1.0))
    assert recorder.statistics() == {"rois": 2, "chosen": 2, "foreground": 0, "far": 1}


def test_nothing_chosen() -> None:
    for labels in ([], [-1, -1]):
        recorder = Recorder(OHEMSampler(4))
        recorder(make_rois(labels), lambda labels=labels: torch.ones(len(labels)))  # type: ignore[misc]
        assert recorder.statistics() == dict.fromkeys(
            ("rois", "chosen", "foreground", "far", "survivors", "loss_chosen", "loss_all", "nan"), 0
        )


def test_the_histogram_of_iou_is_of_the_chosen() -> None:
    recorder = Recorder(lambda rois, losses: torch.arange(1, len(rois)))
    assert recorder.iou_histogram() == []
    ious = [0.5, 0.0, 0.05, *(n / 10 for n in range(1, 10)), 0.99, 1.0, 0.5]  # the first is not chosen
    recorder(make_rois([0] * len(ious), ious=ious), given())
    assert recorder.iou_histogram() == [2, 1, 1, 1, 1, 2, 1, 1, 1, 3]
    recorder(make_rois([0], ious=[0.5]), given())
    assert recorder.iou_histogram() == [0] * 10


def test_copies_and_pickles_hold_the_strategy_alone() -> None:
    recorder = Recorder(OHEMSampler(2))
    recorder(mined(), given(2.0, 1.0, 0.5, 100.0, 4.0))
    for twin in (copy.deepcopy(recorder), pickle.loads(pickle.dumps(recorder))):
        assert twin.sampler == recorder.sampler
        assert twin.statistics() == {}
        assert (twin.rois, twin.chosen, twin.losses) == (None, None, None)
    assert recorder.statistics()["chosen"] == 2


def test_nan_is_counted() -> None:
    recorder = Recorder(OHEMSampler(1))
    with pytest.warns(RuntimeWarning):
        recorder(make_rois([0, 0, 0]), given(math.nan, 1.0, math.nan))
    assert recorder.statistics()["nan"] == 2
    assert recorder.statistics()["loss_chosen"] == 1.0


def test_survivors_of_very_many_rois_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take minutes for the anchors of a one-stage detector."""
    recorder = Recorder(OHEMSampler(2))
    recorder(mined(), given(3.0, 4.0, 1.0, 9.0, 2.0))
    monkeypatch.setattr("ohem.recording.MOST_COUNTED", 5)
    assert recorder.statistics()["survivors"] == 3
    monkeypatch.setattr("ohem.recording.MOST_COUNTED", 4)
    assert "survivors" not in recorder.statistics()
