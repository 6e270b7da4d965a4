"""A server of a run, from the command to the last answer."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nearfar.errors import InputError
from nearfar.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

_SECONDS_TO_END = 10  # for requests that are worked on when the server is told to end


def serve(
    run: str | Path,
    settings: Settings | None = None,
    *,
    device: str = "auto",
    onnx: str | Path | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve a run until the process is told to end (SIGINT, SIGTERM).

    Args:
        run: the run folder.
        settings: where to listen and what to take.
        device: "auto", "cpu" or "cuda"; for PyTorch alone.
        onnx: an exported model of this run, which is computed with in place of PyTorch; None: ``model.onnx`` in the run folder
            where there is one of this run's model, else PyTorch.
        ready: is told the address, once it answers.

    Raises:
        InputError: the run cannot be used, or the address cannot be listened on.
    """
    settings = settings or Settings()
    need_extra()
    with listen(settings) as listener:
        # What takes long comes after the port is known to be free.
        from nearfar.serve.app import create_app
        from nearfar.serve.service import Service

        exported = exported_model(Path(run), onnx)
        use_threads(settings.threads, torch_too=exported is None)
        app = create_app(Service.open(Path(run), settings, device=device, onnx=exported))
        run_app(app, listener, ready)


def exported_model(run: Path, onnx: str | Path | None) -> Path | None:
    """The exported model to compute with: the one that was named, or the run's own where it can be used."""
    if onnx is not None:
        return Path(onnx)
    own = run / "model.onnx"
    if not own.is_file():
        return None
    from importlib.util import find_spec

    return own if find_spec("onnxruntime") is not None else None


def use_threads(threads: int, *, torch_too: bool) -> None:
    """Compute with so many threads: the event loop needs a core too, and small batches gain nothing from more."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
    if torch_too:
        import torch

        torch.set_num_threads(threads)


def need_extra() -> None:
    """Refuse where what serves is not installed.

    Raises:
        InputError: naming the extra.
    """
    from importlib.util import find_spec

    for name, package in (
        ("fastapi", "fastapi"),
        ("uvicorn", "uvicorn"),
        ("python_multipart", "python-multipart"),
        ("fastapi_offline", "fastapi-offline"),
        ("prometheus_client", "prometheus-client"),
    ):
        if find_spec(name) is None:
            raise InputError(f'to serve needs {package}, which is not installed: pip install "nearfar[serve]"')


def listen(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        InputError: the port is in use or not allowed, or there is no such address here.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise InputError(
            f"--host {settings.host!r} is no address of this machine; 127.0.0.1 is for this machine alone"
        ) from None
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
            errno.EADDRNOTAVAIL: f"cannot be had at {settings.host}, which is no address of this machine",
        }
        if error.errno not in reasons:
            raise
        raise InputError(f"port {settings.port} {reasons[error.errno]}") from None
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL under which a browser on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def run_app(app: FastAPI, listener: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve ``app`` on ``listener`` until the process is told to end."""
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
        lifespan="on",
        timeout_graceful_shutdown=_SECONDS_TO_END,
        h11_max_incomplete_event_size=1 << 16,
    )
    server = Server(config)
    # uvicorn raises the signal again when it has ended; a server that was told to end has done as it was told.
    earlier = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for one, handler in earlier.items():
            signal.signal(one, handler)


def key_from(path: str | Path | None) -> str | None:
    """The API key: the first line of a file, or else ``$NEARFAR_API_KEY``; None where there is neither.

    A key on a command line could be read by everybody on the machine, so there is no such option.

    Raises:
        InputError: the file cannot be read.
    """
    if path is None:
        return os.environ.get("NEARFAR_API_KEY") or None
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api-key-file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not lines:
        raise InputError(f"--api-key-file {path} is empty; its first line is the key")
    return lines[0].strip()
