"""Guards around code that reads what strangers wrote: what it opens and starts, how long it takes, what memory it wants."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

SECONDS = 5.0
BYTES = 1 << 30

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn")
_PATHS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil.rmtree")
_RELATIVE = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod")  # to an open folder


class Crossed(BaseException):
    """Something was done that must not be. Not an Exception, so that nobody takes it for an error of his own."""


class Guard:
    """Watches this process while `on`.

    Args:
        home: the only folder that may be written to, and besides those of the program itself, be read.
    """

    def __init__(self, home: Path) -> None:
        self.home = os.path.realpath(home)
        folders = {
            sys.prefix,
            sys.base_prefix,
            *sys.path,
            *sysconfig.get_paths().values(),
            "/proc",
            "/sys",
            "/dev",
            "/usr",
            "/lib",
        }
        self.own = tuple(os.path.realpath(folder) for folder in folders if folder)
        self.watching = False
        self.crossed: list[str] = []
        sys.addaudithook(self._hear)
        signal.signal(signal.SIGPROF, self._late)
        signal.signal(signal.SIGALRM, self._late)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Watch; at the end say what was crossed.

        Raises:
            Crossed: the guard saw something, or it took more than `SECONDS`.
        """
        self.crossed.clear()
        self.watching = True
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process, however busy the machine is
        signal.setitimer(signal.ITIMER_REAL, 20 * SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.watching = False
        if self.crossed:
            raise Crossed("; ".join(self.crossed))

    def limit_memory(self) -> None:
        """No more than `BYTES` beyond what the process has now; asking for them is a MemoryError."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def _late(self, number: int, frame: Any) -> None:
        raise Crossed(f"it took more than {SECONDS:g} s")

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event == "open":
            self._opened(*arguments)
        elif event in _PATHS:
            for path, folder in zip(arguments, _folders(event, arguments), strict=False):
                if isinstance(path, str | bytes | os.PathLike) and not self._inside(os.path.join(folder, os.fsdecode(path))):
                    self._note(f"{event} {os.fsdecode(path)}")
        elif event.startswith("socket.") or event in _STARTS or event == "pickle.find_class":
            self._note(f"{event} {arguments!r}"[:200])
        elif event == "exec" and isinstance(arguments[0], CodeType) and not self._of_program(arguments[0].co_filename):
            caller = sys._getframe(2).f_code.co_filename
            if os.path.basename(caller) not in ("typing.py", "dataclasses.py"):  # which read annotations of ours
                self._note(f"exec of code from {arguments[0].co_filename} by {caller}")

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor, of what was opened before
        writes = (isinstance(flags, int) and flags & _WRITES) or (isinstance(mode, str) and set(mode) & set("wax+"))
        if self._inside(path) or (not writes and self._of_program(path)) or os.fsdecode(path) == os.devnull:
            return
        self._note(f"{'writing' if writes else 'reading'} {os.fsdecode(path)}")

    def _note(self, what: str) -> None:
        self.crossed.append(what)

    def _inside(self, path: Any) -> bool:
        return _is_below(os.path.realpath(os.fsdecode(path)), self.home)

    def _of_program(self, path: Any) -> bool:
        return any(_is_below(os.path.realpath(os.fsdecode(path)), folder) for folder in self.own) or str(path).startswith(
            "<frozen"
        )


def _folders(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """What each path of an event is relative to: the working folder, or that of a descriptor given beside it."""
    both = event in ("os.rename", "os.link")
    given = arguments[2:4] if both else arguments[-1:] * 2
    return [f"/proc/self/fd/{one}" if isinstance(one, int) and one >= 0 and event in _RELATIVE else "" for one in given]


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)
