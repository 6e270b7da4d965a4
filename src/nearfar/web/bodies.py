"""The body of a request, of which no more is taken than allowed, and for no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from fastapi import Request

from nearfar.web.problems import Problem


async def chunks(request: Request, most: int, seconds: float) -> AsyncGenerator[bytes, None]:
    """The body piece by piece.

    Args:
        request: whose body it is.
        most: bytes of it.
        seconds: in which it must have come.

    Raises:
        Problem: it is larger, or slower.
    """
    too_large = Problem(
        413,
        f"the body has more than {most:,} bytes, the most that is taken; send fewer or smaller images",
        {"Connection": "close"},
    )
    said = request.headers.get("content-length", "")
    if said.isascii() and said.isdigit() and int(said) > most:
        raise too_large
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                if part:
                    yield part
    except TimeoutError:
        raise Problem(408, f"the body did not come within {seconds:g} s; send it again") from None


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The whole body; arguments and errors as for `chunks`."""
    parts = [part async for part in chunks(request, most, seconds)]
    return parts[0] if len(parts) == 1 else b"".join(parts)
