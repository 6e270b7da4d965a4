"""Files that are there whole or not at all: written beside their place, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nearfar.errors import InputError

NOT_JSON = (ValueError, RecursionError)
"""What Python raises for text that is no JSON, has a number of thousands of digits, or is nested without end."""
LEFT_OVER = re.compile(r"\..+\.[a-z0-9_]{8}\.part")
"""Names of the temporary files that a writer leaves when it is killed."""


@contextlib.contextmanager
def write_atomic(path: Path | str, *, tidy: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` for writing in binary; on leaving without an error it takes the place of ``path``.

    Args:
        path: the file; its folder is made where there is none.
        tidy: remove what killed writers of the same file left, which costs a look at the folder.

    Raises:
        InputError: the disk is full, or the folder cannot be written to. The earlier ``path`` is untouched.
    """
    path = Path(path)
    with explain_os_errors(path):
        make_folder(path.parent)
        if tidy:
            sweep(path.parent, path.name)
        handle, temporary = _claim(path)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.chmod(temporary, 0o666 & ~_umask())
                os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files that killed writers of ``name`` left in ``folder``, or of any; living ones hold theirs."""
    with contextlib.suppress(OSError):
        for left in os.listdir(folder):
            if LEFT_OVER.fullmatch(left) and (name is None or left[1:-14] == name):
                with contextlib.suppress(OSError):
                    _remove_abandoned(folder / left)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they outlast a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


@contextlib.contextmanager
def explain_os_errors(path: Path | str) -> Iterator[None]:
    """Turn a full disk, a missing permission or a folder in the way into one clear line about ``path``."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; free some space and run again",
            errno.EFBIG: "the file would be larger than files may be here; choose another folder, or raise the limit",
            errno.EDQUOT: "the disk quota is used up; free some space and run again",
            errno.EACCES: "permission denied; choose a folder that you may write to",
            errno.EPERM: "not permitted; choose a folder that you may write to",
            errno.EROFS: "the file system is read-only; choose another folder",
            errno.ENOTDIR: "a part of that path is a file, not a folder",
            errno.EEXIST: "a part of that path is a file, not a folder",
            errno.EISDIR: "that is a folder; give the path of a file",
            errno.ENAMETOOLONG: "the name is too long",
        }
        if error.errno not in reasons:
            raise
        raise InputError(f"cannot write {path}: {reasons[error.errno]}") from error


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder against other writers; the lock goes with the process, so that a crash leaves none behind.

    Raises:
        InputError: another process holds it, or the folder cannot be opened.
    """
    with explain_os_errors(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder} is being written by another process; try again when it is done") from None
        yield
    finally:
        os.close(handle)


def write_bytes(path: Path | str, content: bytes, *, tidy: bool = True) -> None:
    """Write ``content`` to ``path`` atomically; ``tidy`` as for `write_atomic`."""
    with write_atomic(path, tidy=tidy) as file:
        file.write(content)


def write_text(path: Path | str, content: str) -> None:
    """Write ``content`` to ``path`` atomically, as UTF-8; half of a surrogate pair, which is no character, becomes "?"."""
    write_bytes(path, content.encode(errors="replace"))


def write_json(path: Path | str, tree: Mapping[str, Any]) -> None:
    """Write ``tree`` to ``path`` atomically, as indented JSON; NaN and infinity are refused, since JSON has none."""
    text = json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        write_bytes(path, text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, as file names that are not UTF-8 have it; JSON can escape it
        write_bytes(path, json.dumps(tree, indent=2, allow_nan=False).encode() + b"\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """Read the JSON object in ``path``.

    Raises:
        InputError: the file is missing, is not JSON, or holds something other than an object.
    """
    path = Path(path)
    try:
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except NOT_JSON as error:
        raise InputError(f"{path} is damaged: not valid JSON ({error})") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} is damaged: expected a JSON object, found {type(tree).__name__}")
    return tree


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder durable; file systems that cannot sync a folder are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _claim(path: Path) -> tuple[int, str]:
    """A new temporary file beside ``path``, locked as long as it is open, so that it is known to be of a living writer."""
    while True:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with contextlib.suppress(OSError):  # where locks are not to be had, nothing is swept either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # swept before it was locked


def _remove_abandoned(path: Path) -> None:
    """Remove a temporary file, unless a living writer holds it."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
