"""A real browser for tests of the page: the Chromium of this machine, driven by playwright, which downloads nothing here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a running browser; skips the test where there is none."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'spo-bench[test]'")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """One page in a window of its own, with everything it asked for and said."""

    def __init__(self, browser: Any, address: str, width: int = 1300, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.requests: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(address)

    def __enter__(self) -> Any:
        """Return playwright's page once samples are listed."""
        self.page.wait_for_selector("[data-sample]")
        return self.page

    def __exit__(self, *_: object) -> None:
        """Close the window."""
        self.context.close()
