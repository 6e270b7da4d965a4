"""One browser for all tests of the page, and a server for those that leave its run as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serve.page.visits import Open, Server, Visit, serving, with_pictures

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens the page of a server; whatever the test does, there is no error in the console and no request elsewhere."""
    visits: list[Visit] = []

    def opened(server: Server, prepare: Callable[[Page], None] = lambda page: None, **options: Any) -> Visit:
        page = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options}).new_page()
        visit = Visit(page, server, before=len(server.sent))
        visits.append(visit)
        page.on("request", lambda request: visit.requests.append(request))
        page.on("console", lambda message: visit.errors.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        page.on("dialog", lambda dialog: (visit.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        prepare(page)
        page.goto(server.address)
        expect(page.locator("#hint")).not_to_be_empty()
        return visit

    yield opened
    for visit in visits:
        own = {urlsplit(visit.server.address).netloc, ""}  # "": pictures that the page made itself
        assert {urlsplit(one.url).netloc for one in visit.requests} <= own
        assert visit.errors == []
        visit.page.context.close()


@pytest.fixture(scope="module")
def server(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For tests that leave the run as it was."""
    copy = shutil.copytree(trained_run, tmp_path_factory.mktemp("page") / "run")
    with serving(Path(copy)) as server:
        yield with_pictures(server)
