"""Work on a Dask cluster of real processes: the same files as here, also where a worker is killed."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from benchmarks.scale.edge_forest import write_edge_forest

from ohem import cluster
from ohem.errors import InputError
from ohem.experiments.runner import Job, run_jobs
from ohem.proposals.shards import Shards
from tests.fuzz.kill import make_pictures
from tests.helpers.command_line import FORKS, ohem, sentence
from tests.helpers.toy_data import make_toy, training

distributed = pytest.importorskip("distributed")
config = pytest.importorskip("dask").config


@pytest.fixture(scope="module")
def dask() -> Iterator[distributed.LocalCluster]:
    """Starts workers as forks of a process that has imported what they need."""
    FORKS.Process(target=time.sleep, args=(0,)).start()
    method = {"distributed.worker.multiprocessing-method": "forkserver"}
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with config.set(method), distributed.LocalCluster(**options) as started:
        yield started


def proposals(data: Path) -> bytes:
    (file,) = (data / "Proposals").glob("*.safetensors")
    return file.read_bytes()


def kill_one(dask: distributed.LocalCluster, data: Path) -> None:
    """Kills a worker once the first boxes are there."""
    while not list((data / "Proposals").glob("*.parts/*")):
        time.sleep(0.01)
    os.kill(next(iter(dask.workers.values())).pid, signal.SIGKILL)


def test_proposals_are_those_of_one_process_though_a_worker_is_killed(
    dask: distributed.LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ohem.proposals.generate.PART_SECONDS", 0.0)
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        make_pictures(folder, 12)
    assert ohem("propose", f"{here / 'data'}:train", "--jobs", 1).code == 0
    killer = threading.Thread(target=kill_one, args=(dask, there / "data"))
    killer.start()
    done = ohem("propose", f"{there / 'data'}:train", "--cluster", dask.scheduler_address)
    killer.join()
    assert done.code == 0, done.err
    first, second = (Shards(next((folder / "data/Proposals").glob("*.safetensors"))) for folder in (here, there))
    assert dict(first.digests) == dict(second.digests)
    assert all((first[name] == second[name]).all() for name in first)


def test_workers_run_edge_boxes(dask: distributed.LocalCluster, tmp_path: Path) -> None:
    model, data = write_edge_forest(tmp_path / "model.yml.gz"), make_toy(tmp_path / "toy", {"train": "ab"})
    line = ["propose", f"{data}:train", "--mode", "edge-boxes", "--edge-model", model]
    assert ohem(*line, "--cluster", dask.scheduler_address).code == 0
    there = proposals(data)
    shutil.rmtree(data / "Proposals")
    assert ohem(*line, "--jobs", 1).code == 0
    assert proposals(data) == there


def test_jobs_run_on_workers_and_a_failure_is_a_sentence(
    dask: distributed.LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [tmp_path / name for name in "ab"]
    run_jobs([Job(run, ["recipes", "demo-ohem"]) for run in runs], 1, [], dask.scheduler_address)
    assert all("detector: fast_rcnn" in run.with_suffix(".log").read_text() for run in runs)
    assert "(2 of 2 runs)" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"`ohem recipes none` ended with status 2 \(.*none.*\)"):
        run_jobs([Job(runs[0], ["recipes", "none"])], 1, [], dask.scheduler_address)
    assert not list(tmp_path.glob(".stop*"))


def test_a_signal_stops_the_jobs_on_workers(dask: distributed.LocalCluster, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def stop() -> None:
        while not (run / "metrics.csv").exists():
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    line = ["train", run, *training(data, steps=10**6), "--run.log-every", 1]
    with pytest.raises(SystemExit) as stopped:
        run_jobs([Job(run, [str(word) for word in line])], 1, [], dask.scheduler_address)
    stopper.join()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert (run / "checkpoint.pt").exists()
    assert "stopped by SIGTERM after step" in (tmp_path / "run.log").read_text()


def test_tasks_take_a_gpu_where_workers_have_some() -> None:
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options, resources={cluster.GPU: 1}) as started:
        for gpus, most in ((True, 1), (False, 2)):
            with cluster.executor_on(started.scheduler_address, gpus=gpus) as executor:
                lock, running, seen = threading.Lock(), [0], []

                def work(lock=lock, running=running, seen=seen) -> None:  # type: ignore[no-untyped-def]
                    with lock:
                        running[0] += 1
                        seen.append(running[0])
                    time.sleep(0.3)
                    with lock:
                        running[0] -= 1

                TASKS["work"] = work
                for task in [executor.submit(_call) for _ in range(2)]:
                    task.result()
                assert max(seen) == most


TASKS: dict[str, Callable[[], None]] = {}
"""What workers in this process call, since they would get a copy of a function with locks."""


def _call() -> None:
    TASKS["work"]()


def test_no_scheduler_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    make_pictures(tmp_path, 1)
    for address in ("tcp://127.0.0.1:9", "nowhere", "http:/x"):
        line = ["propose", f"{tmp_path / 'data'}:train", "--cluster", address]
        assert f"--cluster {address}: no Dask scheduler answers there" in sentence(ohem(*line))
