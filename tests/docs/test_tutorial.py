"""The notebook docs/tutorial.ipynb runs from top to bottom, with fewer steps."""

import json
import tempfile
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks, run_python

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert sum(block.count("STEPS = 20\n") for block in blocks(NOTEBOOK, "python")) == 1
    names = run_python(NOTEBOOK, "STEPS = 20\n", "STEPS = 2\n")
    assert names["step"] == 2
    assert names["picture"].size == (426, 320)
    assert len(names["hardest"]) == 20
    mined = names["model"].mining.statistics()
    assert 64 < mined["chosen"] <= 128 < mined["rois"]
    assert mined["loss_chosen"] > mined["loss_all"] > 0
    assert names["criterion"].mining["kept"] == 512
    assert "step 1: 128 of " in capsys.readouterr().out


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in cells] == [([], None)] * len(cells)
