"""Two agents of torchrun on the loopback interface stand for two machines that share a folder."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ohem.cli import main
from tests.helpers.command_line import FORKS, ohem
from tests.helpers.toy_data import make_toy, training
from tests.training.test_processes import assert_same


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("nodes") / "toy")


def options(data: Path, steps: int) -> list[object]:
    every = ["--run.log-every", 1, "--run.checkpoint-every", 2, "--sampler.name", "release", "--sampler.batch-size", 6]
    return [*training(data, steps=steps, test=None), "--run.precision", "64-true", *every]


def _agent(node: int, port: int, arguments: Sequence[str], folder: Path) -> None:
    """Runs an agent with one worker."""
    for number in (1, 2):
        os.dup2(os.open(folder / f"agent-{node}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    config = LaunchConfig(
        2, 2, 1, run_id="test", rdzv_backend="c10d", rdzv_endpoint=f"localhost:{port}", max_restarts=2
    )
    config.start_method, config.monitor_interval = "forkserver", 0.1
    elastic_launch(config, _worker)(list(arguments))


def _worker(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    main(arguments)


def start(arguments: Sequence[object], folder: Path) -> list[FORKS.Process]:  # type: ignore[name-defined]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    texts = [str(part) for part in arguments]
    # Not daemons: they have children.
    agents = [FORKS.Process(target=_agent, args=(node, port, texts, folder)) for node in range(2)]
    for agent in agents:
        agent.start()
    return agents


def end(agents: Sequence[FORKS.Process], folder: Path) -> None:  # type: ignore[name-defined]
    for agent in agents:
        agent.join(90)
        agent.kill()
    assert [agent.exitcode for agent in agents] == [0, 0], "\n".join(p.read_text() for p in folder.glob("agent-*.txt"))


def test_two_nodes_train_as_one_process(data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert ohem("train", one, *options(data, 4)).code == 0
    end(start(["train", two, *options(data, 4)], tmp_path), tmp_path)
    assert_same(two, one)
