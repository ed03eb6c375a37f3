"""Settings of every test: one thread, since two processes of many threads each crawl (see CONTRIBUTING.md).

The process that distributes the tests to others imports this too, so that slow imports are in the fixtures.
"""

import functools
import gc
import importlib.metadata
from collections.abc import Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# transformers requires torch 2.5.
if tuple(int(part) for part in version("torch").split(".")[:2]) < (2, 5):
    collect_ignore = ["integrations/test_transformers.py", "losses/test_trainer.py"]
# Fabric reads those of all installed packages for each command, which takes a tenth of a short training.
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)  # type: ignore[assignment]
settings.register_profile("ohem", deadline=None, max_examples=50)
settings.load_profile("ohem")


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Returns one process more than there are cores, since tests wait for the processes that they start."""
    return (yield) + 1


def pytest_collection() -> None:
    """Stops the garbage collector while all is imported."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Spares the garbage collector what was imported, which it would walk through again and again."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    """Lets modules be freed, as some want to be."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Trains as the processes that tests start: another number of threads sums in another order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a tiny data set in VOC layout with its proposals. Tests only read it, or change a copy."""
    from tests.helpers.command_line import ohem
    from tests.helpers.toy_data import make_toy

    folder = make_toy(tmp_path_factory.mktemp("data") / "toy")
    assert ohem("propose", f"{folder}:train", f"{folder}:test", "--jobs", 1).code == 0
    return folder


@pytest.fixture
def all_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the network of the demo all of its channels."""
    from tests.helpers.command_line import CHANNELS, TINY

    monkeypatch.setattr(TINY, "CHANNELS", CHANNELS)


@pytest.fixture(scope="session", autouse=True)
def _proposals_once() -> Iterator[None]:
    """Searches the same pixels once: many tests make the same images, and the boxes depend on nothing else."""
    from ohem.proposals.selective_search import SelectiveSearch

    search, made = SelectiveSearch.__call__, dict[object, Any]()

    def remembered(method: SelectiveSearch, image: Any) -> Any:
        key = (method, image.shape, image.tobytes())
        if key not in made:
            made[key] = search(method, image)
        return made[key].copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SelectiveSearch, "__call__", remembered)
        yield
