"""metrics.csv: writing and reading, damaged files, and files restored from a checkpoint."""

import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohem.errors import InputError
from ohem.training import checkpoint
from ohem.training.logs.metrics_log import COLUMNS, NAME, MetricsLog, has_rows, parse_metrics, read_metrics
from tests.training.test_checkpoint import trained


def write(run: Path, steps: int = 3) -> str:
    """Returns the text of a file with a row for each step."""
    with MetricsLog(run, 0) as log:
        for step in range(1, steps + 1):
            log.write({"step": step, "loss": 1 / step, "nan": float("nan")})
        return log.text


def test_the_text_is_that_of_the_file(tmp_path: Path) -> None:
    text = write(tmp_path)
    assert (tmp_path / NAME).read_bytes().decode() == text
    assert [(row["step"], row["loss"], row["lr"]) for row in read_metrics(tmp_path)] == [
        ("1", "1", ""), ("2", "0.5", ""), ("3", "0.333333", "")
    ]  # fmt: skip


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 99, b"\xff\xfe", b"step,loss\n1,x\n"])
def test_a_run_goes_on_from_the_text_of_its_checkpoint(content: bytes | None, tmp_path: Path) -> None:
    text = write(tmp_path)
    path = tmp_path / NAME
    path.unlink() if content is None else path.write_bytes(content)
    with MetricsLog(tmp_path, 2, text) as log:
        log.write({"step": 3, "loss": 1 / 3, "nan": float("nan")})
    assert path.read_bytes().decode() == text


def test_a_run_that_starts_anew_does_not_read_what_is_there(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"\x00")
    write(tmp_path, 0)
    assert read_metrics(tmp_path) == []


def test_names_that_come_later_are_columns_of_their_own(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        log.write({"step": 1, "loss": 2.0})
        log.write({"step": 2, "loss_rpn": 3.0})
        assert read_metrics(tmp_path)[0] == dict.fromkeys([*COLUMNS, "loss_rpn"], "") | {"step": "1", "loss": "2"}
        assert (tmp_path / NAME).read_bytes().decode() == log.text


def test_a_row_takes_little_memory(tmp_path: Path) -> None:
    """A dict would take 1300 bytes."""
    with MetricsLog(tmp_path, 0) as log:
        tracemalloc.start()
        try:
            for step in range(300):
                log.write(dict.fromkeys(COLUMNS, step / 7) | {"step": step})
            assert tracemalloc.get_traced_memory()[0] < 300 * 300
        finally:
            tracemalloc.stop()


HEADER, EMPTY = ",".join(COLUMNS), "," * (len(COLUMNS) - 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "cut short"),
        (HEADER, "cut short"),
        (f"{HEADER}\n1{EMPTY}", "cut short"),
        ("step,loss\n1,2\n", "columns"),
        (f"{HEADER},loss\n", "columns"),
        (f"{HEADER}\n1{EMPTY},\n", "line 2"),
        (f"{HEADER}\n1{EMPTY[1:]}\n", "line 2"),
        (f"{HEADER}\n\n", "line 2"),
        (f"{HEADER}\n1{EMPTY}\n1{EMPTY}\n", "line 3 does not increase"),
        (f"{HEADER}\n2{EMPTY}\n1{EMPTY}\n", "line 3 does not increase"),
        (f"{HEADER}\n0{EMPTY}\n", "line 2 does not increase"),
        (f"{HEADER}\n1.5{EMPTY}\n", "line 2 does not increase"),
        (f"{HEADER}\n-1{EMPTY}\n", "line 2 does not increase"),
        (f"{HEADER}\n1{EMPTY[1:]},fast\n", "line 2"),
        (f"{HEADER}\n1{EMPTY[1:]},1_0\n", "line 2"),
        (f"{HEADER}\n1{EMPTY[1:]},\x00\n", "line (2|contains NUL)"),  # the latter in Python 3.10
        (f"{HEADER}\n1{EMPTY[1:]},\"\n", "no CSV"),
    ],
)  # fmt: skip
def test_what_is_not_whole_is_a_sentence(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(text.encode())
    with pytest.raises(InputError, match=rf"metrics\.csv is damaged \(.*{why}"):
        read_metrics(tmp_path)


def test_a_digit_that_differs_from_the_checkpoint_is_noticed(tmp_path: Path) -> None:
    text = write(tmp_path)
    checkpoint.save(tmp_path, trained() | {"metrics": text})
    path = tmp_path / NAME
    with path.open("a", newline="") as file:
        file.write(f"4{EMPTY}\r\n")
    assert len(read_metrics(tmp_path)) == 4  # a run is ahead of its checkpoint
    path.write_bytes(text.replace("0.5", "0.6").encode())
    with pytest.raises(InputError, match="differs from its copy in the checkpoint"):
        read_metrics(tmp_path)
    path.write_bytes("".join(text.splitlines(keepends=True)[:-1]).encode())
    with pytest.raises(InputError, match="differs from its copy in the checkpoint"):
        read_metrics(tmp_path)


def test_whether_there_are_rows_is_known_of_a_damaged_file(tmp_path: Path) -> None:
    assert not has_rows(tmp_path)
    write(tmp_path, 0)
    assert not has_rows(tmp_path)
    with (tmp_path / NAME).open("ab") as file:
        file.write(b"\xff\n")
    assert has_rows(tmp_path)


@given(st.binary(max_size=80) | st.text(max_size=80).map(lambda text: f"{HEADER}\n{text}\n".encode()))
def test_any_content_is_rows_or_a_sentence(content: bytes) -> None:
    rows: list[dict[str, str]] = []
    with suppress(InputError):
        rows = parse_metrics(content.decode(errors="surrogateescape"), Path(NAME))
    assert all(row.keys() >= set(COLUMNS) for row in rows)
