"""The statistics of a `Recorder`, checked by hand."""

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ohem.recorder import STATISTICS, Recorder
from ohem.rois import RoIs
from ohem.samplers import AllSampler, NoiseAwareSampler, OHEMSampler, RandomSampler, RatioSampler
from tests.helpers.contracts import check_sampler, mini_batches
from tests.helpers.make_rois import make_rois

UNIT = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]
ELSEWHERE = [90.0, 90.0, 99.0, 99.0]


def make_losses(*losses: float) -> Callable[[], Tensor]:
    return lambda: torch.tensor(losses)


def example() -> RoIs:
    return make_rois(
        [1, 0, 0, -1, 0], boxes=[UNIT, UNIT, FAR, FAR, ELSEWHERE], ious=[0.9, 0.45, 0.05, 0.0, 0.1], num_images=1
    )


@pytest.mark.parametrize("sampler", [AllSampler(), RandomSampler(8), OHEMSampler(8)], ids=str)
def test_choices_are_returned_unchanged(sampler: AllSampler | RandomSampler | OHEMSampler) -> None:
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


def test_no_statistics_before_the_first_call() -> None:
    assert Recorder(AllSampler()).statistics() == {}


def test_repr_before_the_first_call() -> None:
    assert repr(Recorder(RatioSampler(2.0))) == f"Recorder({RatioSampler(2.0)!r}): nothing mined yet"


def test_repr_explains_the_statistics_of_the_last_call() -> None:
    recorder = Recorder(OHEMSampler(2))
    recorder(example(), make_losses(2.0, 1.0, 0.5, 100.0, 4.0))
    first, *lines = str(recorder).splitlines()
    assert first == f"Recorder({OHEMSampler(2)!r}), last mini-batch:"
    names = [line.split()[0] for line in lines]
    assert names == [name for name in STATISTICS if name != "set_aside"]  # which is of another sampler
    for line, name in zip(lines, names, strict=True):
        assert line.endswith(f"  {STATISTICS[name]}")
        assert float(line.split()[1]) == pytest.approx(recorder.statistics()[name])


def test_repr_leaves_out_unknown_statistics() -> None:
    recorder = Recorder(AllSampler())
    recorder(example(), make_losses())
    assert [line.split()[0] for line in repr(recorder).splitlines()[1:]] == ["rois", "chosen", "foreground", "far"]


def test_every_statistic_has_a_meaning() -> None:
    known: set[str] = set()
    for sampler in (OHEMSampler(2), NoiseAwareSampler()):
        recorder = Recorder(sampler)
        recorder(example(), make_losses(2.0, 1.0, 0.5, 100.0, 4.0))
        known |= recorder.statistics().keys()
    assert known == set(STATISTICS)
    assert all(meaning and "\n" not in meaning for meaning in STATISTICS.values())


def test_exception_in_the_sampler_leaves_no_statistics() -> None:
    def fail(rois: RoIs, losses: Callable[[], Tensor]) -> Tensor:
        if len(losses()) < 5:
            raise RuntimeError("stop")
        return torch.tensor([4])

    recorder = Recorder(fail)
    recorder(example(), make_losses(2.0, 1.0, 0.5, 100.0, 4.0))
    with pytest.raises(RuntimeError, match="stop"):
        recorder(make_rois([0, 1]), make_losses(1.0, 2.0))
    assert recorder.statistics() == {}
    assert "nothing mined yet" in repr(recorder)


def test_statistics_of_mining() -> None:
    recorder = Recorder(OHEMSampler(2))
    # The survivors are the RoIs 0, 2 and 4. The chosen are 4 and 0.
    assert recorder(example(), make_losses(2.0, 1.0, 0.5, 100.0, 4.0)).tolist() == [4, 0]
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


def test_statistics_of_far_background() -> None:
    recorder = Recorder(OHEMSampler(4))
    assert recorder(example(), make_losses(1.0, 2.0, 3.0, 0.0, 4.0)).tolist() == [4, 2, 1]
    statistics = recorder.statistics()
    assert statistics["far"] == pytest.approx(1 / 3)
    assert statistics["foreground"] == 0


def test_sampler_that_does_not_use_losses_has_no_statistics_of_them() -> None:
    def not_called() -> Tensor:
        raise AssertionError("the read-only pass was run")

    recorder = Recorder(AllSampler())
    recorder(example(), not_called)
    assert recorder.losses is None
    assert recorder.statistics() == {"rois": 4, "chosen": 4, "foreground": 1 / 4, "far": 1 / 4}


def test_survivors_are_unknown_for_other_samplers() -> None:
    recorder = Recorder(lambda rois, losses: losses().argmax()[None])
    recorder(make_rois([0, 1]), make_losses(1.0, 3.0))
    statistics = recorder.statistics()
    assert "survivors" not in statistics
    assert (statistics["loss_chosen"], statistics["loss_all"]) == (3.0, 2.0)


def test_losses_are_computed_once_per_call() -> None:
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


def test_statistics_are_those_of_the_last_mini_batch() -> None:
    uses_losses = True
    recorder = Recorder(lambda rois, losses: losses().argsort() if uses_losses else torch.arange(len(rois)))
    recorder(make_rois([1]), make_losses(5.0))
    assert recorder.statistics()["foreground"] == 1
    uses_losses = False
    recorder(make_rois([0, 0]), make_losses(1.0, 1.0))
    assert recorder.statistics() == {"rois": 2, "chosen": 2, "foreground": 0, "far": 1}


def test_statistics_if_nothing_is_chosen() -> None:
    for labels in ([], [-1, -1]):
        recorder = Recorder(OHEMSampler(4))
        recorder(make_rois(labels), lambda labels=labels: torch.ones(len(labels)))  # type: ignore[misc]
        assert recorder.statistics() == dict.fromkeys(
            ("rois", "chosen", "foreground", "far", "survivors", "loss_chosen", "loss_all", "nan"), 0
        )


def test_iou_histogram_is_that_of_the_chosen() -> None:
    recorder = Recorder(lambda rois, losses: torch.arange(1, len(rois)))
    assert recorder.iou_histogram() == []
    ious = [0.5, 0.0, 0.05, *(n / 10 for n in range(1, 10)), 0.99, 1.0, 0.5]  # the first is not chosen
    recorder(make_rois([0] * len(ious), ious=ious), make_losses())
    assert recorder.iou_histogram() == [2, 1, 1, 1, 1, 2, 1, 1, 1, 3]
    recorder(make_rois([0], ious=[0.5]), make_losses())
    assert recorder.iou_histogram() == [0] * 10


def test_copies_and_pickles_hold_only_the_sampler() -> None:
    recorder = Recorder(OHEMSampler(2))
    recorder(example(), make_losses(2.0, 1.0, 0.5, 100.0, 4.0))
    for twin in (copy.deepcopy(recorder), pickle.loads(pickle.dumps(recorder))):
        assert twin.sampler == recorder.sampler
        assert twin.statistics() == {}
        assert (twin.rois, twin.chosen, twin.losses) == (None, None, None)
    assert recorder.statistics()["chosen"] == 2


def test_nan_is_counted() -> None:
    recorder = Recorder(OHEMSampler(1))
    with pytest.warns(RuntimeWarning):
        recorder(make_rois([0, 0, 0]), make_losses(math.nan, 1.0, math.nan))
    assert recorder.statistics()["nan"] == 2
    assert recorder.statistics()["loss_chosen"] == 1.0


def test_survivors_of_many_rois_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """To count them would take minutes for the anchors of a one-stage detector."""
    recorder = Recorder(OHEMSampler(2))
    recorder(example(), make_losses(3.0, 4.0, 1.0, 9.0, 2.0))
    monkeypatch.setattr("ohem.recorder.MOST_COUNTED", 5)
    assert recorder.statistics()["survivors"] == 3
    monkeypatch.setattr("ohem.recorder.MOST_COUNTED", 4)
    assert "survivors" not in recorder.statistics()
