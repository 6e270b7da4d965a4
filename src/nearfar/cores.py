"""How many cores there are to compute with, and how much each of them takes at a time."""

from __future__ import annotations

import os


def cores() -> int:
    """Of this machine, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of(items: int, threads: int, *, most: int, least: int = 16) -> int | None:
    """How many of ``items`` each of ``threads`` takes at a time, so that all have work: up to ``most``.

    None where that is fewer than ``least``, for which reading all weights does not pay: they rather share every piece.
    """
    share = min(most, -(-items // threads))
    return share if share >= least else None
