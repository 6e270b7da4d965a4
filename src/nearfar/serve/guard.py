"""What every request passes on its way in and out: who may ask, how many at a time, for how long; counting, and headers.

Pure ASGI.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nearfar.serve.metrics import Metrics
from nearfar.serve.settings import Settings
from nearfar.web.admission import admit
from nearfar.web.problems import Problem, response

_LOG = logging.getLogger("nearfar")
_ALWAYS = ("/healthz", "/readyz", "/metrics")  # answered however busy the server is
_COMMON = (
    "default-src 'none'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; "
)
_POLICY = f"{_COMMON}script-src 'self'; style-src 'self'"
# Swagger's page starts by a script inside it, which FastAPI writes; it shows nothing that others have sent.
_POLICIES = {"/docs": f"{_COMMON}script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"}
_HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Wraps an application.

    Args:
        app: what answers.
        settings: limits, key and address.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.busy = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def out(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", _POLICIES.get(scope["path"], _POLICY))
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        always = scope["path"] in _ALWAYS
        if not always and self.busy >= self.settings.concurrency:
            self.metrics.refused.inc()
            await response(503, "too many requests at a time; try again in a moment", {"Retry-After": "1"})(scope, receive, out)
            self._count(scope, status, started)
            return
        self.busy += not always
        self.metrics.in_flight.set(self.busy)
        try:
            await self._answer(scope, receive, out)
        finally:
            self.busy -= not always
            self.metrics.in_flight.set(self.busy)
            self._count(scope, status, started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def out(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            admit(scope, self.settings.host)
            # A body has its own time, which is as long; what follows it needs some too.
            async with asyncio.timeout(2 * self.settings.timeout):
                await self.app(scope, receive, out)
        except Problem as error:
            await response(error.status, error.detail, error.headers)(scope, receive, out)
        except TimeoutError:
            if not begun:
                told = f"no answer within {2 * self.settings.timeout:g} s; send fewer images, or try again"
                await response(503, told, {"Retry-After": "1"})(scope, receive, out)
        except Exception:  # whatever it was: the asker gets a problem, the log what happened, and the server goes on
            _LOG.exception("a defect: %s %s", scope["method"], scope["path"])
            if not begun:
                await response(500, "a defect of nearfar; the server's log has the details")(scope, receive, out)

    def _count(self, scope: Scope, status: int, started: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(time.perf_counter() - started)


def check_key(headers: Headers, settings: Settings) -> None:
    """Refuse who may not write.

    Raises:
        Problem: there is no key, or another one; or the network could write without one.
    """
    if not settings.may_write:
        raise Problem(403, "others on the network can reach this server, so that writing needs an API key; start it with one")
    if settings.api_key is None:
        return
    kind, _, given = headers.get("authorization", "").partition(" ")
    # Compared as bytes in constant time, so that a wrong key tells nothing by how soon it is refused.
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), settings.api_key.encode()):
        raise Problem(401, "writing needs the API key: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
