"""Pages in Chromium, at the widths of a laptop and of a phone."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run")  # fmt: skip
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
TOO_WIDE = """() => [...document.querySelectorAll("main *, header *, footer *")]
  .filter(one => one.checkVisibility() && !one.closest(".skip") && !one.closest("svg *")
    && !(innerWidth < 500 && one.closest(".cards thead")) && one.getBoundingClientRect().right > innerWidth + 1)
  .map(one => `${one.tagName}: ${one.textContent.slice(0, 40)}`)"""

in_browser = pytest.mark.browser
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@contextmanager
def opened(path: Path, size: tuple[int, int], scheme: str = "light") -> Iterator[Any]:
    """A page of a file, as Playwright has it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page.goto(path.as_uri())
        yield page
        browser.close()


def check_fits(page: Any) -> None:
    """No element is wider than the screen, also where everything is unfolded, and axe-core finds nothing."""
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in Axe().run(page).response["violations"]] == []
