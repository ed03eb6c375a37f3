"""Writes the report: a page and a JSON file."""

from collections.abc import Sequence
from pathlib import Path

from ohem.errors import InputError
from ohem.extras import import_extra
from ohem.insight.report.content import make_content, without_pictures
from ohem.insight.report.page import write_page
from ohem.insight.report.run_facts import read_runs
from ohem.io.json_files import write_json

NAME = "report.html"
MARK = '<meta name="generator" content="ohem report">'
CREATED_BY = "ohem report"


def make_report(
    runs: Sequence[Path], sources: Sequence[str] = (), detections: Path | None = None, out: Path | None = None
) -> Path:
    """Writes a page about one run, or a comparison of several with the first, and its content as JSON.

    Args:
        runs: folders of runs.
        sources: test data; default: those of each run.
        detections: detections of the one run in the images of `sources`, in COCO's result format.
        out: the page, NAME.html; the JSON file is NAME.json. Default: report.html in the folder of the first run.

    Returns:
        The path of the page.

    Raises:
        InputError: a package is missing, `out` is no .html file, or as `read_runs` does.
    """
    for package in ("jinja2", "matplotlib", "pyarrow"):
        import_extra(package, "ohem report")
    page = out if out is not None else Path(*runs[:1]) / NAME
    _check_place(page)
    content = make_content(read_runs(runs, sources, detections))
    write_json(page.with_suffix(".json"), {"created_by": CREATED_BY, **without_pictures(content)})
    write_page(page, content)
    print(f"wrote {page} and {page.with_suffix('.json')}")
    return page


def _check_place(page: Path) -> None:
    """Raises `InputError` where the report cannot be written, or would overwrite something else."""
    if page.suffix != ".html" or page.is_dir() or not page.parent.is_dir():
        raise InputError(f"--out {page} must be a .html file in a folder that exists: name another")
    for path, mark in ((page, MARK), (page.with_suffix(".json"), f'"{CREATED_BY}"')):
        if path.exists() and (not path.is_file() or mark.encode() not in path.read_bytes()[:1000]):
            raise InputError(f"{path} exists and is no report: name another file with --out")
