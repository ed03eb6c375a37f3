"""Generation of proposals by several processes: one writer at a time, and no process is left when one of them fails."""

import os
import signal
import subprocess
import sys

import pytest

from ohem.errors import InputError
from ohem.io.locks import locked
from ohem.proposals import generate as module
from ohem.proposals.generate import generate
from tests.proposals.processes import child_processes, in_session, wait_until, without_workers, workers


def test_a_second_writer_is_refused_and_a_reader_is_not(images, path):
    few = {"a": images["a"]}
    generate(few, path, jobs=1, progress=False)
    with locked(path.with_name(f".{path.name}.lock"), "the test"):
        with pytest.raises(InputError, match=r"train\.safetensors is in use by another process"):
            generate(images, path, jobs=1, progress=False)
        assert len(generate(few, path, jobs=1, progress=False)) == 1
    assert len(generate(images, path, jobs=1, progress=False)) == 6
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("complete", [True, False])
def test_what_killed_writers_left_is_removed(images, path, complete):
    generate(images if complete else {"a": images["a"]}, path, jobs=1, progress=False)
    names = [f".{path.name}.lock", f".{path.name}.77.tmp", f"{path.name}.parts"]
    for name in names[:2]:
        path.with_name(name).touch()
    path.with_name(names[2]).mkdir()
    generate(images, path, jobs=1, progress=False)
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(images, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written \(.*\): name another folder"):
        generate(images, tmp_path / "file" / "p.safetensors", jobs=1, progress=False)


def test_no_process_is_left_when_something_goes_wrong(images, monkeypatch, path):
    seen = []

    def fail(*_):
        seen.extend(workers(before))
        raise RuntimeError("no")

    before = without_workers()
    monkeypatch.setattr(module, "PART_SECONDS", 0)
    monkeypatch.setattr(module.Proposals, "save", fail)
    many = {f"{name}{i}": file for i in range(20) for name, file in images.items()}
    with pytest.raises(RuntimeError):
        generate(many, path, jobs=2, progress=False)
    assert len(set(seen)) >= 1
    assert not [pid for pid in set(seen) if pid in child_processes()]


def test_a_worker_that_is_killed_ends_in_a_sentence_and_what_is_done_is_kept(images, path, monkeypatch):
    """Kills the workers, as the system does when there is not enough memory."""
    before, killed = without_workers(), set()
    monkeypatch.setattr(module, "PART_SECONDS", 0)
    real = module.Proposals.save

    def save(self, file):
        real(self, file)
        if not killed:  # later there are also processes by which joblib ends the workers
            killed.update(workers(before))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(module.Proposals, "save", save)
    many = {f"{name}{i}": file for i in range(100) for name, file in images.items()}
    with pytest.raises(InputError, match=r"was killed, .*fewer --jobs"):
        generate(many, path, jobs=2, progress=False)
    assert list(path.with_name(f"{path.name}.parts").glob("*.safetensors"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_no_process_and_keeps_what_is_done(images, path, tmp_path, number):
    """Runs in its own process session, so that every process that stays is counted."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from ohem.proposals import generate as module\n"
        "module.PART_SECONDS = 0\n"
        f"images = { ({k: str(v) for k, v in images.items()})!r}\n"
        "images |= {f'{k}{i}': v for i in range(3000) for k, v in images.items()}\n"
        f"module.generate({{k: Path(v) for k, v in images.items()}}, Path({str(path)!r}), jobs=2)\n"
    )
    parts = path.with_name(f"{path.name}.parts")
    with subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, start_new_session=True) as run:
        assert wait_until(lambda: len(list(parts.glob("*.safetensors"))) >= 2)
        assert len(in_session(run.pid)) > 2
        run.send_signal(number)
        run.wait(20)
        assert wait_until(lambda: not in_session(run.pid), seconds=10)
    assert (
        run.returncode == {signal.SIGTERM: 143, signal.SIGINT: -signal.SIGINT, signal.SIGKILL: -signal.SIGKILL}[number]
    )
    assert len(list(parts.glob("*.safetensors"))) >= 2
    if number != signal.SIGKILL:
        assert list(path.parent.iterdir()) == [parts]
