"""eval.json: writing and reading, damaged files, and files that must not be overwritten."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ohem.data.voc import VOCDetection
from ohem.errors import InputError
from ohem.evaluation.report import check_outputs, is_report, read_report, write_report
from tests.helpers.toy_data import make_toy

REPORT: dict[str, Any] = {
    "metric": "voc07", "map": 50.0, "ap": {"blue": 100.0, "red": 0.0, "green": None}, "step": 5, "images": 2,
    "seconds_per_image": 0.125, "test": {"scales": [], "long": None}, "weights": "w0", "data": "d0",
}  # fmt: skip
# Older versions wrote it without a digest.
OLDER = {name: value for name, value in REPORT.items() if name not in ("weights", "data")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> VOCDetection:
    return VOCDetection(f"{make_toy(tmp_path_factory.mktemp('data') / 'toy')}:test")


def write_toy_report(path: Path, report: dict[str, Any]) -> None:
    write_report(path, report, [], None)  # type: ignore[arg-type]  nothing else is written for VOC data


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    write_toy_report(path, REPORT)
    assert read_report(path) == REPORT
    assert is_report(path)


def test_there_is_no_nan_in_json(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    write_toy_report(path, REPORT | {"loss_all_rois": math.nan, "objective": {"red": (math.inf, 1.0)}})
    assert "NaN" not in path.read_text()
    assert "Infinity" not in path.read_text()
    assert read_report(path)["objective"] == {"red": [None, 1.0]}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"null", b"[]", b"3", b'"map"', b"\xff", b"\x00", b"{", b"[" * 100_000,
        *(json.dumps({k: v for k, v in OLDER.items() if k != name}).encode() for name in OLDER),
        *(
            json.dumps(OLDER | change).encode()
            for change in (
                {"map": "50"}, {"map": 101}, {"map": -1}, {"map": True}, {"map": math.nan}, {"ap": {}}, {"ap": None},
                {"ap": {"red": "1"}}, {"metric": "voc08"}, {"metric": []}, {"step": -1}, {"step": 1.5},
                {"images": None}, {"seconds_per_image": -1}, {"test": []}, {"loss_all_rois": "x"}, {"digest": "0"},
                {"weights": "w0"},
            )
        ),
    ],
)  # fmt: skip
def test_what_is_no_report_is_a_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"eval\.json is damaged"):
        read_report(path)
    assert not is_report(path)


def test_a_report_of_an_older_version(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(OLDER))
    assert read_report(path) == OLDER


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    write_toy_report(path, REPORT)
    path.write_text(path.read_text().replace("50.0", "60.0"))
    with pytest.raises(InputError, match="its content does not match its digest"):
        read_report(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"eval\.json: No such file"):
        read_report(tmp_path / "eval.json")


def test_results_do_not_go_into_the_folders_of_the_data(data: VOCDetection, tmp_path: Path) -> None:
    folder = data.sources[0].folder
    for refused in (folder, folder / "JPEGImages", folder / "Annotations"):
        with pytest.raises(InputError, match="is a folder of the data"):
            check_outputs(tmp_path / "eval.json", refused, data)
    for allowed in (folder / "results", tmp_path):
        check_outputs(tmp_path / "eval.json", allowed, data)
    for file in data.files():
        with pytest.raises(InputError, match="would be overwritten"):
            check_outputs(file, None, data)
