"""What the server lets in: the right host, its own pages; and how it says no.

Knows HTTP and nothing of maps. Errors are "problem details" (RFC 9457).
"""

from __future__ import annotations

import logging

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nearfar.web import problems
from nearfar.web.admission import admit
from nearfar.web.problems import Problem

_LOG = logging.getLogger("nearfar")
BODY_BYTES, BODY_SECONDS = 16 << 20, 30.0
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'unsafe-eval'",  # plotly's WebGL compiles its draw loops; its Python package has no strict bundle
        "style-src 'self' 'unsafe-inline'",  # plotly writes the styles of what it draws into the page
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def install(app: FastAPI, *, host: str) -> None:
    """Have an application answer errors as problems, and only whom it should."""
    problems.install(app)
    app.add_middleware(Guard, host=host)


class Guard:
    """Refuses requests of pages from elsewhere, answers a defect with a problem, and adds the security headers."""

    def __init__(self, app: ASGIApp, *, host: str) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def sealed(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = [(key.encode(), value.encode()) for key, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            admit(scope, self.host)
            await self.app(scope, receive, sealed)
        except Problem as error:
            await problems.response(error.status, error.detail, error.headers)(scope, receive, sealed)
        except Exception:  # whatever it was: the asker gets a problem, the log what happened, and the server goes on
            _LOG.exception("a defect: %s %s", scope["method"], scope["path"])
            if not begun:
                told = "a defect of nearfar; the terminal in which it runs says more"
                await problems.response(500, told)(scope, receive, sealed)
