"""`ohem audit` from the command line, on a toy data set: files, page, decisions, corrected annotations."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ohem.data.sources import open_dataset
from ohem.insight.suspects.folds import folds_of
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, make_toy_coco, make_toy_yolo, training
from tests.insight.browser import dump_dom, needs_browser

pytestmark = pytest.mark.filterwarnings("ignore:.* whose label file is missing or empty:UserWarning")


def voc(folder: Path) -> str:
    return f"{make_toy(folder / 'data')}:train"


def coco(folder: Path) -> str:
    return make_toy_coco(folder / "data")[0]


def yolo(folder: Path) -> str:
    (folder / "data").mkdir()
    return make_toy_yolo(folder / "data")[0]


FORMATS = {"voc": voc, "coco": coco, "yolo": yolo}


def write_results(path: Path, source: str) -> Path:
    """Writes detections that agree with all objects, except with the red one of image b, and see one more in c."""
    data = open_dataset([source])
    ids = [number for part in data.sources for number in getattr(part, "image_ids", part.ids)]
    entries = []
    for index, name in enumerate(data.ids):
        target = data.target(index)
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            wrong = name.endswith("b") and data.classes[label - 1] == "red"
            entry = [ids[index], box, "blue" if wrong else data.classes[label - 1], 0.97]
            entries.append(entry)
        if name.endswith("c"):
            entries.append([ids[index], [35.0, 40.0, 48.0, 62.0], "red", 0.99])
    content = [
        {"image_id": i, "category_id": name, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "score": score}
        for i, b, name, score in entries
    ]
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module", params=list(FORMATS))
def audited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Audits a data set; returns the folder, with `out` in it, and the source."""
    folder = tmp_path_factory.mktemp(request.param)
    source = FORMATS[request.param](folder)
    results = write_results(folder / "results.json", source)
    done = ohem("audit", source, "--detections", results, "--out", folder / "out")
    assert done.code == 0, done.err
    assert "audit.html" in done.out
    return folder, source


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "out" / "audit.json").read_text())["suspects"]
    return rows


def test_the_suspects_are_those_that_the_detections_contradict(audited: tuple[Path, str]) -> None:
    first, second = rows_of(audited[0])[:2]
    by_kind = {row["kind"]: row for row in (first, second)}
    assert set(by_kind) == {"missing", "class"}
    assert by_kind["class"]["image"].endswith("b")
    assert (by_kind["class"]["given_class"], by_kind["class"]["proposed_class"]) == ("red", "blue")
    assert by_kind["missing"]["image"].endswith("c")
    assert by_kind["missing"]["proposed_box"] == [35, 40, 48, 62]


def test_csv_and_json_agree(audited: tuple[Path, str]) -> None:
    rows = rows_of(audited[0])
    with (audited[0] / "out" / "audit.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) > 0
    for line, row in zip(table, rows, strict=True):
        for key in ("number", "image", "file", "kind", "score", "given", "given_class", "proposed_class"):
            assert line[key] == ("" if row[key] is None else str(row[key]))
        for which in ("given", "proposed"):
            corners = [line[f"{which}_{corner}"] for corner in ("x1", "y1", "x2", "y2")]
            assert [float(text) for text in corners if text] == (row[f"{which}_box"] or [])


def decide(folder: Path, source: str, choices: dict[str, str], change: Callable[[Any], Any] = lambda c: c) -> Path:
    """Writes the decisions of a person: a choice for each kind of suspect."""
    content = json.loads((folder / "out" / "audit.json").read_text())
    decisions = [row | {"decision": choices[row["kind"]]} for row in content["suspects"][:2]]
    path = folder / "decisions.json"
    path.write_text(json.dumps(change({"sources": [source], "classes": content["classes"], "decisions": decisions})))
    return path


def objects(source: str) -> dict[str, list[tuple[str, list[int], bool]]]:
    """Returns the objects of each image: class, rounded box, whether they are ignored."""
    data = open_dataset([source])
    result = {}
    for index, name in enumerate(data.ids):
        t = data.target(index)
        names = [data.classes[label - 1] for label in t["labels"].tolist()]
        result[name] = list(zip(names, t["boxes"].round().int().tolist(), t["ignore"].tolist(), strict=True))
    return result


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def apply(folder: Path, decisions: Path, name: str) -> str:
    """Applies decisions into a new folder; returns its source."""
    done = ohem("audit", "--apply", decisions, "--out", folder / name)
    assert done.code == 0, done.err
    return done.out.splitlines()[0].split(": the corrected")[0]


def test_accepted_proposals_are_applied_in_a_new_folder(audited: tuple[Path, str]) -> None:
    folder, source = audited
    before, files = objects(source), contents(folder / "data")
    after = objects(apply(folder, decide(folder, source, {"class": "accept", "missing": "accept"}), "accepted"))
    assert contents(folder / "data") == files
    assert list(after) == list(before)
    for name, things in before.items():
        if name.endswith("b"):
            assert sorted(thing[0] for thing in after[name]) == ["blue", "blue"]
            assert sorted(thing[1] for thing in after[name]) == sorted(thing[1] for thing in things)
        else:
            added = [("red", [35, 40, 48, 62], False)] if name.endswith("c") else []
            assert after[name] == things + added


def test_rejected_and_unsure_ones(audited: tuple[Path, str]) -> None:
    folder, source = audited
    before = objects(source)
    after = objects(apply(folder, decide(folder, source, {"class": "unsure", "missing": "reject"}), "unsure"))
    for name, things in before.items():
        wanted = [(c, box, ignore or (name.endswith("b") and c == "red")) for c, box, ignore in things]
        assert after[name] == (things if source.endswith(":train") and ".yaml" in source else wanted)


def test_boxes_are_moved_and_removed(audited: tuple[Path, str]) -> None:
    folder, source = audited
    row = next(row for row in rows_of(folder) if row["kind"] == "class")
    data = open_dataset([source])
    index = data.ids.index(row["image"])
    other = 1 - row["given"]
    kept = {
        **row, "given": other, "given_class": data.annotation(index).names[other], "decision": "accept",
        "given_box": data.annotation(index).boxes[other].tolist(), "proposed_box": None, "proposed_class": None,
    }  # fmt: skip
    new = {**row, "proposed_box": [1.0, 2, 30, 40], "proposed_class": "red", "decision": "accept"}
    decisions = decide(folder, source, {"class": "skip", "missing": "skip"}, lambda c: {**c, "decisions": [new, kept]})
    assert objects(apply(folder, decisions, "moved"))[row["image"]] == [("red", [1, 2, 30, 40], False)]


def test_bad_decisions_are_refused(audited: tuple[Path, str]) -> None:
    folder, source = audited
    choices = {"class": "accept", "missing": "accept"}

    def refused(change: Callable[[Any], Any], out: str = "refused") -> str:
        return sentence(ohem("audit", "--apply", decide(folder, source, choices, change), "--out", folder / out))

    def first(**fields: Any) -> Callable[[Any], Any]:
        return lambda c: {**c, "decisions": [next(d for d in c["decisions"] if d["kind"] == "class") | fields]}

    assert "holds no decisions" in refused(lambda c: [])
    assert "no list of sources" in refused(lambda c: {**c, "sources": []})
    assert "'maybe'" in refused(first(decision="maybe"))
    assert "'nowhere'" in refused(first(image="nowhere"))
    assert "'cow'" in refused(first(proposed_class="cow"))
    assert "proposed_box" in refused(first(proposed_box=[5, 5, 1, 1]))
    assert "have changed" in refused(first(given=7))
    assert "has one already" in refused(lambda c: {**c, "decisions": first()(c)["decisions"] * 2})
    assert "exists: name a new folder" in refused(lambda c: c, "data")
    assert not (folder / "refused").exists()
    broken = folder / "broken.json"
    broken.write_text("{")
    assert "not well-formed JSON" in sentence(ohem("audit", "--apply", broken))
    assert "No such file" in sentence(ohem("audit", "--apply", folder / "nothing.json"))
    assert "leave out SOURCE" in sentence(ohem("audit", source, "--apply", broken))


@needs_browser
def test_the_page_works_in_a_browser(audited: tuple[Path, str], tmp_path: Path) -> None:
    folder, source = audited
    if not source.endswith("data:train"):
        pytest.skip("one format is enough")
    page = (folder / "out" / "audit.html").read_text()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # it needs nothing from elsewhere
    path = tmp_path / "page.html"
    path.write_text(page)
    key = 'dispatchEvent(new KeyboardEvent("keydown", {key: "a"}))'
    click = 'querySelector("[data-choice=unsure]").click()'
    document = dump_dom(path, script=f"document.{key}; document.{click}; document.title = saved();")
    title = document.split("<title>")[1].split("</title>")[0]
    saved = json.loads(title.replace("&quot;", '"').replace("&amp;", "&"))
    assert [decision["decision"] for decision in saved["decisions"]] == ["accept", "unsure"]
    rows = rows_of(folder)
    assert [{k: v for k, v in d.items() if k != "decision"} for d in saved["decisions"]] == rows[:2]
    assert saved["sources"] == [source]
    third = rows[min(2, len(rows) - 1)]
    assert document.count("<rect") == sum(bool(third[key]) for key in ("given_box", "proposed_box"))
    assert "<title>500</title>" in dump_dom(path, width=500)


def test_folds_depend_on_the_seed_and_the_names_alone() -> None:
    names = [f"image {i}" for i in range(20)]
    folds = dict(zip(names, folds_of(names, 3, 0), strict=True))
    assert sorted(list(folds.values()).count(fold) for fold in range(3)) == [6, 7, 7]
    assert dict(zip(names[::-1], folds_of(names[::-1], 3, 0), strict=True)) == folds
    assert folds_of(names, 3, 1) != folds_of(names, 3, 0)


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    source = voc(tmp_path)
    results = write_results(tmp_path / "results.json", source)
    out = ["--out", tmp_path / "out"]
    assert "give one of --recipe" in sentence(ohem("audit", source, *out))
    assert "give one of --recipe" in sentence(ohem("audit", source, "--run", "r", "--detections", results, *out))
    assert "no data set is given" in sentence(ohem("audit", "--detections", results, *out))
    assert "SOURCE alone" in sentence(ohem("audit", source, "--detections", results, "--data.train", source, *out))
    assert "--folds 7" in sentence(ohem("audit", source, "--recipe", "demo-ohem", "--folds", 7, *out))
    results.write_text(results.read_text().replace("0.99", "1.5"))
    assert "outside 0..1" in sentence(ohem("audit", source, "--detections", results, *out))


def test_images_are_judged_by_detectors_that_did_not_see_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainings run in this process, since a process for each takes seconds."""
    from ohem.experiments import runner
    from ohem.insight.suspects import folds

    commands: list[list[str]] = []

    def run_here(jobs: list[runner.Job], parallel: int, first: list[str], cluster: str | None) -> None:
        for command in [first, *(line for job in jobs for line in job.remaining())]:
            commands.append([str(argument) for argument in command])
            assert ohem(*command).code == 0

    monkeypatch.setattr(folds, "run_jobs", run_here)
    source = voc(tmp_path)
    options = [option for option in training(tmp_path / "data", test=None) if option not in ("--data.train", source)]
    arguments = ["audit", source, "--out", tmp_path / "out", "--folds", 2, *options]
    done = ohem(*arguments)
    assert done.code == 0, done.err
    names = [(tmp_path / "out" / f"fold-{fold}.txt").read_text().split() for fold in (1, 2)]
    assert sorted(names[0] + names[1]) == list("abcdef")
    assert [command[:2] for command in commands[1:]] == [["train", str(tmp_path / "out" / f"fold-{i}")] for i in (1, 2)]
    before = (tmp_path / "out" / "audit.json").read_bytes()
    assert ohem(*arguments).code == 0
    assert (tmp_path / "out" / "audit.json").read_bytes() == before
    used = ohem("audit", source, "--run", tmp_path / "out" / "fold-1", "--out", tmp_path / "one")
    assert used.code == 0, used.err
    file = tmp_path / "names.txt"
    for text, message in (("z\n", "'z'"), ("a\nb\nc\nd\ne\nf\n", "all images")):
        file.write_text(text)
        failed = ohem("train", tmp_path / "r", *training(tmp_path / "data", test=None), "--data.leave-out", file)
        assert message in sentence(failed)
