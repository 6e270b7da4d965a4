"""`nearfar.verbs.train` in several processes of this machine: what they are given, and what the first of them tells.

Knows the arguments of that function; nothing of training. Who starts the processes does not import PyTorch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearfar.cores import cores
from nearfar.data import ImageSet
from nearfar.errors import InputError, ProcessLostError
from nearfar.processes import Say, supervise
from nearfar.recipe import Recipe
from nearfar.training.progress import Silent, Watcher

MOST = 64
"""Processes on one machine, unless it has more cores; a larger number is taken for a slip."""

_LOG = "log"


def check_processes(processes: int, data: str | Path | ImageSet) -> None:
    """Refuse a number of processes, or data, that training in processes of this machine cannot do with.

    Raises:
        InputError: the number is not usable, this is one of several processes already, or the data have no name.
    """
    most = max(MOST, cores())
    if not 1 <= processes <= most:
        raise InputError(f"--processes is {processes}; expected 1 to {most}: as many as there are cores or GPUs, at most")
    if processes == 1:
        return
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        from nearfar.distributed.joining import joined, place

        if (world := place().world) > 1:
            with joined("cpu"):  # one of them says it
                raise InputError(f"torchrun has started {world} processes already; start without it, or without --processes")
    if isinstance(data, ImageSet):
        raise InputError(
            f"processes is {processes}, each of which reads the data itself, and these are in memory; give a name or a path, "
            "or train in one process"
        )


def train_in_processes(processes: int, arguments: Mapping[str, Any], watcher: Watcher | None = None) -> dict[str, Any]:
    """Train in processes that share the cores of this machine, with the result of one process.

    Args:
        processes: how many.
        arguments: of `nearfar.verbs.train`, with a whole `Recipe`.
        watcher: is told what process 0 tells.

    Returns:
        As `nearfar.verbs.train`.

    Raises:
        InputError: as there.
        ProcessLostError: a process ended without a word.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the checkpoint was written.
    """
    watcher = watcher or Silent()
    if processes > cores():
        watcher.warn(f"{processes} processes share {cores()} cores; more than that make training slower")
    recipe: Recipe = arguments["recipe"]
    given = {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}
    given["recipe"] = recipe.to_dict()

    def hear(word: str, values: list[Any]) -> None:
        if word == _LOG:
            logging.getLogger("nearfar").log(*values)
        else:
            getattr(watcher, word)(*values)

    try:
        results: list[dict[str, Any]] = supervise("nearfar.trainmany:work", given, processes=processes, hear=hear, shown=True)
    except ProcessLostError as error:
        raise ProcessLostError(f"{error}; go on with the same command, --out and --resume") from None
    return results[0]


def work(arguments: dict[str, Any], say: Say) -> dict[str, Any]:
    """What each process does; the first alone speaks."""
    from nearfar import verbs

    if os.environ["RANK"] == "0":
        logger = logging.getLogger("nearfar")
        logger.addHandler(_Passing(say))
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return verbs.train(**arguments | {"recipe": Recipe.from_dict(arguments["recipe"])}, watcher=_Telling(say))


class _Telling:
    """A `nearfar.training.progress.Watcher` that tells who started this process all that it is told."""

    def __init__(self, say: Say) -> None:
        self.say = say

    def step(self, epoch: int, epochs: float, step: int, steps: int, loss: float, rate: float, left: float) -> None:
        self.say("step", epoch, epochs, step, steps, loss, rate, left)

    def epoch(self, row: dict[str, Any], epochs: float) -> None:
        self.say("epoch", row, epochs)

    def note(self, message: str) -> None:
        self.say("note", message)

    def warn(self, message: str) -> None:
        self.say("warn", message)


class _Passing(logging.Handler):
    """Passes on what is logged."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        self.say(_LOG, record.levelno, "%s", record.getMessage())
