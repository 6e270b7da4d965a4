"""Start processes on this machine, pass on what they say, and end with them: all of them, for one reason.

Knows processes, pipes and signals; nothing of tensors, so that who starts them need not import PyTorch.

- Ctrl-C and SIGTERM go to who started the processes, and from there to them as SIGTERM. A second one kills them.
- Where one fails, the others have a few seconds to end by themselves.
- Where who started them is killed, they stop as on SIGTERM: a pipe that only it holds open tells them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from nearfar.cores import cores
from nearfar.errors import InputError, ProcessLostError
from nearfar.files import read_json, write_json
from nearfar.interrupts import deferred_interrupts, leave_ctrl_c

MEETING = "NEARFAR_MEETING"
"""Environment: a file by which processes of one machine meet, instead of an address."""

THREADS = "NEARFAR_THREADS"
"""Environment: how many threads a process may have once the others are done, where the cores were shared."""

Say = Callable[..., None]
"""Tells who started a process something: a word, and values that JSON holds."""

_GRACE = 5.0  # seconds that processes have to end after one of them has failed
_ORPHANED = 30.0  # and to stop as on SIGTERM after who started them has gone
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_RESULT, _ENDED = "result", "ended"
_CODES = {"input": 2, "interrupted": 130, "lost": 1, "defect": 1}


@dataclass
class _Child:
    """A started process, and what is known of how it ended."""

    rank: int
    process: subprocess.Popen[bytes]
    messages: Connection
    said: Path  # what it wrote, unless that is shown
    listening: bool = True
    killed: bool = False
    result: Any = None
    ended: tuple[str, str] | None = None  # how, a key of _CODES, and what it has to say

    @property
    def failed(self) -> bool:
        return not self.killed and self.process.poll() not in (None, 0)


@dataclass
class _Watch:
    """Until when processes may run, and whether they were told to stop."""

    deadline: float
    late: bool = False
    stopped: bool = False
    failures: list[int] = field(default_factory=list)  # ranks, in the order in which they were noticed


def supervise(
    work: str,
    argument: Any,
    *,
    processes: int,
    threads: int | None = None,
    timeout: float = float("inf"),
    hear: Callable[[str, list[Any]], None] = lambda word, values: None,
    shown: bool = False,
) -> list[Any]:
    """Call a function in several processes at once.

    Args:
        work: "module:function"; it is called with ``argument`` and with `Say`, and returns what JSON holds.
        argument: what JSON holds.
        processes: how many.
        threads: that each computes with; None: the cores are shared evenly, unless OMP_NUM_THREADS says how many.
        timeout: seconds after which they are ended.
        hear: is told what processes say.
        shown: what process 0 writes to stdout and stderr is written there, and not kept for messages.

    Returns:
        What each returned, in the order of ranks.

    Raises:
        InputError: as one of the processes.
        ProcessLostError: one ended without a word, or all of them not in time.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the processes have ended.
        RuntimeError: a defect; its cause has the traceback of the process.
    """
    children: list[_Child] = []
    with tempfile.TemporaryDirectory(prefix="nearfar-") as name, deferred_interrupts() as interrupted:
        folder = Path(name)
        write_json(folder / "task.json", {"work": work, "argument": argument})
        alive, ours = os.pipe()  # never written to: it closes where this process ends, however it does
        try:
            for rank in range(processes):
                environment = _environment(rank, processes, threads, folder / "meeting")
                children.append(_start(folder, rank, processes, environment, alive, shown=shown and rank == 0))
            watch = _Watch(time.monotonic() + timeout)
            _follow(children, watch, interrupted, hear)
        finally:
            for child in children:
                _kill(child)
            os.close(alive)
            os.close(ours)
        _raise(children, watch)
    return [child.result for child in children]


def _environment(rank: int, processes: int, threads: int | None, meeting: Path) -> dict[str, str]:
    """What torchrun would leave, and a place to meet in the stead of an address."""
    foreign = ("MASTER_", "TORCHELASTIC_", THREADS)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    places = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
    environment |= {name: str(value) for name, value in places.items()} | {MEETING: str(meeting)}
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, cores() // processes)
        environment.setdefault("MKL_NUM_THREADS", str(threads))
        environment |= {"OMP_NUM_THREADS": str(threads), THREADS: str(threads * processes)}
    elif threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    # gloo would look up the name of the machine, and listen where others can reach it.
    if loopback := next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None):
        environment.setdefault("GLOO_SOCKET_IFNAME", loopback)
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return environment


def _start(folder: Path, rank: int, processes: int, environment: dict[str, str], alive: int, *, shown: bool) -> _Child:
    messages, theirs = Pipe(duplex=False)
    said = folder / f"said-{rank}.txt"
    code = "import sys; from nearfar.processes import begin; begin(*sys.argv[1:])"
    # Held back until the process can handle them; it inherits that.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with said.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(folder), str(theirs.fileno()), str(alive)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=None if shown else file,
                stderr=None if shown else file,
                pass_fds=(theirs.fileno(), alive),
            )
    except OSError as error:
        raise InputError(f"cannot start process {rank} of {processes} ({error.strerror}); start fewer") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        theirs.close()
    return _Child(rank, process, messages, said)


def _follow(
    children: list[_Child], watch: _Watch, interrupted: Callable[[], bool], hear: Callable[[str, list[Any]], None]
) -> None:
    """Until all have ended, or there is no more time."""
    while any(child.listening or child.process.poll() is None for child in children):
        for child in children:
            if child.failed and child.rank not in watch.failures:
                watch.failures.append(child.rank)
                watch.deadline = min(watch.deadline, time.monotonic() + _GRACE)
        if time.monotonic() > watch.deadline:
            watch.late = not watch.failures
            return
        if interrupted() and not watch.stopped:
            watch.stopped = True
            for child in children:
                child.process.terminate()
        open_ones = [child.messages for child in children if child.listening]
        if not open_ones:
            time.sleep(0.01)
            continue
        ready = wait(open_ones, 0.1)
        for child in children:
            if child.messages in ready:
                _listen(child, hear)
    watch.failures.extend(child.rank for child in children if child.failed and child.rank not in watch.failures)


def _listen(child: _Child, hear: Callable[[str, list[Any]], None]) -> None:
    """Take one message."""
    try:
        word, *values = json.loads(child.messages.recv_bytes())
    except (EOFError, OSError, ValueError):  # it has ended, in the midst of a word maybe
        child.listening = False
        return
    if word == _RESULT:
        child.result = values[0]
    elif word == _ENDED:
        child.ended = (values[0], values[1])
    else:
        hear(word, values)


def _kill(child: _Child) -> None:
    if child.process.poll() is None:
        child.killed = True
        with contextlib.suppress(ProcessLookupError):
            child.process.kill()
    child.process.wait()
    child.messages.close()


def _raise(children: list[_Child], watch: _Watch) -> None:
    """Say why processes failed, if any has: what the first says that has something to say."""
    if watch.late:
        raise ProcessLostError("the processes did not end in time")
    failed = [children[rank] for rank in watch.failures]
    if not failed:
        return
    for child in failed:
        kind, text = child.ended or ("", "")
        if kind == "input":
            raise InputError(text)
        if kind == "defect":
            last = text.strip().splitlines()[-1]
            raise RuntimeError(f"process {child.rank} of {len(children)} failed: {last}") from _Elsewhere(text)
    if watch.stopped:
        raise KeyboardInterrupt
    for child in failed:
        if child.ended is None and child.process.returncode < 0:
            raise ProcessLostError(_epitaph(child, len(children)))
    kinds = {child.ended[0]: child.ended[1] for child in reversed(failed) if child.ended is not None}
    if "interrupted" in kinds:
        raise KeyboardInterrupt
    mute = [child for child in failed if child.ended is None]
    raise ProcessLostError(_epitaph(mute[0], len(children)) if mute else kinds["lost"])


def _epitaph(child: _Child, processes: int) -> str:
    """Of a process that ended without a word: how, and the last line that it wrote."""
    code = child.process.returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    lines = child.said.read_text(errors="replace").strip().splitlines()
    return f"process {child.rank} of {processes} {how}" + (f": {lines[-1]}" if lines else "")


class _Elsewhere(Exception):
    """The traceback of another process."""

    def __init__(self, text: str) -> None:
        super().__init__(f"\n{text}")


# ---- in a started process


def begin(folder: str, speaking: str, alive: str) -> None:
    """What a started process does."""
    for number in (speaking, alive):
        os.set_inheritable(int(number), False)
    connection = Connection(int(speaking), readable=False)

    def say(word: str, *values: Any) -> None:
        with contextlib.suppress(OSError):  # who listened is gone, and `_stop_when_orphaned` sees to that
            connection.send_bytes(json.dumps([word, *values]).encode())

    orphaned = threading.Event()
    try:
        _obey()  # from here on SIGTERM may come
        threading.Thread(target=_stop_when_orphaned, args=(int(alive), orphaned), daemon=True).start()
        task = read_json(Path(folder) / "task.json")
        result = named(task["work"])(task["argument"], say)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends anyway
        say(_RESULT, result)
    except SystemExit:  # another process speaks
        raise
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        kind = _kind(error)
        text = "".join(traceback.format_exception(error)) if kind == "defect" else str(error)
        say(_ENDED, kind, text)
        sys.exit(_CODES[kind])
    finally:
        if orphaned.is_set():  # no one else does it
            shutil.rmtree(folder, ignore_errors=True)


def named(name: str) -> Callable[..., Any]:
    """The function of "module:function"."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _kind(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "input" if isinstance(error, InputError) else "lost" if isinstance(error, ProcessLostError) else "defect"


def _obey() -> None:
    """Leave Ctrl-C to who started this process; be interrupted by SIGTERM, once."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    leave_ctrl_c()
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _stop_when_orphaned(alive: int, orphaned: threading.Event) -> None:
    os.read(alive, 1)  # until who started this process has ended
    orphaned.set()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHANED)
    os._exit(1)
