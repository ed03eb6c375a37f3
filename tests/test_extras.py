"""The core of `ohem` needs torch and torchvision alone; other parts name the extra that they lack."""

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

import ohem
from ohem.errors import InputError
from ohem.extras import EXTRAS, import_extra

ROOT = Path(__file__).resolve().parents[1]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_every_public_name_works_without_the_extras() -> None:
    done = _run("-m", "tests.core_alone")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(ohem.__all__)


def test_only_torch_and_torchvision_are_required() -> None:
    required = [text for text in requires("ohem") or [] if "extra ==" not in text]
    assert sorted(re.match(r"\w+", text)[0] for text in required) == ["torch", "torchvision"]  # type: ignore[index]


@pytest.mark.parametrize("missing", ["cyclopts", "yaml"])
def test_command_line_without_its_extra_names_it(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['ohem', 'recipes']"
    code += "; import ohem.__main__ as m; m.main()"
    done = _run("-c", code)
    assert done.returncode == 2
    assert done.stderr == f'ohem: the command line needs {EXTRAS[missing][0]}: pip install "ohem[train]"\n'


def test_other_missing_modules_are_not_hidden() -> None:
    code = "import sys; sys.modules['ohem.cli'] = None; import ohem.__main__ as m; m.main()"
    done = _run("-c", code)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r'a chart needs matplotlib: pip install "ohem\[experiments\]"'):
        import_extra("matplotlib", "a chart")


def test_every_extra_exists() -> None:
    extras = set(re.findall(r"""extra == ['"]([\w-]+)""", " ".join(requires("ohem") or [])))
    assert {extra for _, extra in EXTRAS.values()} <= extras
