"""The folder of real data and reference values that sits beside the repository on the founders' machines.

Tests that use it skip where it is absent: nothing in the project needs it.
"""

import json
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not on this machine")


def reference(name: str) -> Any:
    """Expected values of the authors' own functions: the content of `reference/NAME.json`."""
    return json.loads((SHARED / "reference" / f"{name}.json").read_text())
