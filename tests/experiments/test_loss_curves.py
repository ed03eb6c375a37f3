"""`ohem loss` measures what training measured: once, and again only if weights or data have changed."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ohem.experiments import loss_curves
from ohem.experiments.loss_curves import Curve, by_method
from ohem.training import checkpoint, roi_loss, snapshots
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, training


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns toy data and a run of 12 steps with a loss and a snapshot every 5 steps."""
    folder = tmp_path_factory.mktemp("original")
    data = make_toy(folder / "toy")
    options = ["--run.loss-every", 5, "--run.snapshot-every", 5]
    assert ohem("train", folder / "run", *training(data, steps=12), *options).code == 0
    assert ohem("propose", f"{data}:test", "--jobs", 1).code == 0
    return folder


@pytest.fixture
def data(original: Path) -> Path:
    return original / "toy"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """Returns a copy of the run."""
    return Path(shutil.copytree(original / "run", tmp_path / "ohem"))


def never(*_: object) -> None:
    raise AssertionError("the loss has been measured already")


def test_loss_equals_that_measured_in_training(run: Path) -> None:
    before = roi_loss.read(run)
    (run / roi_loss.NAME).unlink()
    printed = ohem("loss", run)
    assert printed.code == 0
    after = roi_loss.read(run)
    assert [row.step for row in after] == [5, 10, 12]
    for row, other in zip(before, after, strict=True):
        assert replace(row, loss=0, loss_classifier=0, loss_box_reg=0) == replace(
            other, loss=0, loss_classifier=0, loss_box_reg=0
        )
        for term in ("loss", "loss_classifier", "loss_box_reg"):
            assert getattr(row, term) == pytest.approx(getattr(other, term), rel=1e-6)
        assert f"{row.loss:.4f}" in printed.out


def test_loss_equals_that_of_eval(run: Path, data: Path) -> None:
    assert ohem("eval", run, "--loss").code == 0
    loss = json.loads((run / "eval.json").read_text())["loss_all_rois"]
    assert loss == pytest.approx(roi_loss.read(run)[-1].loss, rel=1e-6)


def test_nothing_is_measured_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / roi_loss.NAME).read_bytes()
    monkeypatch.setattr(loss_curves, "loss_over_all", never)
    assert ohem("loss", run).code == 0
    assert (run / roi_loss.NAME).read_bytes() == before


def test_other_data_have_their_own_rows(run: Path, data: Path) -> None:
    trained = [row for row in roi_loss.read(run) if row.data == f"{data}:train"]
    assert ohem("loss", run, "--data", f"{data}:test").code == 0
    rows = roi_loss.read(run)
    tested = [row for row in rows if row.data == f"{data}:test"]
    assert [(row.step, row.images) for row in tested] == [(5, 2), (10, 2), (12, 2)]
    assert rows == [*tested, *trained]


def test_newest_checkpoint_is_measured_with_and_without_snapshots(run: Path) -> None:
    (run / "snapshots" / "step-0000012.safetensors").unlink()
    before = roi_loss.read(run)
    (run / roi_loss.NAME).unlink()
    assert ohem("loss", run).code == 0
    assert [row.weights_digest for row in roi_loss.read(run)] == [row.weights_digest for row in before]
    shutil.rmtree(run / "snapshots")
    (run / roi_loss.NAME).unlink()
    assert ohem("loss", run).code == 0
    assert [row.step for row in roi_loss.read(run)] == [12]


def test_losses_of_training_are_printed_without_snapshots(run: Path) -> None:
    before = roi_loss.read(run)
    shutil.rmtree(run / "snapshots")
    printed = ohem("loss", run)
    assert all(f"{row.loss:.4f}" in printed.out for row in before)


def test_change_of_weights_is_reported_and_measured(run: Path) -> None:
    before = roi_loss.read(run)
    path = snapshots.list_snapshots(run)[10]
    changed = snapshots.load(path)
    changed["scores.bias"][0] += 1  # softmax takes no notice of the same number in all
    path.unlink()
    snapshots.save_snapshot(run, 10, changed)
    with pytest.warns(UserWarning, match="the weights of step 10 have changed"):
        assert ohem("loss", run).code == 0
    after = roi_loss.read(run)
    assert [row.step for row in after] == [5, 10, 12]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    assert after[1].loss != before[1].loss


def test_change_of_data_is_reported_and_measured(run: Path, original: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(original / "toy", tmp_path / "toy"))
    source = f"{data}:test"
    assert ohem("loss", run, "--data", source).code == 0
    before = {row.step: row for row in roi_loss.read(run) if row.data == source}
    snapshots.list_snapshots(run)[5].unlink()
    path = data / "Annotations" / "g.xml"
    path.write_text(path.read_text().replace("<name>red", "<name>blue"))
    with pytest.warns(UserWarning, match="3 rows were measured; they are left out"):
        printed = ohem("loss", run, "--data", source)
    assert f"{before[5].loss:.4f}" not in printed.out  # it has other data, and the weights are removed
    after = {row.step: row for row in roi_loss.read(run) if row.data == source}
    assert after[5] == before[5]
    assert after[10].loss != before[10].loss
    assert after[10].data_digest == after[12].data_digest != before[12].data_digest


def test_several_runs_have_a_column_for_every_run(run: Path, original: Path, data: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    assert ohem("train", short, *training(data, steps=3, recipe="demo-frcn")).code == 0
    printed = ohem("loss", run, short)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.out.splitlines() if "│" in line]
    of_run, (of_short,) = roi_loss.read(run), roi_loss.read(short)
    assert lines == [["3", "", f"{of_short.loss:.4f}"], *([str(r.step), f"{r.loss:.4f}", ""] for r in of_run)]


def test_columns_name_their_data_if_these_differ(run: Path, tmp_path: Path) -> None:
    other = make_toy(tmp_path / "b", {"train": "xyz"})
    assert ohem("train", tmp_path / "other", *training(other, steps=1, test=None)).code == 0
    out = ohem("loss", run, tmp_path / "other").out
    squeezed = "".join(out.split())
    assert "b:train" in squeezed
    assert "toy:train" in squeezed


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_chart_is_written_and_always_the_same(run: Path, tmp_path: Path, suffix: str) -> None:
    chart = tmp_path / f"figure3{suffix}"
    assert str(chart) in ohem("loss", run, "--plot", chart).out
    first = chart.read_bytes()
    assert first.startswith(b"\x89PNG" if suffix == ".png" else b"<svg")
    assert ohem("loss", run, "--plot", chart).code == 0
    assert chart.read_bytes() == first
    if suffix == ".svg":
        assert all(f">{text}</text>" in chart.read_text() for text in ("ohem", "SGD step"))


def curve(name: str, *losses: float) -> Curve:
    return Curve(Path(name), "", dict(enumerate(losses, start=1)))


def test_runs_that_differ_in_a_trailing_number_are_one_method() -> None:
    names = ("runs/ohem-0", "runs/frcn-1", "runs/ohem-12", "runs/frcn", "runs/bg-lo-0")
    assert by_method([curve(name, i) for i, name in enumerate(names)], {}) == {
        "ohem (2 runs)": [[(1, 0)], [(1, 2)]],
        "frcn (2 runs)": [[(1, 1)], [(1, 3)]],
        "bg-lo-0": [[(1, 4)]],
    }


def test_runs_of_the_same_name_are_labelled_by_their_folders() -> None:
    methods = by_method([curve("cards/ohem-0"), curve("bccd/ohem-0"), curve("bccd/ohem-1")], {})
    assert list(methods) == ["cards/ohem-0", "bccd/ohem (2 runs)"]


# Bad input


def test_missing_unknown_and_repeated_runs_are_refused(run: Path, tmp_path: Path) -> None:
    assert "no run is given" in sentence(ohem("loss"))
    assert "nowhere is not a run" in sentence(ohem("loss", run, tmp_path / "nowhere"))
    assert "is given twice" in sentence(ohem("loss", run, run))


def test_run_without_checkpoint_is_reported_before_anything_is_measured(run: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(run / "recipe.yaml", empty)
    (run / roi_loss.NAME).unlink()
    assert f"{empty} has no checkpoint yet" in sentence(ohem("loss", run, empty))
    assert not (run / roi_loss.NAME).exists()


def test_chart_that_cannot_be_written_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / roi_loss.NAME).unlink()
    monkeypatch.setattr(loss_curves, "loss_over_all", never)
    for name in ("chart.pdf", "chart", ".svg"):
        assert "is neither .svg nor .png" in sentence(ohem("loss", run, "--plot", tmp_path / name))
    assert "does not exist" in sentence(ohem("loss", run, "--plot", tmp_path / "no" / "chart.svg"))


def test_missing_matplotlib_is_reported(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "ohem[experiments]"' in sentence(ohem("loss", run, "--plot", tmp_path / "chart.svg"))
    assert ohem("loss", run).code == 0


def test_missing_data_are_reported(run: Path, tmp_path: Path) -> None:
    assert "does not exist" in sentence(ohem("loss", run, "--data", f"{tmp_path / 'nowhere'}:test"))


def test_damaged_files_are_reported(run: Path) -> None:
    path = snapshots.list_snapshots(run)[5]
    path.write_bytes(path.read_bytes()[:-4])
    assert "step-0000005.safetensors cannot be read" in sentence(ohem("loss", run))
    (run / roi_loss.NAME).write_text("step,loss\n5,0.1\n")
    assert "loss_all.csv cannot be read" in sentence(ohem("loss", run))


def test_snapshot_of_another_detector_is_reported(run: Path) -> None:
    path = snapshots.list_snapshots(run)[5]
    path.unlink()
    snapshots.save_snapshot(run, 5, {"scores.bias": torch.zeros(7)})
    assert f"{run}: step 5 is of another detector" in sentence(ohem("loss", run))


def test_a_device_that_this_machine_does_not_have_is_replaced(run: Path) -> None:
    path = run / "recipe.yaml"
    text = path.read_text().replace("accelerator: cpu", "accelerator: abacus")
    path.write_text(text.partition("checksum")[0])
    with pytest.warns(UserWarning, match="was trained on abacus, which this machine does not have"):
        assert ohem("loss", run).code == 0
    assert checkpoint.exists(run)
