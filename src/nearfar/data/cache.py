"""Where fetched and decoded data is kept, and how two processes stay out of each other's way there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from nearfar.files import explain_os_errors


def cache_folder(cache: Path | str | None = None) -> Path:
    """The folder ``cache``, or ``$NEARFAR_DATA``, or ``~/.cache/nearfar``; it need not exist yet."""
    chosen = cache if cache is not None else os.environ.get("NEARFAR_DATA") or "~/.cache/nearfar"
    return Path(chosen).expanduser()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Hold the lock file ``path``: of several processes (or threads) that make the same thing, one does and the others wait.

    The lock goes when the process does, however it ends. Where the file system knows no locks this yields False and nothing
    is held: what is made is renamed into place, so the price is work done twice, never a damaged file.

    Raises:
        InputError: the folder cannot be written to.
    """
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            held = True
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            held = False
        yield held
    finally:
        os.close(handle)
