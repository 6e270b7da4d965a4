"""Two folders trade places in one step, so that at every moment one of them, whole, is under the name.

Linux (renameat2, since 3.15) and macOS (renamex_np) know how. Where the system or the file system does not, the step is two
renames, and a process that is killed between them leaves the earlier folder as ``.NAME.old``: `stranded` finds it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

from nearfar.files import explain_os_errors, sync_folder

_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, and RENAME_SWAP of macOS
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def exchange(new: Path, place: Path) -> None:
    """Put ``new`` at ``place``, and what was there at ``new``; both are folders of one file system.

    Raises:
        InputError: the folder above cannot be written to.
    """
    with explain_os_errors(place):
        if not _at_once(new, place):
            old = _aside(place)
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
            new.rename(place)
            old.rename(new)
        sync_folder(place.parent)


def stranded(place: Path) -> Path | None:
    """What was at ``place`` before a killed process had moved it aside and put nothing there; None where there is no such."""
    old = _aside(place)
    return old if not place.exists() and old.is_dir() else None


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _at_once(new: Path, place: Path) -> bool:
    """Whether the system did it.

    Raises:
        OSError: it can, and may not.
    """
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(new), os.fsencode(place)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        failed = library.renameat2(_HERE, first, _HERE, second, _EXCHANGE)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(first, second, _EXCHANGE)
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(place))
