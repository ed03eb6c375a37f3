"""A short run of both scripts, and tests that they notice faults."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from ohem.training import checkpoint
from tests.fuzz import kill, oracle
from tests.fuzz.damage import damage
from tests.fuzz.files import Fuzzer
from tests.fuzz.isolation import here
from tests.fuzz.world import KINDS, World
from tests.helpers.command_line import Forked

SEED = 0
ROOM = 500_000_000
CASES = 46


@pytest.fixture(scope="module")
def fuzzer() -> Iterator[Fuzzer]:
    memory = Path("/dev/shm")  # removing thousands of folders takes much of the time on a disk
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    with TemporaryDirectory(dir=memory if roomy else None) as folder:
        world = World(Path(folder), leave_out=("reproduce", "demo"))
        world.make()
        yield Fuzzer(world, here, SEED)


def test_damaged_files_end_in_a_sentence_or_in_the_same_result(fuzzer: Fuzzer) -> None:
    cases = [case for number in range(CASES) for case in fuzzer.case(number, fuzzer.world.kinds)]
    assert {case.kind for case in cases} == set(fuzzer.world.kinds)
    faults = [str(case) for case in cases if case.verdict in ("SILENT", "TRACEBACK")]
    assert not faults, "\n".join(faults)


class Fork:
    """A command as a fork, as `Killer` needs it: an interpreter of its own takes 4 seconds to import PyTorch."""

    def __init__(self, arguments: Sequence[object], folder: Path) -> None:
        self.forked = Forked(*arguments, folder=folder, first=os.setsid)

    @property
    def pid(self) -> int:
        return self.forked.process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self.forked.process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        self.forked.process.join(seconds)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired("ohem", seconds or 0)
        return status


class ForkingKiller(kill.Killer):
    """Kills forks, whose environment cannot be read: none of them may have children."""

    def _start(self, arguments: Sequence[object]) -> tuple[Any, str]:
        self.output = self.place / "stderr.txt"
        return Fork(arguments, self.place), "none"


def test_a_killed_training_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    Forked("recipes", folder=tmp_path).wait()  # or the first training would seem to take long, by imports
    killer = ForkingKiller("train", tmp_path, signal.SIGKILL, Random(SEED))
    killer.seconds = (killer.begins + killer.seconds) / 2  # a second run may be faster, and end before it is killed
    killer.chain(2)
    assert killer.kills
    assert not killer.faults, "\n".join(killer.faults)


# The scripts notice faults


def _run_undamaged(fuzzer: Fuzzer) -> None:
    """Runs `detect` before a test replaces a function that it calls."""
    fuzzer.undamaged(KINDS["checkpoint.pt"], "detect")


def _verdicts(fuzzer: Fuzzer) -> set[str]:
    """Returns the verdicts on `detect` with some damage to the checkpoint."""
    return {case.verdict for number in range(4) for case in fuzzer.case(number, ["checkpoint.pt"], only="detect")}


def test_a_reader_that_falls_back_without_a_note_is_silent(fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_undamaged(fuzzer)
    previous = lambda run, *_, **__: torch.load(run / checkpoint.PREVIOUS, weights_only=True)  # noqa: E731
    monkeypatch.setattr(checkpoint, "load", previous)
    assert _verdicts(fuzzer) == {"SILENT"}


def test_an_exception_is_a_traceback(fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyError("step")

    _run_undamaged(fuzzer)
    monkeypatch.setattr(checkpoint, "load", fails)
    assert _verdicts(fuzzer) == {"TRACEBACK"}


def test_a_sentence_that_does_not_name_the_file_is_vague(fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    from ohem.errors import InputError

    def refuses(*_: object, **__: object) -> None:
        raise InputError("something is damaged")

    _run_undamaged(fuzzer)
    monkeypatch.setattr(checkpoint, "load", refuses)
    assert _verdicts(fuzzer) == {"VAGUE"}


def test_a_case_is_a_function_of_its_number(fuzzer: Fuzzer) -> None:
    kinds = ["split to test on"]
    first, second = ([list(fuzzer.case(number, kinds)) for number in range(6)] for _ in range(2))
    # What a command prints has its speed.
    assert [[replace(case, output="") for case in cases] for cases in first] == [
        [replace(case, output="") for case in cases] for cases in second
    ]
    assert len({(case.file, case.done) for [case] in first}) > 3


# Content of damaged files


def _rewritten(path: Path, content: bytes) -> str | None:
    """Returns the damaged file as the oracle writes it, or None where it has no valid content."""
    damaged = path.with_name(f"damaged{path.suffix}")
    damaged.write_bytes(content)
    try:
        oracle.rewrite(damaged, path)
    except oracle.Nonsense:
        return None
    return path.read_text(errors="replace")


XML = b"""<annotation><size><width>80</width><height>64</height></size><object><name>red</name><difficult>0</difficult>
<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>25</xmax><ymax>30</ymax></bndbox></object></annotation>"""


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (b">25<", b">27<", True),
        (b"red", b"rod", True),
        (b">25<", b">nan<", False),
        (b">25<", b">250<", False),
        (b">25<", b">4<", False),
        (b"<xmax>", b"<xmin>", False),
        (b"</bndbox>", b"</bndbox><bndbox/>", False),
        (b"object", b"objec", False),
        (b"</annotation>", b"", False),
    ],
)
def test_what_a_damaged_xml_says(tmp_path: Path, before: bytes, after: bytes, says: bool) -> None:
    plain = _rewritten(tmp_path / "a.xml", XML.replace(before, after))
    assert (plain is not None) == says
    assert plain is None or f">{after.strip(b'<>').decode()}<" in plain.replace(".0", "")


def test_what_a_damaged_split_says(tmp_path: Path) -> None:
    assert _rewritten(tmp_path / "s.txt", b"a\r\n\r\n b ") == "a\nb\n"
    assert _rewritten(tmp_path / "s.txt", b"a\nb\na\n") is None


def test_what_a_damaged_coco_file_says(tmp_path: Path) -> None:
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0}
    whole = {"images": [{"id": 1}], "annotations": [thing], "categories": [{"id": 1}]}

    def says(text: str) -> bool:
        return _rewritten(tmp_path / "a.json", text.encode()) is not None

    assert says(json.dumps(whole))
    assert not says(json.dumps(whole).replace('"images"', '"categories"'))
    assert not says(json.dumps(whole | {"images": [{"id": 1}, {"id": 1}]}))
    assert not says(json.dumps(whole | {"annotations": [thing | {"bbox": [0, 0, -9, 9]}]}))


def test_what_damaged_boxes_say(tmp_path: Path) -> None:
    path = tmp_path / "boxes.mat"
    for value, says in ((30, True), (np.nan, False), (1e30, False), (2, False)):
        boxes, images = np.empty((1, 1), object), np.empty((1, 1), object)
        boxes[0, 0], images[0, 0] = np.array([[3.0, 4, 20, value]]), "a"
        savemat(path, {"boxes": boxes, "images": images})
        assert (_rewritten(path, path.read_bytes()) is not None) == says
    assert loadmat(path)["images"][0, 0][0] == "a"


def test_pickled_weights_have_a_checksum(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"weight": torch.arange(1000.0)}, path)
    whole = path.read_bytes()
    assert _rewritten(path, whole) is not None
    at = whole.index(torch.arange(1000.0).numpy().tobytes()) + 50
    assert _rewritten(path, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]) is None


def test_every_damage_changes_the_file(fuzzer: Fuzzer, tmp_path: Path) -> None:
    for number in range(60):
        whole = fuzzer.world.examples[number % len(fuzzer.world.examples)]
        if 0 < whole.stat().st_size < 100_000:
            path = tmp_path / f"{number}{whole.suffix}"
            path.write_bytes(whole.read_bytes())
            others = [other for other in fuzzer.world.examples if other.read_bytes() != whole.read_bytes()]
            damage(path, others[:1], Random(number))
            assert not path.is_file() or path.read_bytes() != whole.read_bytes()


# Files after kills


def test_what_a_kill_left_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text('{"map": 50.0, "seconds_per_image": 1}')
    (tmp_path / "metrics.csv").write_text("step,loss,seconds\n1,0.5,9\n")
    torch.save({"step": 1, "model": {"weight": torch.ones(3)}}, tmp_path / "checkpoint.pt")
    before = kill.contents(tmp_path, previous=True)
    (tmp_path / "eval.json").write_text('{"map": 50.0, "seconds_per_image": 2}')
    (tmp_path / "metrics.csv").write_text("step,loss,seconds\n1,0.5,7\n")
    assert kill.differences(kill.contents(tmp_path, previous=True), before) == []
    (tmp_path / ".eval.json.77.tmp").touch()
    (tmp_path / "eval.json").unlink()
    (tmp_path / "metrics.csv").write_text("step,loss,seconds\n1,0.6,9\n")
    torch.save({"step": 1, "model": {"weight": torch.tensor([1.0, 1.0, 1.0000001])}}, tmp_path / "checkpoint.pt")
    assert kill.differences(kill.contents(tmp_path, previous=True), before) == [
        ".eval.json.77.tmp is left over",
        "eval.json is missing",
        "checkpoint.pt differs",
        "metrics.csv differs",
    ]


def test_a_process_that_is_left_is_noticed() -> None:
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    mark = f"left by {os.getpid()}"
    environment: dict[str, Any] = {**os.environ, kill.MARK: mark}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    deadline = time.monotonic() + 5
    while len(kill.processes(mark)) != 1 and time.monotonic() < deadline:  # it may not have begun yet
        time.sleep(0.01)
    (left,) = kill.processes(mark)
    os.kill(left, signal.SIGKILL)
    while kill.processes(mark) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not kill.processes(mark)
