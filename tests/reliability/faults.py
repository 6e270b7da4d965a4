"""Faults at the system calls that matter, in this process: the n-th of them kills it, or fails as on a full disk.

What matters is whatever changes a folder: files that are made, written, synced, renamed and removed, folders that are made. The
calls of Python's ``os`` are replaced; what libraries write by themselves is not counted.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import signal
from collections.abc import Callable
from typing import Any

CALLS = ("open", "mkdir", "rename", "replace", "fsync", "unlink", "remove", "rmdir")
REFUSED_WHEN_FULL = ("open", "mkdir", "rename", "replace", "fsync", "write")


class Faults:
    """Counts calls from now on, and does something at one of them.

    Args:
        at: number of the call, from 1; 0 counts alone.
        what: "kill" before the call, "half" to kill in the middle of a write or just after another call, "full" to fail with
            ENOSPC at this call and at all later ones that need room.
    """

    def __init__(self, at: int = 0, what: str = "kill") -> None:
        self.at, self.what = at, what
        self.count = 0

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._around(name, getattr(os, name)))
        given, faults = os.fdopen, self

        class Written(io.BufferedWriter):
            def write(self, content: Any, /) -> int:
                with memoryview(content) as view:
                    faults.meet("write", lambda: super(Written, self).write(view.cast("B")[: view.nbytes // 2]), self.flush)
                return super().write(content)

        def fdopen(handle: int, mode: str = "r", *rest: Any, **more: Any) -> Any:
            return Written(io.FileIO(handle, "wb")) if mode == "wb" else given(handle, mode, *rest, **more)

        os.fdopen = fdopen  # type: ignore[assignment]
        opened = builtins.open

        def open_(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if set(mode) & set("wax+"):
                self.meet("open")
            return opened(file, mode, *rest, **more)

        builtins.open = io.open = open_  # type: ignore[assignment]

    def meet(self, name: str, *half: Callable[[], Any]) -> None:
        """A call that matters is about to be made."""
        self.count += 1
        if self.what == "full":
            if self.at and self.count >= self.at and name in REFUSED_WHEN_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif self.count == self.at:
            if self.what == "half":
                with contextlib.suppress(OSError):  # what would fail anyway, as to remove what is not there
                    for step in half:
                        step()
            os.kill(os.getpid(), signal.SIGKILL)

    def _around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            changes = name != "open" or (arguments[1] if len(arguments) > 1 else options.get("flags", 0)) & os.O_CREAT
            if changes:
                self.meet(name, lambda: call(*arguments, **options))
            return call(*arguments, **options)

        return called
