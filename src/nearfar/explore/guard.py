"""What the server lets in: the right host, its own pages, bodies of a bounded size; and how it says no.

Knows HTTP and nothing of maps. Errors are "problem details" (RFC 9457).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nearfar.errors import InputError

BODY_BYTES = 16 << 20
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


class Problem(HTTPException):
    """A request that is refused, with what to mend."""


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The response that says so."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    content = json.dumps(body, ensure_ascii=False)
    return Response(content, status, dict(headers or {}), media_type="application/problem+json")


def install(app: FastAPI, *, host: str, port: int) -> None:
    """Have an application answer errors as problems, and only whom it should."""

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first: Any = error.errors()[0]
        return problem(422, f"{first['loc'][-1]}: {first['msg']}, got {first.get('input')!r}")

    @app.exception_handler(InputError)
    async def wrong(_: Request, error: InputError) -> Response:
        return problem(422, " ".join(str(error).split()))

    @app.exception_handler(Exception)
    async def defect(_: Request, __: Exception) -> Response:
        return problem(500, "a defect of nearfar; the terminal in which it runs says more")

    app.add_middleware(Guard, host=host, port=port)


async def read_body(request: Request, most: int = BODY_BYTES) -> bytes:
    """The body of a request, of which no more is taken than allowed.

    Raises:
        Problem: it is larger, or empty.
    """
    too_large = Problem(413, f"the body has more than {most:,} bytes, the most that is taken; send a smaller image")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise too_large
        chunks.append(chunk)
    if not size:
        raise Problem(422, "the body is empty; send the bytes of an image file")
    return b"".join(chunks)


class Guard:
    """Refuses requests of pages from elsewhere, and puts the security headers on every answer.

    Bound to this machine alone, it answers only to names of this machine: a page from outside, whose own name was made to point
    here ("DNS rebinding"), brings that name in ``Host``. Requests that may change or compute something must come from our page.
    """

    def __init__(self, app: ASGIApp, *, host: str, port: int) -> None:
        self.app, self.names = app, allowed_hosts(host, port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(key.encode(), value.encode()) for key, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        answer = self._refusal(scope["method"], headers, scope.get("scheme", "http")) or self.app
        await answer(scope, receive, sealed)

    def _refusal(self, method: str, headers: Mapping[str, str], scheme: str) -> ASGIApp | None:
        host = headers.get("host", "").lower()
        if self.names is not None and host not in self.names:
            return problem(403, f"this server answers to {min(self.names)} only, not to {host!r}")
        if method in ("GET", "HEAD"):
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if (origin is not None and origin.lower() != f"{scheme}://{host}") or site not in (None, "same-origin", "none"):
            return problem(403, "this request comes from another site; only the server's own page may make it")
        return None


def allowed_hosts(host: str, port: int) -> frozenset[str] | None:
    """The ``Host`` headers that are answered; None, any, where the server is bound to more than this machine."""
    if not is_loopback(host):
        return None
    own = f"[{host}]" if ":" in host else host
    return frozenset(f"{name}{end}" for name in {own.lower(), "localhost", "127.0.0.1", "[::1]"} for end in _ends(port))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _ends(port: int) -> tuple[str, ...]:
    return (f":{port}", "") if port == 80 else (f":{port}",)
