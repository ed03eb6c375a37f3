"""Trainings in one, two and four real processes have the same weights, numbers and mining log.

In float64, where rounding is too small to change which RoI is the harder one: in float32 two processes sum in another
order than one, and after some steps another RoI is chosen, as with another number of threads.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from ohem.config.schema import SamplerName
from ohem.training import roi_loss
from ohem.training.logs.metrics_log import read_metrics
from tests.helpers.command_line import in_processes, ohem
from tests.helpers.toy_data import make_uneven_toy, training
from tests.training.test_loop import mined, weights

FEW = ["--sampler.batch-size", 6]
JOINT = ["--sampler.no-per-image"]
RANKED_FIRST = ["--solver.accumulate", "--solver.rank-first"]
PYRAMID = ["--data.scales", 48, 64, "--data.pyramid"]
LOSS_LAYER = ["--model.implementation", "loss_layer"]
WITHOUT_DROPOUT = ["--model.dropout", 0]
MORE: dict[str, list[object]] = {"all": [], "ratio": [], "separate": [*FEW, *JOINT], "mmdetection": [*FEW, *JOINT]}
# With dropout, each training draws random numbers.
SAMPLERS: dict[str, list[object]] = {
    **{
        name: ["--sampler.name", name, *MORE.get(name, FEW)]
        for name in get_args(SamplerName)
        if name != "builtin"  # of torchvision's detectors
    },
    "ohem, joint": [*FEW, *JOINT],
    "noise_aware, joint": ["--sampler.name", "noise_aware", "--sampler.warmup", 0, *FEW, *JOINT],
    "loss layer": [*LOSS_LAYER, *FEW],
    "shortlist": ["--model.shortlist", 8, *FEW],
    "rescored": ["--model.rescore-top", 8, *FEW],
    "accumulated": ["--solver.accumulate", *FEW, *JOINT],
    "ranked first": [*RANKED_FIRST, *FEW, *JOINT],
    "pyramid": [*PYRAMID, *FEW],
    "pyramid, joint": [*PYRAMID, *FEW, *JOINT, *WITHOUT_DROPOUT],
    "pyramid, ranked first": [*PYRAMID, *RANKED_FIRST, *FEW],
    "pyramid, loss layer": [*PYRAMID, *RANKED_FIRST, *FEW, *JOINT, *WITHOUT_DROPOUT, *LOSS_LAYER],
    "pyramid, random": [*PYRAMID, *RANKED_FIRST, *FEW, "--sampler.name", "random"],
    "regions": ["--model.regions", "border", "context", "--model.foreground-features", *FEW],
}
LONG = {"release": (20, 36, 50), "random": (4, 8, 10)}
"""Steps after which trainings go on in another number of processes, and their last; rows are of 2 steps."""


def options(data: Path, steps: int, more: Sequence[object]) -> list[object]:
    return [
        *training(data, steps=steps, images=4, test=None),
        *["--run.precision", "64-true", "--run.log-every", 2],
        *([] if "--model.dropout" in more else ["--model.dropout", 0.5]),
        *more,
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns images of two sizes, so that those of a mini-batch are padded, with different numbers of RoIs."""
    return make_uneven_toy(tmp_path_factory.mktemp("processes") / "toy")


def assert_same(run: Path, one: Path, rtol: float = 1e-9) -> None:
    """Checks the weights, the rows of metrics.csv and the tables of the mining log."""
    values = weights(run)
    for name, value in weights(one).items():
        torch.testing.assert_close(values[name], value, rtol=rtol, atol=rtol / 1000, msg=lambda text: f"{run}: {text}")
    for ours, theirs in zip(read_metrics(run), read_metrics(one), strict=True):
        assert ours.keys() == theirs.keys()
        for column in ours.keys() - {"seconds"}:
            if ours[column] != theirs[column]:
                assert float(ours[column]) == pytest.approx(float(theirs[column]), rel=1e-4), (run, column)
    for row, other in zip(roi_loss.read(run), roi_loss.read(one), strict=True):
        assert (row.step, row.rois) == (other.step, other.rois)
        assert row.loss == pytest.approx(other.loss, rel=1e-9), run
    ours, theirs = (sorted_rows(mined(run)) for run in (run, one))
    assert [row[:3] for row in ours] == [row[:3] for row in theirs], run


def sorted_rows(table: dict[str, list[Any]]) -> list[tuple[Any, ...]]:
    names = ["step", "image", "label", "x1", "y1", "x2", "y2"]
    return sorted(
        zip(*([round(v, 3) if isinstance(v, float) else v for v in table[name]] for name in names), strict=True)
    )


@pytest.fixture(scope="module")
def in_one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of runs in one process."""
    folder = tmp_path_factory.mktemp("one")
    for line in [*short_trainings(data, folder), *long_trainings(data, folder)]:
        assert ohem(*line).code == 0, line
    return folder


def short_trainings(data: Path, folder: Path) -> list[list[object]]:
    return [["train", folder / name, *options(data, 2, more)] for name, more in SAMPLERS.items()]


def long_trainings(data: Path, folder: Path, part: int = -1) -> list[list[object]]:
    return [
        ["train", folder / f"long {name}", *options(data, ends[part], SAMPLERS[name]), "--run.loss-every", 4]
        for name, ends in LONG.items()
    ]


def test_every_sampler_trains_in_two_processes_as_in_one(data: Path, in_one: Path, tmp_path: Path) -> None:
    in_processes(2, short_trainings(data, tmp_path), tmp_path)
    for name in SAMPLERS:
        assert_same(tmp_path / name, in_one / name)


@pytest.mark.parametrize(
    ("passes", "together"),
    [
        ("ranked first", "ohem, joint"),
        ("pyramid, ranked first", "pyramid"),
        ("pyramid, loss layer", "pyramid, joint"),
    ],
)
def test_images_that_pass_one_by_one_are_mined_together(in_one: Path, passes: str, together: str) -> None:
    """All RoIs of the mini-batch are ranked first, with the random numbers that one pass of all images has for dropout.

    Dropout in the loss layer draws for all RoIs.
    """
    ours, theirs = (weights(in_one / name) for name in (passes, together))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12, msg=lambda text: f"{passes}: {text}")
    for ours_row, row in zip(read_metrics(in_one / passes), read_metrics(in_one / together), strict=True):
        assert float(ours_row["loss"]) == pytest.approx(float(row["loss"]), rel=1e-9)
        assert ours_row["chosen"] == row["chosen"]


def test_long_trainings_are_resumed_in_another_number_of_processes(data: Path, in_one: Path, tmp_path: Path) -> None:
    for part, count in enumerate((4, 2, 4)):
        in_processes(count, long_trainings(data, tmp_path, part), tmp_path)
    for name in LONG:
        assert_same(tmp_path / f"long {name}", in_one / f"long {name}")
