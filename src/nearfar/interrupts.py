"""Ctrl-C and SIGTERM, held back until a step is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_ECHO = 3.0  # seconds in which a second signal of a group of processes is taken for the first one's
_TWICE = 0.1  # the same for one process alone: some programs send a signal to a process and to its group

_heeded = [signal.SIGINT, signal.SIGTERM]


def leave_ctrl_c() -> None:
    """From now on Ctrl-C, which a terminal sends to all, is for the process that started this one; it passes it on as SIGTERM.

    Else this process might be about to end when that comes, and be interrupted in the midst of it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _heeded[:] = [signal.SIGTERM]


@contextlib.contextmanager
def deferred_interrupts(*, several: bool = False) -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C and SIGTERM until the loop asks, so that a checkpoint never holds half a step.

    A second Ctrl-C interrupts at once. Outside the main thread, where Python allows no handlers, nothing is held back.

    Args:
        several: this is one of several processes, to which a Ctrl-C comes twice: from the terminal, and from what started
            them (but for those that `leave_ctrl_c`).
    """
    arrived: float | None = None

    def note(number: int, frame: Any) -> None:
        nonlocal arrived
        if arrived is not None and time.monotonic() - arrived >= (_ECHO if several else _TWICE):
            raise KeyboardInterrupt
        arrived = time.monotonic() if arrived is None else arrived

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    earlier = {number: signal.signal(number, note) for number in _heeded}
    try:
        yield lambda: arrived is not None
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
