"""A server of a run, from the command to the last answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from nearfar.errors import InputError
from nearfar.serve.settings import Settings
from nearfar.web.sockets import listen, need, run_app

_PACKAGES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "fastapi_offline": "fastapi-offline",
    "prometheus_client": "prometheus-client",
}


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
            where there is one and onnxruntime is installed, else PyTorch.
        ready: is told the address, once it answers.

    Raises:
        InputError: the run cannot be used, or the address cannot be listened on.
    """
    settings = settings or Settings()
    need(_PACKAGES, "serve")
    with listen(settings.host, settings.port) as listener:
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
