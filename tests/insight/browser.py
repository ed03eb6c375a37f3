"""Opens pages in headless Chromium."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
SCROLL_WIDTH = "document.title = document.documentElement.scrollWidth"


def dump_dom(page: Path, width: int = 1000, script: str = SCROLL_WIDTH) -> str:
    """Returns the document of a page after its scripts and `script`, in a window of `width` pixels.

    By default, the title of the document becomes its scroll width: it is `width` where nothing leaves the window.
    """
    assert CHROMIUM is not None
    added = f"<script>addEventListener('load', () => {{ {script} }})</script>"
    copy = page.with_name(f"{page.stem}-{width}.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{added}</body>"), encoding="utf-8")
    line = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},900"]
    alone = ["--disable-background-networking", "--no-first-run", "--disable-dev-shm-usage"]
    options = [*alone, f"--user-data-dir={page.parent / 'browser'}", "--dump-dom", copy.as_uri()]
    done = subprocess.run([*line, *options], capture_output=True, check=True, timeout=120, env={**os.environ})
    return done.stdout.decode()
