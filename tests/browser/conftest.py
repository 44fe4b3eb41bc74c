"""A headless Chromium of the system, and a dashboard of real processes for it to look at."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.stage import OPTIONS, Stage
from tests.cli.processes import LONG, daemon, processes

pytest.importorskip("aiohttp", reason="the dashboard is served by aiohttp")
sync_api = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as found:
        yield found


@pytest.fixture(scope="session")
def browser(playwright: Any) -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="pubsubd-browser-") as folder:
        context = playwright.chromium.launch_persistent_context(
            *(folder,),
            executable_path=CHROMIUM,
            headless=True,
            args=OPTIONS,
            viewport={"width": 1280, "height": 800},
        )
        context.set_default_timeout(LONG * 1000)
        yield context
        context.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A coordinator with a dashboard beside it."""
    with processes() as start:
        process, address = daemon(start, 0, "--http", "127.0.0.1:0")
        link = ""
        while not link:  # among lines of what is started
            found = re.search(r"dashboard on (http://\S+)", process.err())
            link = found[1] if found else ""
        yield Stage(start, address, link)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page in which nothing goes wrong, and which asks nobody but the dashboard."""
    browser.clear_cookies()
    page = browser.new_page()
    wrong: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    page.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    yield page
    page.close()
    assert wrong == []
    assert len(hosts) <= 1, hosts
