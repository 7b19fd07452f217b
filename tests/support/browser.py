"""A browser for tests: Debian's Chromium, driven by playwright, and a page that notes what it asks for and complains about."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PROGRAM = shutil.which("chromium")


def missing() -> str | None:
    """Return why there is no browser; None where there is one."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed; `make setup` installs it"
    return None if PROGRAM else "Chromium is not installed (apt-get install --no-install-recommends chromium)"


@contextmanager
def browser() -> Iterator[Any]:
    """Yield Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Tests may run as root, where Chromium has no sandbox; the pages are our own.
        opened = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


class Tab:
    """A page in a context of its own, with all that it asked for and complained about.

    Args:
        browser: that opens it.
        address: where it goes.
        context: settings of playwright's context, a viewport for instance.
    """

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_context(**context).new_page()
        self.page.set_default_timeout(60_000)  # a machine with many neighbours is slow, not broken
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def close(self) -> None:
        """Close the page and its context."""
        self.page.context.close()
