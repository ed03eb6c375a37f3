"""The Python blocks of all pages run as written."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, blocks, name_of, run_python
from tests.integrations.optional import import_quietly

# They warn when they are imported.
OPTIONAL = ("monai.apps.detection.networks.retinanet_detector", "pytorch_lightning", "segmentation_models_pytorch")
WITH_PYTHON = [page for page in PAGES if page.suffix == ".md" and blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_of_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name_of(page) == "docs/hugging-face.md" and version("torch").startswith("2.4"):
        pytest.skip("transformers requires torch 2.5")
    monkeypatch.chdir(tmp_path)
    for package in OPTIONAL:
        if any(
            re.search(rf"^(from|import) {package.partition('.')[0]}\b", block, re.MULTILINE)
            for block in blocks(page, "python")
        ):
            import_quietly(package)
    run_python(page)


def test_the_main_pages_have_python() -> None:
    names = {name_of(page) for page in WITH_PYTHON}
    assert names >= {"README.md", "docs/index.md", "docs/your-own-detector.md", "docs/your-own-loss.md"}


def test_a_block_is_left_out_only_with_a_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Text\n\n```python\na = 1\n```\n\n*Not run by the tests: it needs a GPU.*\n\n```python\nb = 2\n```\n"
    )
    assert [block.strip() for block in blocks(page, "python")] == ["a = 1"]
    page.write_text("```python\na = 1\n```\n\nNot run.\n\n```python\nb = a + 1\n```\n")
    assert run_python(page)["b"] == 2


def test_an_error_names_the_line_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nraise KeyError\n```\n")
    with pytest.raises(KeyError) as raised:
        run_python(page)
    last = raised.traceback[-1]
    assert (last.path, last.lineno + 1) == (page, 4)
