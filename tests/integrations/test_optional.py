"""Models of optional packages: what registers them is imported with the first such model, and no sooner."""

import sys
from pathlib import Path

import pytest
from torch import nn

from ohem import AllSampler, with_ohem
from ohem.integrations.registry import OPTIONAL
from tests.helpers.command_line import FORKS

ADAPTER = """
from ohem import with_ohem
from detectors import Detector


@with_ohem.register(Detector)
def install(model, sampler):
    model.sampler = sampler
"""


@pytest.fixture
def detectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes an optional package `detectors` and the module `adapter` that registers its type of model."""
    (tmp_path / "detectors.py").write_text("from torch import nn\n\n\nclass Detector(nn.Module):\n    pass\n")
    (tmp_path / "adapter.py").write_text(ADAPTER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(OPTIONAL, "detectors", "adapter")
    monkeypatch.setattr(with_ohem, "_known", dict(with_ohem._known))
    for name in ("detectors", "adapter"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("detectors")
def test_adapter_is_imported_with_the_first_model() -> None:
    from detectors import Detector  # type: ignore[import-not-found]

    class Derived(Detector):  # type: ignore[misc]
        pass

    with pytest.raises(TypeError, match="not Linear"):
        with_ohem(nn.Linear(1, 1), AllSampler())
    assert "adapter" not in sys.modules
    model = with_ohem(Derived(), AllSampler())
    assert model.sampler is model.mining


@pytest.mark.usefixtures("detectors")
def test_wrapped_model_of_an_optional_package_is_refused() -> None:
    from detectors import Detector

    with pytest.raises(TypeError, match="takes a Detector before it is wrapped, and not DataParallel"):
        with_ohem(nn.DataParallel(Detector()))


def _exit_with_slow_imports() -> None:
    assert {"ohem.integrations", "ohem.training.run", "lightning_fabric"} <= sys.modules.keys()
    sys.exit(", ".join(sys.modules.keys() & {*OPTIONAL, "torchmetrics", "matplotlib"}) or 0)


def test_no_optional_package_is_imported_with_ohem() -> None:
    """Lightning Fabric imports torchmetrics, and with it two of these, unless we prevent it."""
    process = FORKS.Process(target=_exit_with_slow_imports)
    process.start()
    process.join()
    assert process.exitcode == 0
