"""Start processes on this machine that are joined to a `Group`, and wait for what they bring back."""

from __future__ import annotations

from typing import Any

from nearfar.distributed.joining import joined
from nearfar.processes import Say, named, supervise


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
        InputError, ProcessLostError, KeyboardInterrupt, RuntimeError: as `nearfar.processes.supervise`; all have ended then.
    """
    task = {"work": work, "argument": argument}
    return supervise("nearfar.distributed.launch:in_group", task, processes=processes, threads=threads, timeout=timeout)


def in_group(task: dict[str, Any], say: Say) -> Any:
    """What a started process does."""
    with joined("cpu") as group:
        return named(task["work"])(task["argument"], group)
