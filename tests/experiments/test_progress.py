"""The line for a finished run, and the estimate of the time left."""

import pytest

from ohem.experiments.runner import Progress, format_time_left


def test_line_has_the_map_the_number_of_runs_and_the_time_left() -> None:
    progress = Progress(total=6, parallel=1, finished=2)
    progress.finish(140.0)
    assert progress.describe("ohem-1", [71.23], []) == "ohem-1: mAP 71.2 (3 of 6 runs, about 7 min left)"


def test_last_line_has_no_time_left() -> None:
    progress = Progress(total=1, parallel=1)
    progress.finish(140.0)
    assert progress.describe("ohem-1", [71.2, 70.0], []) == "ohem-1: mAP 71.2, 70.0 (1 of 1 runs)"
    assert progress.describe("ohem-1", [], []) == "ohem-1: done (1 of 1 runs)"


def test_time_left_is_that_of_the_finished_runs() -> None:
    progress = Progress(total=6, parallel=2)
    progress.finish(100.0)
    progress.finish(200.0)
    assert progress.seconds_left([]) == 4 * 150 / 2
    assert progress.seconds_left([50.0]) == (3 * 150 + 100) / 2
    assert progress.seconds_left([50.0, 500.0]) == (2 * 150 + 100) / 2


def test_last_run_does_not_use_all_processes() -> None:
    progress = Progress(total=2, parallel=4)
    progress.finish(100.0)
    assert progress.seconds_left([40.0]) == 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "less than 1 min left"),
        (29, "less than 1 min left"),
        (61, "about 1 min left"),
        (3599, "about 1 h 0 min left"),
        (7800, "about 2 h 10 min left"),
    ],
)
def test_time_left_as_text(seconds: float, text: str) -> None:
    assert format_time_left(seconds) == text
