"""`ohem report`: its facts by hand, its sentences, and the page of a real run."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ohem.errors import InputError
from ohem.insight.pictures import COLOUR, SIDE, Thumbnails, cut_out
from ohem.insight.report.content import verdict, why, without_pictures
from ohem.insight.report.mining_facts import MOMENTS, MiningFacts, read_mining
from ohem.metrics.error_types import TYPES
from ohem.mining_log import LoggedImage, MiningLog
from ohem.rois import RoIs
from ohem.samplers import Losses, RandomSampler
from tests.helpers.command_line import ohem, sentence
from tests.helpers.make_rois import make_rois
from tests.helpers.toy_data import make_toy, training
from tests.insight.browser import dump_dom, needs_browser


class TakeHardest:
    """A sampler that takes the two hardest RoIs."""

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        return losses().argsort(descending=True)[:2]


def write_log(folder: Path, steps: int = 10) -> Path:
    """Writes a log of `steps` steps with an image of two objects, of which the second is never mined."""
    log = MiningLog(TakeHardest(), folder)
    objects = torch.tensor([[20.0, 20, 30, 30], [60, 60, 70, 70]])
    for step in range(1, steps + 1):
        log.begin_step([LoggedImage("a", objects)], step)
        rois = make_rois([0, 1, 0, 2], ious=[0.05, 1.0, 0.3, 1.0])
        log(rois, lambda *_, step=step: torch.tensor([float(step), 2.5, 0.0, 0.1]))  # type: ignore[misc]
    log.save()
    return folder


def test_facts_by_hand(tmp_path: Path) -> None:
    facts = read_mining(write_log(tmp_path / "mining").parent, most=3)
    assert facts is not None
    assert (facts.steps, facts.chosen, facts.minable, facts.labels) == (10, 2, 4, (10, 10))
    assert [(o.object, o.visits, o.mined) for o in facts.objects] == [(0, 10, 10), (1, 10, 0)]
    assert [o.object for o in facts.never] == [1]
    assert [o.object for o in facts.always] == [0]
    assert next((p.step, p.foreground, p.loss) for p in facts.periods) == (1, 0.5, (1 + 2.5) / 2)
    assert all(p.ious == (0.5, 0, 0, 0.5) for p in facts.periods)
    # The hardest RoI of the image in each fifth: the foreground in steps 1 and 2, later the background.
    assert [[(row.step, row.label, row.loss) for row in rows] for rows in facts.hardest] == [
        [(1, 1, 2.5)],
        [(4, 0, 4.0)],
        [(6, 0, 6.0)],
        [(8, 0, 8.0)],
        [(10, 0, 10.0)],
    ]
    assert [(row.step, row.label) for row in facts.background] == [(10, 0)]


def test_a_folder_without_a_log(tmp_path: Path) -> None:
    assert read_mining(tmp_path, 3) is None


@pytest.mark.parametrize("damage", ["text", "other columns"])
def test_damaged_tables(tmp_path: Path, damage: str) -> None:
    path = write_log(tmp_path) / "images.parquet"
    if damage == "text":
        path.write_text("PAR1")
    else:
        path.write_bytes((tmp_path / "periods.parquet").read_bytes())
    with pytest.raises(InputError, match=r"images\.parquet (is no table of a mining log|has no column)"):
        read_mining(tmp_path, 3)


def test_verdicts(tmp_path: Path) -> None:
    facts = read_mining(write_log(tmp_path / "log"), 3)
    assert verdict(facts, "ohem") == "Mining is on: it chose 2 of 4 RoIs in a step (50%), over 10 steps."
    assert verdict(None, "builtin").startswith("Nothing is known about mining")
    log = MiningLog(RandomSampler(4, bg_lo=0), tmp_path / "random")
    log(make_rois([0, 1, 0]), lambda *_: torch.zeros(3))
    log.save()
    random = read_mining(tmp_path / "random", 3)
    assert verdict(random, "random").startswith("The sampler random does not use losses: it is no mining. It chose")
    nearly_all = MiningFacts(1, 95, 100, (0, 95), (), facts.hardest, (), ()) if facts else None
    assert verdict(nearly_all, "ohem").endswith("there is little to choose from.")


def dap(**changes: float) -> dict[str, float]:
    return dict.fromkeys(TYPES, 1.0) | changes


@pytest.mark.parametrize(
    ("now", "before", "gain", "expected"),
    [
        (dap(missed=9.0), None, None, "mostly missed objects (9.0)"),
        (dict.fromkeys(TYPES, 0.0), None, None, "no errors that cost AP"),
        (dap(), dap(background=6.0), 5.0, "fewer detections of background (6.0 → 1.0)"),
        (dap(location=4.0, missed=0.0), dap(), -3.0, "more badly placed boxes (1.0 → 4.0)"),
        (dap(), dap(), 0.01, "as before"),
        (dap(), dap(), 2.0, "of no single type"),
        (dap(background=2.0), dap(), 2.0, "of no single type"),  # a gain with more errors
    ],
)
def test_reasons(now: dict[str, float], before: dict[str, float] | None, gain: float | None, expected: str) -> None:
    assert why(now, before, gain) == expected


def test_json_has_neither_pictures_nor_nan() -> None:
    content = {"a": [{"picture": "data:", "loss": math.nan, "box": (1.0, 2.0)}]}
    assert without_pictures(content) == {"a": [{"loss": None, "box": [1.0, 2.0]}]}


@pytest.mark.parametrize("box", [[10, 10, 40, 30], [0, 0, 100, 80], [95, 75, 100, 80], [5, 5, 5, 5]])
def test_cut_outs_draw_the_box(box: list[float]) -> None:
    picture = cut_out(torch.zeros(3, 80, 100, dtype=torch.uint8), box)
    assert picture.shape == (3, SIDE, SIDE)
    assert (picture == torch.tensor(COLOUR, dtype=torch.uint8)[:, None, None]).all(dim=0).any()


def test_no_picture_of_an_unknown_image() -> None:
    assert Thumbnails(None, {}).of("nowhere.jpg", [0, 0, 5, 5]) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with two trained runs, `frcn` and `ohem`, and their report."""
    folder = tmp_path_factory.mktemp("report")
    data = make_toy(folder / "data")
    for method in ("frcn", "ohem"):
        options = training(data, steps=6, recipe=f"demo-{method}")
        assert ohem("train", folder / method, *options).code == 0
    result = ohem("report", folder / "frcn", folder / "ohem", "--out", folder / "report.html")
    assert result.code == 0, result
    assert f"wrote {folder / 'report.html'} and {folder / 'report.json'}" in result.out
    return folder


def test_the_json_of_two_runs(folder: Path) -> None:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    frcn, mined = content["runs"]
    assert (frcn["name"], mined["name"]) == ("frcn", "ohem")
    assert frcn["gain"] is None
    assert mined["gain"] == pytest.approx(mined["map"] - frcn["map"])
    assert mined["mining"]["steps"] == 6
    assert len(mined["mining"]["hardest"]) == MOMENTS
    assert frcn["mining"]["hardest"] == [[]] * MOMENTS  # random sampling has no losses
    hardest = [row for rows in mined["mining"]["hardest"] for row in rows]
    assert {row["image"] for row in hardest} <= set("abcdef")
    assert {row["label"] for row in hardest} <= {"background", "blue", "red"}
    assert all(0 <= row["taken_score"] <= 1 and row["taken_for"] != row["label"] for row in hardest)
    assert mined["mining"]["objects"] == 12
    assert [entry["name"] for entry in content["classes"]] == ["blue", "red"]
    for entry in content["classes"]:
        assert entry["objects"] == 2
        assert sum(entry["runs"][1]["counts"].values()) >= 0
    assert sum(entry["runs"][1]["mined"] for entry in content["classes"]) == pytest.approx(1)


def keys_in(content: Any) -> set[str]:
    """Returns all keys of nested JSON."""
    if isinstance(content, dict):
        return set(content).union(*map(keys_in, content.values()))
    return set().union(*map(keys_in, content)) if isinstance(content, list) else set()


def test_every_field_of_the_json_is_documented(folder: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "report.md").read_text(encoding="utf-8")
    table = text.partition("## The JSON file")[2].partition("##")[0]
    documented = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]*)`", table))))
    keys = keys_in(json.loads((folder / "report.json").read_text())) - {*TYPES, "blue", "red"}
    assert len(keys) > 20
    assert keys <= documented


def test_a_run_elsewhere_in_memory_has_its_errors_equal_to_tide(folder: Path) -> None:
    """The errors of the page are those of `error_types`, which the tests compare with tidecv."""
    content = json.loads((folder / "report.json").read_text())
    for run in content["runs"]:
        assert set(run["errors"]) == set(TYPES)
        for kind in TYPES:
            of_classes = sum(entry["runs"][content["runs"].index(run)]["counts"][kind] for entry in content["classes"])
            assert run["errors"][kind]["count"] == of_classes


def test_the_page_is_complete_in_itself(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert page.count("data:image/jpeg;base64,") >= MOMENTS
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "Mining is on" in page


@needs_browser
def test_the_page_opens_in_a_browser_on_a_phone(folder: Path) -> None:
    document = dump_dom(folder / "report.html", width=500)
    assert "<title>500</title>" in document
    assert "taken for" in document


def test_detections_of_another_program(folder: Path, tmp_path: Path) -> None:
    """A training that is no run of ohem needs its log and its detections."""
    log = write_log(tmp_path / "yolo" / "mining").parent
    boxes = [{"image_id": "g", "category_id": 1, "bbox": [0, 0, 20, 20], "score": 0.9}]
    (tmp_path / "found.json").write_text(json.dumps(boxes))
    data = ["--data", f"{folder / 'data'}:test"]
    assert ohem("report", log, "--detections", tmp_path / "found.json", *data).code == 0
    content = json.loads((log / "report.json").read_text())
    assert content["runs"][0]["mining"]["steps"] == 10
    assert content["runs"][0]["errors"]["missed"]["count"] >= 3
    assert "needs" not in sentence(ohem("report", log, "--detections", tmp_path / "found.json"))
    assert "has no recipe.yaml" in sentence(ohem("report", log, *data))
    assert "no mining log" in sentence(ohem("report", tmp_path, "--detections", tmp_path / "found.json", *data))


def test_wrong_use(folder: Path, tmp_path: Path) -> None:
    assert "name one" in sentence(ohem("report"))
    assert "must be a .html file" in sentence(ohem("report", folder / "ohem", "--out", tmp_path / "page.txt"))
    assert "must be a .html file" in sentence(ohem("report", folder / "ohem", "--out", tmp_path / "no" / "page.html"))
    assert "no report" in sentence(ohem("report", folder / "ohem", "--out", _other_page(tmp_path)))


def _other_page(folder: Path) -> Path:
    path = folder / "page.html"
    path.write_text("<html></html>")
    return path
