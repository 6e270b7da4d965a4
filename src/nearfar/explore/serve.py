"""The verb: make the map of a run if need be, and serve the page until Ctrl-C.

Knows sockets and the life of the server; what it answers is ``app``'s.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nearfar.errors import InputError
from nearfar.explore.guard import is_loopback
from nearfar.explore.make import make_map
from nearfar.explore.store import MAP, SPLITS, Map
from nearfar.explore.subject import open_subject
from nearfar.progress import Silent, Watcher


def explore(
    run: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8050,
    atlas: str | Path | None = None,
    map_only: bool = False,
    device: str = "auto",
    skip_bad: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Make the map of a run where its folder has none that holds, and serve a page to look at it until Ctrl-C.

    Args:
        run: the run folder.
        host: the address to bind to. Whoever reaches it can look at the run and its images: there is no password.
        port: 0 takes a free one.
        atlas: a folder for a Parquet file that embedding-atlas opens, which is then started beside, where it is installed.
        map_only: make the map and end.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read instead of refusing.
        watcher: is told how far it is, and the address.

    Returns:
        ``run``, ``map`` (its file), ``method``, ``points``, ``splits`` (how many of each), ``wrong`` (how many predictions are)
        and, with ``atlas``, the file for it.

    Raises:
        InputError: the run cannot be used, its map is damaged, the port is in use, or plotly, FastAPI or uvicorn is missing.
    """
    watcher = watcher or Silent()
    listener = None if map_only else listen(host, port)  # before the work: a port in use is said at once
    try:
        subject = open_subject(run, device=device, skip_bad=skip_bad)
        for line in subject.notes:
            watcher.note(line)
        made = make_map(subject, watcher=watcher)
        result = _summary(Path(run), made)
        beside: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if atlas is not None:
            from nearfar.explore import atlas as other

            result["atlas"] = str(other.write(subject, made, Path(atlas)))
            if not map_only:
                beside = other.running(Path(result["atlas"]), watcher.note)
        if listener is not None:
            from nearfar.explore.app import make_app

            bound = listener.getsockname()[1]
            app = make_app(subject, made, host=host, port=bound)
            with beside:
                _run(app, listener, host, bound, watcher)
    finally:
        if listener is not None:
            listener.close()
    return result


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that nobody else takes the port meanwhile.

    Raises:
        InputError: the port is in use, the address is not of this machine, or what serves is not installed.
    """
    for name in ("fastapi", "uvicorn", "plotly"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{name} is not installed, which explore needs; run: pip install 'nearfar[explore]'")
    if not 0 <= port <= 65535:
        raise InputError(f"port is {port}, expected 1 to 65535, or 0 for a free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise InputError(f"cannot find the address {host!r}; use 127.0.0.1 for this machine alone") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
    except OSError as error:
        listener.close()
        reason = {
            errno.EADDRINUSE: f"port {port} is in use; choose another with --port, or 0 for a free one",
            errno.EACCES: f"port {port} is not for everyone; choose one from 1024 on",
            errno.EADDRNOTAVAIL: f"this machine has no address {host}; use 127.0.0.1, or 0.0.0.0 for all that it has",
        }
        raise InputError(f"cannot serve: {reason.get(error.errno or 0, error.strerror)}") from None
    return listener


def _run(app: Any, listener: socket.socket, host: str, port: int, watcher: Watcher) -> None:
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off")
    server = uvicorn.Server(config)
    if not is_loopback(host):
        watcher.note(f"warning: everyone who reaches {host} can look at this run and its images")
    shown = f"[{host}]" if ":" in host else host
    watcher.note(f"look at http://{shown}:{port}/   (Ctrl-C ends it)")
    with _interrupted_quietly():
        server.run(sockets=[listener])


@contextlib.contextmanager
def _interrupted_quietly() -> Iterator[None]:
    """Ctrl-C is how a server ends, and no fault."""
    try:
        yield
    except KeyboardInterrupt:
        print(file=sys.stderr)


def _summary(run: Path, made: Map) -> dict[str, Any]:
    counts = {name: int((made.splits == number).sum()) for number, name in enumerate(SPLITS)}
    return {
        "run": str(run),
        "map": str(run / MAP),
        "method": made.method,
        "points": len(made),
        "splits": {name: count for name, count in counts.items() if count},
        "wrong": int((made.labels != made.predictions).sum()),
    }


def shown(result: Mapping[str, Any]) -> str:
    """What `explore` returned, as text for people."""
    splits = ", ".join(f"{count:,} {name}" for name, count in result["splits"].items())
    lines = [
        f"{result['method']} of {result['points']:,} images ({splits}): {result['map']}",
        f"{result['wrong']:,} of them are of another class than their neighbours say",
    ]
    return "\n".join([*lines, *([f"for embedding-atlas: {result['atlas']}"] if "atlas" in result else [])])
