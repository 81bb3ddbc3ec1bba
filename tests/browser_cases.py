"""A real browser for tests of pages, and what axe-core finds on one."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-proxy-server",
]  # fmt: skip
NEEDED = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to drive; install one to test pages in it")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, for as long as the block."""
    with warnings.catch_warnings(), playwright.sync_playwright() as driver:
        warnings.simplefilter("ignore")
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def faults(page: Any) -> list[str]:
    """Serious and critical findings of axe-core, whose rules are a file of a package of assets.txt."""
    package = importlib.util.find_spec("axe_playwright_python")
    assert package is not None, "the rules of axe-core are missing: pip install --no-deps -r assets.txt"
    assert package.origin is not None
    page.evaluate((Path(package.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in serious]
