"""Ratios and tables, from figures that can be checked by hand."""

import io
from typing import Any

import pytest
from rich.console import Console

from ohem.experiments.bench.arms import ARMS, PAPER
from ohem.experiments.bench.measure import Measurement
from ohem.experiments.bench.memory import Memory
from ohem.experiments.bench.report import machine, rois_seen, summarise, table

GB = 10**9


def measured(*seconds: float, peak: int = 2 * GB, gpu_peak: int | None = None) -> Measurement:
    shown = {"rois": [100, 200], "distinct": [50, 60]}, {"rois": [300, 400], "distinct": [70, 80]}
    return Measurement(
        seconds=seconds,
        cpu_seconds=tuple(4 * value**2 for value in seconds),
        warmup_seconds=(),
        shown=shown,
        built=Memory(GB, GB, None if gpu_peak is None else 5, None if gpu_peak is None else 7),
        peak=Memory(GB, peak, None if gpu_peak is None else 6, gpu_peak),
        threads=1,
        device="cpu",
    )


def rendered(backbone: str, arms: dict[str, Measurement]) -> dict[str, list[str]]:
    """Arm -> cells of its row."""
    console = Console(file=io.StringIO(), width=200)
    console.print(table(backbone, summarise(arms), PAPER.get(backbone, {})))
    assert isinstance(console.file, io.StringIO)
    rows = [line.split("│")[1:-1] for line in console.file.getvalue().splitlines() if line.startswith("│")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_ratios_are_those_of_the_same_round() -> None:
    summary = summarise({"frcn": measured(1, 2, 4), "ohem": measured(2, 3, 12, peak=3 * GB)})
    assert summary["ohem"]["seconds"] == {"median": 3, "lowest": 2, "highest": 12}
    assert summary["ohem"]["seconds_ratio"] == {"median": 2, "lowest": 1.5, "highest": 3}
    assert summary["ohem"]["cpu_seconds"] == {"median": 36, "lowest": 16, "highest": 576}
    assert summary["ohem"]["cpu_seconds_ratio"] == {"median": 4, "lowest": 2.25, "highest": 9}
    assert summary["ohem"]["peak_ratio"] == 1.5
    assert summary["frcn"]["seconds_ratio"] == {"median": 1, "lowest": 1, "highest": 1}


def test_accumulated_is_held_against_accumulated() -> None:
    arms = {"frcn": measured(1), "frcn-accumulate": measured(5), "ohem-accumulate": measured(10)}
    ratios = {name: row["seconds_ratio"]["median"] for name, row in summarise(arms).items()}
    assert ratios == {"frcn": 1, "frcn-accumulate": 5, "ohem-accumulate": 2}


def test_without_its_baseline_an_arm_has_no_ratio() -> None:
    row = summarise({"ohem": measured(1)})["ohem"]
    assert (row["seconds_ratio"], row["peak_ratio"]) == (None, None)
    assert rendered("tiny", {"ohem": measured(1)}) == {"ohem": ["1 (1-1)", "", "4", "", "1.00", "2.00", ""]}


def test_on_a_gpu_its_allocator_s_peak_counts() -> None:
    row = summarise({"frcn": measured(1, gpu_peak=11)})["frcn"]
    assert (row["built_bytes"], row["peak_bytes"]) == (5, 11)


def test_the_paper_s_figures_are_beside_ours() -> None:
    arms = {name: measured(2.0, 3.0) for name in ARMS}
    rows = rendered("vgg16", arms)
    ours, theirs = ["2.5 (2-3)", "1 (1-1)", "26", "1.00", "1.00", "2.00", "1.00"], ["0.60", "1.00", "11.2", "1.00"]
    assert rows["frcn"] == ours + theirs
    assert rows["frcn-accumulate"][-4:] == ["0.57", "0.95", "6.4", "0.57"]
    assert rows["ohem-accumulate"][-4:] == ["1.00", "1.75", "8.7", "1.36"]
    assert rows["ohem-loss-layer"][-4:] == [""] * 4
    assert rendered("vgg_cnn_m_1024", arms)["ohem"][-4:] == ["0.22", "1.69", "3.6", "1.38"]
    assert all(len(cells) == 7 for cells in rendered("squeezenet1_0", arms).values())


def test_rois_are_counted_once() -> None:
    assert rois_seen({"frcn": measured(1), "ohem": measured(1)}) == {"images": 4, "rois": 250, "distinct": 65}


@pytest.mark.parametrize("key", ["cpu", "torch"])
def test_the_machine_is_told_but_not_its_name(key: str) -> None:
    told: dict[str, Any] = machine()
    assert told[key]
    assert told["cores"] >= 1
    assert set(told) == {"cpu", "cores", "system", "python", "torch", "torchvision", "ohem"}
