"""From an address to an application that answers there: sockets, and the life of a server process."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import signal
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nearfar.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

_SECONDS_TO_END = 10  # for requests that are worked on when the server is told to end


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def need(packages: Mapping[str, str], extra: str) -> None:
    """Refuse where a package is not installed.

    Args:
        packages: by the name of the module.
        extra: of nearfar, that installs them.

    Raises:
        InputError: naming the package and the extra.
    """
    for module, package in packages.items():
        if importlib.util.find_spec(module) is None:
            raise InputError(f'this needs {package}, which is not installed: pip install "nearfar[{extra}]"')


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that nobody else takes the port meanwhile; port 0 takes any that is free.

    Raises:
        InputError: the port is in use or not allowed, or there is no such address here.
    """
    if not 0 <= port <= 65_535:
        raise InputError(f"--port is {port}, expected 1 to 65535, or 0 for any that is free")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        raise InputError(f"--host {host!r} is no address; 127.0.0.1 is this machine for itself alone") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        reasons = {
            errno.EADDRINUSE: "is in use; choose another with --port, or 0 for any that is free",
            errno.EACCES: "is not allowed; choose one from 1024 on",
            errno.EADDRNOTAVAIL: f"cannot be had at {host}, which is no address of this machine",
        }
        if error.errno not in reasons:
            raise
        raise InputError(f"port {port} {reasons[error.errno]}") from None
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL under which a browser on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def run_app(app: FastAPI, listener: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve ``app`` on ``listener`` until the process is told to end (SIGINT, SIGTERM); ``ready`` is told the address."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.should_exit:
                ready(address_of(listener))

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=_SECONDS_TO_END,
    )
    server = Server(config)
    # uvicorn raises the signal again when it has ended; a server that was told to end has done as it was told.
    earlier = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for one, handler in earlier.items():
            signal.signal(one, handler)
