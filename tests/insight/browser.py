"""Opens pages in headless Chromium."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def dump_dom(page: Path, width: int = 1000) -> str:
    """Returns the document of a page after its scripts, in a window of `width` pixels.

    The title of the document is its scroll width: it is `width` where nothing leaves the window.
    """
    assert CHROMIUM is not None
    script = "<script>addEventListener('load', () => document.title = document.documentElement.scrollWidth)</script>"
    copy = page.with_name(f"{page.stem}-{width}.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{script}</body>"), encoding="utf-8")
    line = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},900"]
    options = ["--disable-dev-shm-usage", f"--user-data-dir={page.parent / 'browser'}", "--dump-dom", copy.as_uri()]
    done = subprocess.run([*line, *options], capture_output=True, check=True, timeout=120, env={**os.environ})
    return done.stdout.decode()
