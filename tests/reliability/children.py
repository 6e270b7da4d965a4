"""Processes that may be killed: forked from one that has everything imported, so that each starts in milliseconds."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from reliability.faults import Faults

_FORKS = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Ended:
    """How a child ended: ``code`` is 0, 2 (an `InputError`, whose text is ``said``), 1 (a defect) or minus the signal."""

    code: int
    said: Any
    calls: int
    seconds: float


def run(
    job: Callable[..., Any],
    *arguments: Any,
    at: int = 0,
    what: str = "kill",
    kill_after: float | None = None,
    powerless: bool = False,
    largest_file: int | None = None,
) -> Ended:
    """Do ``job(*arguments)`` in a process of its own.

    Args:
        job: a function of a module that can be imported.
        arguments: what it is given.
        at: number of the call that fails; see `Faults`.
        what: how.
        kill_after: seconds after which the process is killed with SIGKILL, counted from the beginning of the job.
        powerless: even where the user is root, folders may be read-only for it.
        largest_file: bytes of a file, beyond which the system refuses to write.
    """
    _start()
    ours, theirs = _FORKS.Pipe()
    process = _FORKS.Process(target=_child, args=(theirs, job, arguments, at, what, powerless, largest_file))
    process.start()
    theirs.close()
    code, said, calls = None, "", 0
    started = time.monotonic()
    try:
        assert ours.recv() == "begin"
        started = time.monotonic()
        if kill_after is not None and not ours.poll(kill_after):
            process.kill()
        code, said, calls = ours.recv()
    except EOFError:  # it was killed
        pass
    seconds = time.monotonic() - started
    process.join()
    ours.close()
    ended = process.exitcode if code is None else code
    process.close()
    return Ended(int(ended or 0), said, calls, seconds)


def _start() -> None:
    """Start the process that children are forked from, unless it runs; it finds modules where this one does."""
    earlier = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        _FORKS.set_forkserver_preload(["__main__", "reliability.warm"])
        multiprocessing.forkserver.ensure_running()
    finally:
        if earlier is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = earlier


def _child(
    back: Connection,
    job: Callable[..., Any],
    arguments: tuple[Any, ...],
    at: int,
    what: str,
    powerless: bool,
    largest_file: int | None,
) -> None:
    from nearfar.errors import InputError

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if powerless and os.geteuid() == 0:
        _give_up_capabilities()
    back.send("begin")
    faults = Faults(at, what)
    faults.install()
    try:
        said = job(*arguments)
        code = 0
    except InputError as error:
        code, said = 2, str(error)
    except BaseException:
        code, said = 1, traceback.format_exc()
    back.send((code, said, faults.count))


def _give_up_capabilities() -> None:
    """Make root a user like any other (capset of Linux), who yet may read what root may."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    none = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")
