"""Proposals in the order of the images, made by processes: few are begun, and no process is left."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from ohem.errors import InputError
from ohem.proposals.parallel import proposals_in_order, propose
from ohem.proposals.selective_search import FAST
from tests.proposals.processes import child_processes, in_session, wait_until, workers


def test_the_order_is_kept_few_are_begun_and_an_error_comes_in_its_place(images):
    before, begun, made = child_processes(), [], []
    paths = 3 * list(images.values())[:-1]
    paths[13] = images["c"]
    paths[13].write_text("no image")

    def use_all():
        with proposals_in_order(map(begin, paths), FAST, 2) as proposals:
            for boxes in proposals:
                made.append(boxes)
                assert len(begun) - len(made) < 4
                assert 1 <= len(workers(before)) <= 2

    def begin(path):
        begun.append(path)
        return path

    with pytest.raises(InputError, match=r"c\.png is cut short or not an image"):
        use_all()
    assert len(made) == 13
    for path, boxes in zip(paths, made, strict=False):
        np.testing.assert_array_equal(boxes, propose("", path, FAST)[1])
    assert not workers(before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_process(images, tmp_path, number):
    """Runs in its own process session, so that every process that stays is counted."""
    script = tmp_path / "run.py"
    script.write_text(
        "from itertools import cycle\n"
        "from pathlib import Path\n"
        "from ohem.proposals.parallel import proposals_in_order\n"
        "from ohem.proposals.selective_search import FAST\n"
        f"with proposals_in_order(cycle([Path({str(images['a'])!r})]), FAST, 2) as proposals:\n"
        "    for boxes in proposals:\n"
        "        print(len(boxes), flush=True)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, start_new_session=True) as run:
        assert run.stdout.readline()
        assert len(in_session(run.pid)) > 2
        run.send_signal(number)
        run.communicate(timeout=20)
        assert wait_until(lambda: not in_session(run.pid), seconds=10)
    assert run.returncode == {signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[number]
