"""Outputs: they never replace other files, and bad places are refused before anything is computed."""

import json
from pathlib import Path

from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import edit_xml, training


def test_bad_places_of_results_are_refused(run: Path, data: Path, tmp_path: Path) -> None:
    assert ohem("train", run, *training(data)).code == 0
    assert f"--out {tmp_path} is a folder" in sentence(ohem("eval", run, "--out", tmp_path))
    taken = tmp_path / "taken"
    taken.touch()
    assert f"--submit {taken} is no folder" in sentence(ohem("eval", run, "--submit", taken))


def read_files(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_results_do_not_replace_other_files(run: Path, data: Path, tmp_path: Path) -> None:
    assert ohem("train", run, *training(data)).code == 0
    (tmp_path / "thesis.txt").write_text("a chapter")
    (tmp_path / "link.json").symlink_to(data / "Annotations" / "g.xml")
    run_files = [run / name for name in ("recipe.yaml", "checkpoint.pt", "metrics.csv")]
    data_files = [
        data / "Annotations" / "a.xml",
        data / "JPEGImages" / "g.png",
        data / "ImageSets" / "Main" / "test.txt",
    ]
    before = read_files(run, data, tmp_path)
    for path in [*run_files, *data_files, tmp_path / "thesis.txt", tmp_path / "link.json"]:
        assert str(path) in sentence(ohem("eval", run, "--out", path))
    for folder in (data, data / "JPEGImages", data / "Annotations"):
        assert f"--submit {folder} is a folder of the data" in sentence(ohem("eval", run, "--submit", folder))
    assert read_files(run, data, tmp_path) == before
    for _ in range(2):  # an earlier report is replaced
        assert ohem("eval", run, "--out", tmp_path / "mine.json").code == 0


def test_chart_does_not_replace_an_image(run: Path, data: Path) -> None:
    assert ohem("train", run, *training(data)).code == 0
    before = read_files(run, data)
    assert "would be overwritten" in sentence(ohem("loss", run, "--plot", data / "JPEGImages" / "a.png"))
    assert read_files(run, data) == before


def test_report_has_digests_of_its_weights_and_data(run: Path, data: Path) -> None:
    def digests() -> tuple[str, str]:
        assert ohem("eval", run).code == 0
        report = json.loads((run / "eval.json").read_text())
        return report["weights"], report["data"]

    assert ohem("train", run, *training(data)).code == 0
    first = digests()
    assert digests() == first
    edit_xml(data, "<xmin>", "<xmin>1", stem="g")
    second = digests()
    assert (second[0], second[1] != first[1]) == (first[0], True)
    assert ohem("train", run, *training(data, steps=3)).code == 0
    third = digests()
    assert (third[0] != second[0], third[1]) == (True, second[1])
