"""A server for the page, and a visit to it in a browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from playwright.sync_api import Page, Request, expect

from nearfar.serve import Settings
from nearfar.serve.app import create_app
from nearfar.serve.service import Service
from nearfar.web.sockets import address_of, listen

NOTHING = "\N{EN DASH}"  # what stands where there is no answer
SEVEN = [[(0.3, 0.25), (0.7, 0.25), (0.45, 0.8)]]


@dataclass
class Server:
    """A server on its own thread, and what it was sent to be predicted."""

    address: str
    sent: list[bytes]


@contextmanager
def serving(run: Path, **settings: Any) -> Iterator[Server]:
    """A server that ends with this."""
    sent: list[bytes] = []
    chosen = Settings(**{"port": 0, **settings})
    with listen(chosen.host, chosen.port) as listener:
        app = create_app(Service.open(run, chosen, device="cpu"))
        config = uvicorn.Config(
            noted(app, sent), log_level="error", access_log=False, lifespan="on", ws="none", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        try:
            yield Server(address_of(listener), sent)
        finally:
            server.should_exit = True
            thread.join()


def noted(app: Any, sent: list[bytes]) -> Any:
    """An application that also keeps whole bodies sent to /v1/predict: the browser does not show those of files."""

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        parts: list[bytes] = []

        async def noting() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                parts.append(message["body"])
                if not message.get("more_body"):
                    sent.append(b"".join(parts))
            return message

        await app(scope, noting if scope.get("path") == "/v1/predict" else receive, send)

    return asgi


@dataclass
class Visit:
    """A page that is open, and what must not come of it."""

    page: Page
    server: Server
    requests: list[Request] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    before: int = 0  # of what the server was sent

    def answered(self) -> list[bytes]:
        """What the server was sent to be predicted, once the answer to the last of it is there."""
        expect(self.page.locator("#live")).not_to_be_empty()
        return self.server.sent[self.before :]

    def draw(self, strokes: list[list[tuple[float, float]]]) -> None:
        """Draw with the mouse; points in units of the pad's side."""
        box = self.page.locator("#ink").bounding_box()
        assert box is not None
        for stroke in strokes:
            places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
            self.page.mouse.move(*places[0])
            self.page.mouse.down()
            for place in places[1:]:
                self.page.mouse.move(*place, steps=5)
            self.page.mouse.up()

    def expected_refusals(self) -> None:
        """Forget what the browser itself notes of requests that the test made fail."""
        self.errors[:] = [text for text in self.errors if "Failed to load resource" not in text]


Open = Callable[..., Visit]


def with_pictures(server: Server) -> Server:
    """The same, once the server has read the training images, which it does beside."""
    deadline = time.monotonic() + 30
    while httpx.get(f"{server.address}/v1/items/0/image").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return server
