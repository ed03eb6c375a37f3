"""Ratios and tables, from values that can be checked by hand."""

import io
from typing import Any

import pytest
from rich.console import Console

from ohem.bench.measure import Measurement
from ohem.bench.memory import Memory
from ohem.bench.methods import BENCH_METHODS
from ohem.bench.report import machine, rois_seen, summarise, table
from ohem.config.paper import TABLE2

GB = 10**9


def measured(*seconds: float, peak: int = 2 * GB, gpu_peak: int | None = None) -> Measurement:
    batches = {"rois": [100, 200], "distinct": [50, 60]}, {"rois": [300, 400], "distinct": [70, 80]}
    return Measurement(
        seconds=seconds,
        cpu_seconds=tuple(4 * value**2 for value in seconds),
        warmup_seconds=(),
        batches=batches,
        built=Memory(GB, GB, None if gpu_peak is None else 5, None if gpu_peak is None else 7),
        peak=Memory(GB, peak, None if gpu_peak is None else 6, gpu_peak),
        threads=1,
        device="cpu",
    )


def rendered(backbone: str, methods: dict[str, Measurement]) -> dict[str, list[str]]:
    """Returns method -> values of its row."""
    console = Console(file=io.StringIO(), width=200)
    console.print(table(backbone, summarise(methods), TABLE2.get(backbone, {})))
    assert isinstance(console.file, io.StringIO)
    rows = [line.split("│")[1:-1] for line in console.file.getvalue().splitlines() if line.startswith("│")]
    return {row[0].strip(): [value.strip() for value in row[1:]] for row in rows}


def test_ratios_are_those_of_the_same_round() -> None:
    summary = summarise({"frcn": measured(1, 2, 4), "ohem": measured(2, 3, 12, peak=3 * GB)})
    assert summary["ohem"]["seconds"] == {"median": 3, "lowest": 2, "highest": 12}
    assert summary["ohem"]["seconds_ratio"] == {"median": 2, "lowest": 1.5, "highest": 3}
    assert summary["ohem"]["cpu_seconds"] == {"median": 36, "lowest": 16, "highest": 576}
    assert summary["ohem"]["cpu_seconds_ratio"] == {"median": 4, "lowest": 2.25, "highest": 9}
    assert summary["ohem"]["peak_ratio"] == 1.5
    assert summary["frcn"]["seconds_ratio"] == {"median": 1, "lowest": 1, "highest": 1}


def test_baseline_of_an_accumulated_method_is_accumulated() -> None:
    methods = {"frcn": measured(1), "frcn-accumulate": measured(5), "ohem-accumulate": measured(10)}
    ratios = {name: row["seconds_ratio"]["median"] for name, row in summarise(methods).items()}
    assert ratios == {"frcn": 1, "frcn-accumulate": 5, "ohem-accumulate": 2}


def test_method_without_its_baseline_has_no_ratio() -> None:
    row = summarise({"ohem": measured(1)})["ohem"]
    assert (row["seconds_ratio"], row["peak_ratio"]) == (None, None)
    assert rendered("tiny", {"ohem": measured(1)}) == {"ohem": ["1 (1-1)", "", "4", "", "1.00", "2.00", ""]}


def test_peak_on_a_gpu_is_that_of_the_allocator() -> None:
    row = summarise({"frcn": measured(1, gpu_peak=11)})["frcn"]
    assert (row["built_bytes"], row["peak_bytes"]) == (5, 11)


def test_table_has_the_results_of_the_paper() -> None:
    methods = {name: measured(2.0, 3.0) for name in BENCH_METHODS}
    rows = rendered("vgg16", methods)
    ours, theirs = ["2.5 (2-3)", "1 (1-1)", "26", "1.00", "1.00", "2.00", "1.00"], ["0.60", "1.00", "11.2", "1.00"]
    assert rows["frcn"] == ours + theirs
    assert rows["frcn-accumulate"][-4:] == ["0.57", "0.95", "6.4", "0.57"]
    assert rows["ohem-accumulate"][-4:] == ["1.00", "1.75", "8.7", "1.36"]
    assert rows["ohem-loss-layer"][-4:] == [""] * 4
    assert rendered("vgg_cnn_m_1024", methods)["ohem"][-4:] == ["0.22", "1.69", "3.6", "1.38"]
    assert all(len(values) == 7 for values in rendered("squeezenet1_0", methods).values())


def test_rois_of_equal_batches_are_counted_once() -> None:
    assert rois_seen({"frcn": measured(1), "ohem": measured(1)}) == {"images": 4, "rois": 250, "distinct": 65}


@pytest.mark.parametrize("key", ["cpu", "torch"])
def test_machine_is_described_without_its_name(key: str) -> None:
    description: dict[str, Any] = machine()
    assert description[key]
    assert description["cores"] >= 1
    assert set(description) == {"cpu", "cores", "system", "python", "torch", "torchvision", "ohem"}
