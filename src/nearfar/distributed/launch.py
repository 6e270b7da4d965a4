"""Start processes on this machine that train together, and wait for what they bring back."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nearfar.distributed.group import Group
from nearfar.distributed.joining import MEETING, joined
from nearfar.errors import ProcessLostError
from nearfar.files import read_json, write_json

_GRACE = 5.0  # seconds that processes have to end after one of them has failed


def launch(work: str, argument: Any, *, processes: int, threads: int = 1, timeout: float = 600.0) -> list[Any]:
    """Call a function in several processes at once.

    Args:
        work: "module:function"; it is called with ``argument`` and the `Group` of the processes, and returns what JSON holds.
        argument: what JSON holds.
        processes: how many.
        threads: that each computes with.
        timeout: seconds after which they are ended.

    Returns:
        What each returned, in the order of ranks.

    Raises:
        ProcessLostError: one failed, with the last line that it wrote; the others are ended.
    """
    with tempfile.TemporaryDirectory(prefix="nearfar-") as name:
        folder = Path(name)
        write_json(folder / "argument.json", {"work": work, "argument": argument})
        started = [_start(folder, rank, processes, threads) for rank in range(processes)]
        try:
            _wait(started, folder, time.monotonic() + timeout)
        finally:
            for process in started:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.wait()
        return [read_json(folder / f"result-{rank}.json")["result"] for rank in range(processes)]


def _start(folder: Path, rank: int, processes: int, threads: int) -> subprocess.Popen[bytes]:
    places = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MASTER_", "TORCHELASTIC_"))}
    environment |= {name: str(value) for name, value in places.items()}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), MEETING: str(folder / "meeting")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    code = "import sys; from nearfar.distributed.launch import run; run(sys.argv[1])"
    with (folder / f"said-{rank}.txt").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )


def _wait(started: list[subprocess.Popen[bytes]], folder: Path, deadline: float) -> None:
    failed: int | None = None
    while any(process.poll() is None for process in started):
        if time.monotonic() > deadline:
            raise ProcessLostError("the processes did not end in time" if failed is None else _said(folder, started, failed))
        if failed is None and (failed := _first_failed(started)) is not None:
            deadline = min(deadline, time.monotonic() + _GRACE)
        time.sleep(0.02)
    failed = _first_failed(started) if failed is None else failed
    if failed is not None:
        raise ProcessLostError(_said(folder, started, failed))


def _first_failed(started: list[subprocess.Popen[bytes]]) -> int | None:
    return next((rank for rank, process in enumerate(started) if process.poll() not in (None, 0)), None)


def _said(folder: Path, started: list[subprocess.Popen[bytes]], failed: int) -> str:
    """Who failed, how, and the last line of the first that said anything."""
    code = started[failed].returncode
    how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with exit code {code}"
    for rank in [failed, *range(len(started))]:
        if lines := (folder / f"said-{rank}.txt").read_text(errors="replace").strip().splitlines():
            return f"process {failed} of {len(started)} {how}: {lines[-1]}"
    return f"process {failed} of {len(started)} {how}"


def run(folder: str) -> None:
    """What a started process does."""
    task = read_json(Path(folder) / "argument.json")
    module, _, name = task["work"].partition(":")
    work: Callable[[Any, Group], Any] = getattr(importlib.import_module(module), name)
    with joined("cpu") as group:
        result = work(task["argument"], group)
    write_json(Path(folder) / f"result-{group.rank}.json", {"result": result})
