"""The explorer's page in a browser: a server for it, and a page that must not complain."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from playwright.sync_api import BrowserContext, Page

from nearfar.explore.app import make_app
from nearfar.explore.store import Map
from nearfar.explore.subject import Subject

ARGUMENTS = [
    *("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PATIENCE = 60_000  # milliseconds, on a machine that is busy with other things


@contextlib.contextmanager
def served(subject: Subject, made: Map) -> Iterator[str]:
    """The address under which a map is served meanwhile."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(subject, made), log_level="error", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()
    listener.close()


@contextlib.contextmanager
def loaded(context: BrowserContext, address: str) -> Iterator[Page]:
    """The page, drawn; at the end it must not have complained, nor asked another host for anything."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(f"dialog {dialog.message}"))
    page.on(
        "request", lambda request: None if request.url.startswith((address, "blob:", "data:")) else faults.append(request.url)
    )
    page.goto(address)
    page.wait_for_selector("#map[data-ready]")
    yield page
    page.close()
    assert [one for one in faults if "GPU stall" not in one and "status of 422" not in one] == []
