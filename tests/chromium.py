"""Debian's Chromium without a screen, driven by Playwright.

    def look(page: Page) -> None:
        expect(page.locator("h1")).to_have_text("Ringfence")

    with Chromium() as chromium:
        chromium.show(url, look)

Playwright's blocking interface runs an asyncio loop of its own, so it lives in a
thread of its own: the tests of this project run trio in the main one.  ``show``
fails when the page has written an error on its console, raised one that nobody
caught, or asked any other host for anything, whatever ``look`` says.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request, expect, sync_playwright

T = TypeVar("T")

DEADLINE_S: Final = 120.0
SCREENSHOTS: Final = os.environ.get("RINGFENCE_SCREENSHOTS")  # set: the pictures of the documentation are taken anew
IMAGES: Final = Path(__file__).resolve().parents[1] / "docs" / "images"
_EXECUTABLE: Final = "/usr/bin/chromium"
_SIZE: Final = {"width": 1440, "height": 860}


class Chromium:
    """One browser; each ``show`` is a profile of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chromium")
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None

    def __enter__(self) -> "Chromium":
        self._thread.submit(self._start).result()
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.submit(self._stop).result()
        self._thread.shutdown()

    def show(self, url: str, look: Callable[[Page], T], *, errors_wanted: bool = False, **options: Any) -> T:
        """Open ``url`` and let ``look`` do with the page what it likes; ``options`` are those of a browser context."""
        return self._thread.submit(self._show, url, look, errors_wanted, options).result()

    def _start(self) -> None:
        expect.set_options(timeout=DEADLINE_S * 1000)
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(
            executable_path=_EXECUTABLE, args=["--no-sandbox"], timeout=DEADLINE_S * 1000
        )

    def _stop(self) -> None:
        if self._browser is not None:
            self._browser.close()
        if self._playwright is not None:
            self._playwright.stop()

    def _show(self, url: str, look: Callable[[Page], T], errors_wanted: bool, options: dict[str, Any]) -> T:
        assert self._browser is not None
        wrong: list[str] = []
        host = urlsplit(url).netloc

        def heard(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                wrong.append(f"console: {message.text}")

        def asked(request: Request) -> None:
            if urlsplit(request.url).netloc != host:
                wrong.append(f"asked another host: {request.url}")

        context = self._browser.new_context(**{"viewport": _SIZE, "reduced_motion": "reduce", **options})
        try:
            context.set_default_timeout(DEADLINE_S * 1000)
            page = context.new_page()
            page.on("console", heard)
            page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
            page.on("request", asked)
            page.goto(url)
            result = look(page)
        finally:
            context.close()
        assert errors_wanted or wrong == []
        return result
