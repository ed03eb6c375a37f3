"""Progress in a log file: lines from the first seconds on, often at first, and none where it is switched off."""

import pytest

from ohem.io import progress
from ohem.io.progress import Counter, LineClock, tracked


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose only element is the time."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_lines_are_due_often_at_first_and_rarely_later(now: list[float]) -> None:
    clock, lines = LineClock(), []
    for second in range(421):
        now[0] = 100.0 + second
        if clock.is_due():
            lines.append(second)
    assert lines[:3] == [4, 8, 12]
    assert lines[-3:] == [356, 386, 416]
    assert clock.seconds == 420


def test_a_counter_prints_lines_where_there_is_no_terminal(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Counter("making [red] scenes", 8, done=2) as counter:
        for _ in range(6):
            now[0] += 2
            counter.advance()
    assert capsys.readouterr().err.splitlines() == [
        "making [red] scenes: 4 of 8, 0.50 images/s",
        "making [red] scenes: 6 of 8, 0.50 images/s",
        "making [red] scenes: 8 of 8, 0.50 images/s",
    ]


def test_nothing_is_printed_where_it_is_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked("ab", "letters", enabled=False)) == ["a", "b"]
    assert list(tracked("", "letters")) == []
    assert capsys.readouterr().err == ""
    assert list(tracked("ab", "letters")) == ["a", "b"]
    assert "letters: 2 of 2" in capsys.readouterr().err
