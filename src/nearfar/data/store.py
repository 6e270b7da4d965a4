"""Images on disk that read like an array: rows come by position, and only the rows asked for are ever in memory.

The file is read with ``preadv``, not mapped: mapped pages would count as resident memory of the process and grow with
every epoch until they look like a leak. A file written here is the pixels of all rows one after another, then a note in
JSON, its length in 8 bytes, and a mark.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.files import NOT_JSON, write_atomic

_MARK = b"NEARFAR1"
_TAIL = struct.Struct("<Q8s")


class _File:
    """A file descriptor that views share and the last of them closes."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        # Missing where opening failed.
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class DiskImages:
    """uint8 images in a file: ``images[rows]`` reads those rows as [len(rows), C, H, W].

    Rows may be one number, a slice, an integer array in any order with repetitions, or a boolean mask. Reading is safe from
    several threads and after a fork; a copy sent to another process opens the file anew.

    Args:
        path: file that holds the pixels of all rows, one after another.
        shape: (N, C, H, W).
        offset: bytes before the first row.
        rows: int64 [M], rows of the file that this view shows, in this order (default: all of them).

    Raises:
        InputError: the file is missing or too short for ``shape``.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        path: Path | str,
        shape: tuple[int, int, int, int],
        *,
        offset: int = 0,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.path = Path(path)
        self._stored = shape
        self._offset = offset
        self._rows = rows
        self._row_bytes = int(np.prod(shape[1:]))
        self.shape: tuple[int, int, int, int] = (shape[0] if rows is None else len(rows), *shape[1:])
        try:
            self._file = _File(self.path)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error
        held, needed = os.fstat(self._file.descriptor).st_size, offset + shape[0] * self._row_bytes
        if held < needed:
            raise InputError(f"{self.path} is damaged: it has {held:,} bytes, expected {needed:,}; remove it and run again")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels, on disk."""
        return len(self) * self._row_bytes

    def __getitem__(self, key: Any) -> npt.NDArray[np.uint8]:
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            return self._gather(np.asarray([self._checked(int(key))]))[0]
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if self._rows is None and step == 1:
                return self._contiguous(start, max(stop - start, 0))
            return self._gather(np.arange(start, stop, step, dtype=np.int64))
        if isinstance(key, tuple):
            raise IndexError("images on disk are indexed by rows alone; cut what was read, as in images[rows][:, 0]")
        return self._gather(as_rows(key, len(self)))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("images on disk cannot become an array without a copy")
        return self[:] if dtype is None else self[:].astype(dtype)

    def view(self, rows: Any) -> DiskImages:
        """Show other rows of the same file, as ``images[rows]`` would order them, without reading a pixel."""
        chosen = as_rows(rows, len(self))
        other = DiskImages.__new__(DiskImages)
        other.__dict__.update(self.__dict__)
        other._rows = chosen if self._rows is None else self._rows[chosen]
        other.shape = (len(chosen), *self._stored[1:])
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._stored, self._offset, self._rows)

    def __repr__(self) -> str:
        return f"DiskImages({str(self.path)!r}, shape={self.shape})"

    def _checked(self, row: int) -> int:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} is out of range for {len(self)} images")
        return row % len(self)

    def _gather(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Read ``rows``: sorted, each once, neighbours in the file together, then put in the order that was asked for."""
        stored = rows if self._rows is None else self._rows[rows]
        wanted, inverse = np.unique(stored, return_inverse=True)
        pixels = np.empty((len(wanted), *self._stored[1:]), dtype=np.uint8)
        if not pixels.size:
            return pixels[inverse]
        view = pixels.reshape(-1).data
        starts = np.concatenate([[0], np.flatnonzero(np.diff(wanted) != 1) + 1, [len(wanted)]]).tolist()
        firsts = wanted[starts[:-1]].tolist()
        size = self._row_bytes
        for first, begin, end in zip(firsts, starts[:-1], starts[1:], strict=True):
            self._read(view[begin * size : end * size], first)
        return pixels if np.array_equal(stored, wanted) else pixels[inverse]

    def _contiguous(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        pixels = np.empty((count, *self._stored[1:]), dtype=np.uint8)
        if pixels.size:
            self._read(pixels.reshape(-1).data, start)
        return pixels

    def _read(self, buffer: memoryview, row: int) -> None:
        position = self._offset + row * self._row_bytes
        while buffer:
            # One call reads at most 2 GiB, and may read less than was asked for.
            got = os.preadv(self._file.descriptor, [buffer], position)
            if not got:
                raise InputError(f"{self.path} is damaged: it ends at byte {position:,}; remove it and run again")
            buffer, position = buffer[got:], position + got


def _reopen(path: Path, shape: tuple[int, int, int, int], offset: int, rows: npt.NDArray[np.int64] | None) -> DiskImages:
    return DiskImages(path, shape, offset=offset, rows=rows)


def as_rows(key: Any, count: int) -> npt.NDArray[np.int64]:
    """Row numbers in 0..count-1 from a slice, an integer array (negative ones count from the end) or a boolean mask."""
    if isinstance(key, slice):
        return np.arange(*key.indices(count), dtype=np.int64)
    rows = np.asarray(key)
    if rows.ndim != 1:
        raise IndexError(f"rows must be one number, a slice or a one-dimensional array, got {rows.ndim} dimensions")
    if rows.dtype == bool:
        if len(rows) != count:
            raise IndexError(f"the mask has {len(rows):,} entries, there are {count:,} images")
        return np.flatnonzero(rows)
    if not len(rows):
        return np.empty(0, dtype=np.int64)
    if rows.dtype.kind not in "iu":
        raise IndexError(f"rows must be integers or a boolean mask, got {rows.dtype}")
    rows = rows.astype(np.int64)
    if rows.min() < -count or rows.max() >= count:
        worst = int(rows.max() if rows.max() >= count else rows.min())
        raise IndexError(f"row {worst} is out of range for {count} images")
    return np.where(rows < 0, rows + count, rows) if rows.min() < 0 else rows


class DiskWriter:
    """Rows appended to a file under way; ``note`` is kept beside the pixels (a JSON object)."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int, int]) -> None:
        self._file = file
        self._shape = shape
        self.count = 0
        self.note: dict[str, Any] = {}

    def append(self, block: npt.NDArray[np.uint8]) -> None:
        """Write ``block``, uint8 [n, C, H, W]."""
        if block.dtype != np.uint8 or block.shape[1:] != self._shape:
            raise ValueError(f"block is {block.dtype} {block.shape}, expected uint8 [n, {self._shape}]")
        self._file.write(np.ascontiguousarray(block).data)
        self.count += len(block)

    def _finish(self) -> None:
        note = json.dumps({"shape": [self.count, *self._shape], "note": self.note}).encode()
        self._file.write(note + _TAIL.pack(len(note), _MARK))


@contextlib.contextmanager
def write_images(path: Path | str, shape: tuple[int, int, int], *, expected: int = 0) -> Iterator[DiskWriter]:
    """Write images of ``shape`` (C, H, W) to ``path``, which is there whole or not at all.

    Args:
        expected: number of images that will come; when the disk has no room for them this fails at once.

    Raises:
        InputError: the disk is full or the folder cannot be written to. An earlier ``path`` is untouched.
    """
    path = Path(path)
    with write_atomic(path) as file:
        needed, free = expected * int(np.prod(shape)), shutil.disk_usage(path.parent).free
        if needed > free:
            raise InputError(
                f"cannot write {path}: {expected:,} images need {needed:,} bytes, the disk has {free:,} free; "
                "free some space, choose a smaller size, or set NEARFAR_DATA to a folder on another disk"
            )
        writer = DiskWriter(file, shape)
        yield writer
        writer._finish()


def open_images(path: Path | str) -> tuple[DiskImages, dict[str, Any]]:
    """Open what ``write_images`` wrote; returns the images and the note.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TAIL.size))
            length, mark = _TAIL.unpack(file.read(_TAIL.size))
            if mark != _MARK or length > end - _TAIL.size:
                raise ValueError("no mark at its end")
            file.seek(end - _TAIL.size - length)
            tail = json.loads(file.read(length))
        count, channels, height, width = (int(n) for n in tail["shape"])
        note = dict(tail["note"])
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (*NOT_JSON, KeyError, TypeError, struct.error) as error:
        raise InputError(f"{path} is damaged ({error}); remove it and run again") from error
    return DiskImages(path, (count, channels, height, width)), note
