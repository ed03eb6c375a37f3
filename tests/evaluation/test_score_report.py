"""Every metric on data of every format."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from ohem.data.dataset import DetectionSet
from ohem.data.sources import open_dataset
from ohem.evaluation.score_report import score, usual_metric
from tests.helpers.toy_data import NAMES, make_toy, make_toy_coco

OTHERS = ("ap50", "ap75", "ap_small", "ap_medium", "ap_large")
RECALLS = ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")


@pytest.fixture
def coco(tmp_path: Path) -> DetectionSet:
    return open_dataset([make_toy_coco(tmp_path / "coco")[0]], NAMES)


@pytest.fixture
def voc(tmp_path: Path) -> DetectionSet:
    return open_dataset([f"{make_toy(tmp_path / 'voc')}:train"], NAMES)


def all_blue(data: DetectionSet) -> list[dict[str, Tensor]]:
    """Returns detections that have every blue object exactly, and nothing else."""
    result = []
    for i in range(len(data)):
        target = data.target(i)
        boxes = target["boxes"][target["labels"] == 1]
        labels = torch.ones(len(boxes), dtype=torch.int64)
        result.append({"boxes": boxes, "labels": labels, "scores": torch.full((len(boxes),), 0.5)})
    return result


def test_the_default_metric_of_a_format(coco: DetectionSet, voc: DetectionSet) -> None:
    assert (usual_metric(coco), usual_metric(voc)) == ("coco", "voc07")


def test_coco_reports_twelve_figures(coco: DetectionSet) -> None:
    report, table = score(all_blue(coco), coco, "coco")
    assert list(report) == ["metric", "map", "ap", *OTHERS, *RECALLS, "background_share", "false_positives_per_image"]
    assert report["map"] == pytest.approx(50)
    assert report["ap"] == pytest.approx({"blue": 100, "red": 0})
    assert (report["ap_large"], report["ar_large"], report["metric"]) == (None, None, "coco")
    console = Console(width=100)
    with console.capture() as printed:
        console.print(table)
    rows = [line for line in printed.get().splitlines() if line.startswith("│")]
    assert len(rows) == 12
    for name, row in zip(("map", *OTHERS, *RECALLS), rows, strict=True):
        assert row.split("│")[-2].strip() == ("nan" if report[name] is None else f"{report[name]:.1f}")
        assert row.split()[1] == ("AR" if name in RECALLS else "AP")


def test_metrics_score_data_of_the_other_format(coco: DetectionSet, voc: DetectionSet) -> None:
    """Checks that crowds are like difficult objects: detections in them are neither right nor wrong."""
    result = all_blue(coco)
    crowd = coco.target(0)["boxes"][2:]
    assert coco.target(0)["ignore"].tolist() == [False, False, True]
    result[0] = {
        "boxes": torch.cat([result[0]["boxes"], crowd]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.5, 0.9]),
    }
    report, table = score(result, coco, "voc07")
    assert report == {
        "metric": "voc07",
        "map": 50,
        "ap": {"blue": 100, "red": 0},
        "background_share": {"blue": 0, "red": 0},
        "false_positives_per_image": None,  # half of the objects are detected
    }
    assert table.row_count == 3
    assert score(all_blue(voc), voc, "coco")[0]["map"] == pytest.approx(50)


def test_false_positives_are_counted_at_80_percent_recall(voc: DetectionSet) -> None:
    """Detects every object, and one more box of a higher score in the first image."""
    result = [{**voc.target(i), "scores": torch.full((len(voc.target(i)["boxes"]),), 0.5)} for i in range(len(voc))]
    result[0] = {
        "boxes": torch.cat([result[0]["boxes"], torch.tensor([[0.0, 0.0, 3.0, 3.0]])]),
        "labels": torch.cat([result[0]["labels"], torch.tensor([1])]),
        "scores": torch.cat([result[0]["scores"], torch.tensor([0.9])]),
    }
    report, table = score(result, voc, "voc07")
    assert report["false_positives_per_image"] == pytest.approx(1 / len(voc))
    console = Console(width=80)
    with console.capture() as printed:
        console.print(table)
    line = f"false positives per image at 80% recall: {1 / len(voc):.2f}"
    assert line in [text.strip() for text in printed.get().splitlines()]
