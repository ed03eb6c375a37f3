"""Workers of torchrun are killed. Two agents on the loopback interface stand for two machines that share a folder."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ohem.cli import main
from ohem.training import checkpoint
from ohem.training.distributed import _new_part
from ohem.training.loop import Trainer
from tests.helpers.command_line import FORKS, ohem
from tests.helpers.toy_data import make_toy, training
from tests.training.test_processes import assert_same


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("nodes") / "toy")


def options(data: Path, steps: int) -> list[object]:
    every = ["--run.log-every", 1, "--run.checkpoint-every", 2, "--sampler.name", "release", "--sampler.batch-size", 6]
    return [*training(data, steps=steps, test=None), "--run.precision", "64-true", *every]


def _agent(node: int, nodes: int, port: int, restarts: int, line: Sequence[str], folder: Path, step: int) -> None:
    """Runs one of the agents, which starts its workers again at most `restarts` times."""
    for number in (1, 2):
        os.dup2(os.open(folder / f"agent-{node}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    place = {"rdzv_backend": "c10d", "rdzv_endpoint": f"localhost:{port}", "run_id": "test"}
    config = LaunchConfig(nodes, nodes, 2 // nodes, max_restarts=restarts, **place)
    # A fork of this process, since a fork server of its own would have to import everything.
    config.start_method, config.monitor_interval = "fork", 0.1
    elastic_launch(config, _worker)(list(line), folder, step)


def _worker(line: list[str], folder: Path, step: int) -> None:
    """Runs `ohem` as one of two processes; the first time, the second one is killed after a step."""
    torch.set_num_threads(1)
    started = folder / f"worker-{os.environ['RANK']}.txt"
    if os.environ["RANK"] == "1" and not started.exists():
        kill_after(step)
    with started.open("a") as file:
        file.write(f"{os.getpid()}\n")
    main(line)


def kill_after(step: int) -> None:
    """Makes the next training in this process kill it after a step, while the other process computes the next one."""
    train_step = Trainer.train_step

    def killed(trainer: Trainer, *arguments: Any) -> dict[str, float]:
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(trainer, *arguments)

    Trainer.train_step = killed  # type: ignore[assignment, method-assign]


def run_agents(
    nodes: int, line: Sequence[object], folder: Path, restarts: int, step: int
) -> tuple[list[int | None], str, list[list[int]]]:
    """Returns the exit statuses of agents with two workers, one of which is killed after a step.

    Then what they printed, and the processes that each of the workers had.
    """
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    texts = [str(part) for part in line]
    # Not daemons: they have children.
    agents = [
        FORKS.Process(target=_agent, args=(node, nodes, port, restarts, texts, folder, step)) for node in range(nodes)
    ]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join(90)
    statuses = [agent.exitcode for agent in agents]
    for agent in agents:
        agent.kill()
    said = "\n".join(path.read_text() for path in folder.glob("agent-*.txt"))
    workers = [(folder / f"worker-{rank}.txt").read_text().split() for rank in range(2)]
    return statuses, said, [[int(number) for number in started] for started in workers]


def test_a_training_with_killed_workers_is_that_of_one_process(data: Path, tmp_path: Path) -> None:
    """Without restarts all processes end, and the same command resumes; with restarts all are started again."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert ohem("train", one, *options(data, 8)).code == 0
    line = ["train", two, *options(data, 8)]
    statuses, said, workers = run_agents(1, line, tmp_path / "without", restarts=0, step=3)
    assert statuses == [1], said
    for (worker,) in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    state = checkpoint.load(two)
    assert state is not None
    assert state["step"] == 2
    statuses, said, workers = run_agents(2, line, tmp_path / "with", restarts=1, step=5)
    assert statuses == [0, 0], said
    assert "another process of the training" in said
    assert [len(started) for started in workers] == [2, 2], said
    assert_same(two, one)


def test_processes_that_are_started_again_see_nothing_of_the_earlier_ones() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores = [TCPStore("127.0.0.1", server.port, is_master=False) for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        for attempt in ("first", "second"):
            first = pool.submit(_new_part, stores[0], 0, 3)
            time.sleep(0.03)  # it reads what the earlier ones wrote
            others = [pool.submit(_new_part, stores[rank], rank, 3) for rank in (1, 2)]
            parts = [process.result() for process in (first, *others)]
            assert not any(part.check(["address"]) for part in parts)
            parts[0].set("address", attempt)
            assert [part.get("address").decode() for part in parts] == [attempt] * 3
