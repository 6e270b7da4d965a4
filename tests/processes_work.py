"""What the processes of the tests do; `nearfar.processes.supervise` calls it. Without PyTorch, so that they start at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nearfar.errors import InputError
from nearfar.processes import Say, supervise


def rank() -> int:
    return int(os.environ["RANK"])


def report(asked: Any, say: Say) -> dict[str, Any]:
    """What a process finds around it."""
    say("word", rank(), ["a", asked])
    names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MASTER_ADDR")
    found: dict[str, Any] = {name: os.environ.get(name) for name in names}
    return found | {"torch": "torch" in sys.modules, "pid": os.getpid(), "rank": rank()}


def fail(how: str, say: Say) -> None:
    """Process 1 does not end well; process 0 would go on for a minute, and is not waited for."""
    if rank() == 0:
        time.sleep(60)
        say("waited for")
    if how == "input":
        raise InputError("what process 1 says")
    if how == "defect":
        raise ZeroDivisionError("a defect")
    if how == "interrupted":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "mute":
        print("the last line", flush=True)
        os._exit(9)
    time.sleep(60)


def wait_for_the_signal(folder: str, say: Say) -> None:
    """Be interrupted, and then leave a file that takes a moment; a Ctrl-C from the terminal changes nothing."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        say("waiting", os.getpid())
        time.sleep(60)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGTERM)  # an echo
        time.sleep(0.3)
        (Path(folder) / f"stopped-{rank()}").touch()
        raise


def never_stop(folder: str, say: Say) -> None:
    """Have no ear for signals, as in a long call of a library."""
    signal.signal(signal.SIGTERM, lambda number, frame: say("waiting", os.getpid()))
    say("waiting", os.getpid())
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(InterruptedError):
            time.sleep(1)


def start_others(folder: str) -> None:
    """Start two processes that wait, and say who they are: the program that a test kills."""
    seen: list[int] = []

    def hear(word: str, values: list[Any]) -> None:
        seen.append(values[0])
        if len(seen) == 2:
            print(*seen, flush=True)

    supervise("processes_work:wait_for_the_signal", folder, processes=2, hear=hear)


def interrupt_soon(count: int, pause: float) -> None:
    """Send SIGTERM to this process, ``count`` times."""

    def send() -> None:
        for _ in range(count):
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
