"""`python -m ohem`: a signal ends it at any moment with one line on stderr."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ohem.processes import share_cores_while_waiting

START = """
import sys, time
from ohem.processes import run_interruptible

def load():
    print("loading", flush=True)
    if sys.argv[1] == "loading":
        time.sleep(60)
    return run

def run():
    if sys.argv[1] == "beginning":
        print("beginning", flush=True)
        import slow_module
    import command
    command.work()

run_interruptible(load)
"""
COMMAND = """
import sys, time
from pathlib import Path
from ohem.io.files import atomic_write

class Slow:
    def __del__(self):
        print("deleting", flush=True)
        time.sleep(60 if sys.argv[1] == "deleting" else 0)

def work():
    with atomic_write(Path(sys.argv[2])) as temporary:
        temporary.write_text("half")
        slow = Slow()
        del slow
        print("running", flush=True)
        if sys.argv[1] == "importing":
            import slow_module
        time.sleep(60)
"""
SLOW_MODULE = "print('importing', flush=True)\nimport time\ntime.sleep(0.3)\nprint('imported', flush=True)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["loading", "beginning", "deleting", "running", "importing"])
def test_signal_prints_one_line_and_removes_temporary_files(
    moment: str, number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "slow_module.py").write_text(SLOW_MODULE)
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", START, moment, str(tmp_path / "out" / "file")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != moment:
        assert process.poll() is None
    time.sleep(0.05)
    process.send_signal(number)
    out, message = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert message == f"ohem: stopped by {number.name}\n"
    assert list((tmp_path / "out").iterdir()) == []
    assert ("imported" in out) == (moment == "importing")  # only if an import was running


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.2, 0.4])
def test_signal_during_the_start(seconds: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ohem", "recipes"], stdout=subprocess.DEVNULL, stderr=-1, text=True
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=20)
    # Before Python runs our first line, the signal ends it without a message.
    expected = {0: "", 128 + signal.SIGTERM: "ohem: stopped by SIGTERM\n", -signal.SIGTERM: ""}
    assert message == expected[process.returncode]


def test_signal_that_the_shell_ignores_is_ignored() -> None:
    program = "import os, signal; from ohem.processes import run_interruptible\n"
    program += "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    program += "run_interruptible(lambda: lambda: (signal.raise_signal(signal.SIGINT), print('done')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_bad_input_ends_with_exit_status_2() -> None:
    done = subprocess.run([sys.executable, "-m", "ohem", "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ohem: ")


def test_full_device_of_the_output() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "ohem", "recipes"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "ohem: No space left on device: choose another place, or make room\n"


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}])
def test_waiting_threads_sleep_soon_unless_the_user_has_decided(
    monkeypatch: pytest.MonkeyPatch, own: dict[str, str]
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    share_cores_while_waiting()
    assert {name: os.environ[name] for name in names if name in os.environ} == (own or {"GOMP_SPINCOUNT": "1000"})
