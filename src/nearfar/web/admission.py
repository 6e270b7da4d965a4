"""Who may ask a server: names under which it is asked, and pages that writing comes from.

A page of another site must neither write here (it can send forms anywhere) nor read (it can have its own name point at this
machine, "DNS rebinding", and then brings that name as Host).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from nearfar.web.problems import Problem
from nearfar.web.sockets import is_loopback


def admit(scope: Scope, bound_to: str) -> None:
    """Refuse a request that a page from elsewhere makes.

    Args:
        scope: of the request.
        bound_to: the address that the server listens on; one that only this machine reaches is asked by names of this machine.

    Raises:
        Problem: it is another name, or it may change something and comes from another site.
    """
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if is_loopback(bound_to) and not _is_here(host, bound_to):
        raise Problem(403, f"asked for under the name {host[:80]!r}; this server answers to localhost alone")
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if (origin is not None and _netloc(origin) != host.lower()) or site not in (None, "same-origin", "none"):
        raise Problem(403, f"a page of {(origin or 'another site')[:80]!r} may not write here")


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _is_here(host: str, own: str) -> bool:
    """Whether a Host header names this machine by itself."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return False
    return name == own.lower() or is_loopback(name)
