"""Real data and reference values in a folder `shared` next to the repository.

Tests that use the folder skip where it is absent. Nothing in the project needs it.
"""

import json
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not on this machine")


def reference(name: str) -> Any:
    """Returns the expected values in `reference/NAME.json`, which the authors' own functions computed."""
    return json.loads((SHARED / "reference" / f"{name}.json").read_text())
