"""The system's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str | None:
    """The browser, or None."""
    named = os.environ.get("CEVAL_SUITE_CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def launched() -> Iterator[Any]:
    """A running browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        # as root there is no sandbox; pages are this project's own, from disk
        browser = tool.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        yield browser
        browser.close()


def ready(tab: Any, hash: str) -> None:
    """Wait until the view of an address stands."""
    tab.wait_for_function("(hash) => document.documentElement.dataset.ready === hash", arg=hash)


@contextmanager
def opened(page: Path, hash: str = "#/") -> Iterator[Any]:
    """A tab that shows an address of a site."""
    with launched() as browser:
        tab = browser.new_page()
        tab.goto(page.resolve().as_uri() + hash)
        ready(tab, hash)
        yield tab
