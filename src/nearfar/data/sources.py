"""What readers hand on: one split of a data set, its pixels not decoded yet.

A source knows how many rows there are, their ids and labels, and yields the pixels piece by piece, as files still encoded or
as blocks of an array. Who decodes them, and whether they end in memory or on disk, is not its business.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import itertools
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nearfar.data.imageset import Ids, Images, ImageSet, class_order, text_ids
from nearfar.data.texts import Texts
from nearfar.errors import InputError

# One encoded image: what messages call it, and its path (str) or content (bytes).
Encoded = tuple[str, str | bytes]
# Encoded images, or uint8 [n, c, h, w].
Chunk = list[Encoded] | npt.NDArray[np.uint8]

# Encoded images handed to a decoding thread at once: enough that handing over costs nothing.
ENCODED_ROWS = 128
CHUNK_PIXELS = 4 << 20


@dataclass(frozen=True)
class Rows:
    """All of a split but its pixels.

    Attributes:
        ids: [N] unique texts.
        labels: int64 [N] positions in ``classes``, or None.
        classes: class names, in order.
        texts: captions of each row, or None.
    """

    ids: Ids
    labels: npt.NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    texts: Texts | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def renumbered(self, classes: tuple[str, ...]) -> Rows:
        """The same labels as positions in ``classes``, which holds all of the present names."""
        if self.labels is None or self.classes == classes:
            return self
        place = {name: number for number, name in enumerate(classes)}
        table = np.array([place[name] for name in self.classes], dtype=np.int64)
        return replace(self, labels=table[self.labels], classes=classes)


class Source(Protocol):
    """One split.

    Attributes:
        name: what messages call it.
    """

    name: str

    @property
    def rows(self) -> Rows:
        """Ids and labels; read when first asked for, and kept."""

    def stamp(self) -> Iterator[str]:
        """Lines that are others once the data is."""

    def chunks(self) -> Iterator[Chunk]:
        """All pixels in row order, a few megabytes at a time."""


class FileSource:
    """Image files: ``paths`` are relative to ``root``, and are the names in messages."""

    def __init__(self, name: str, root: Path | str, paths: Ids, rows: Rows) -> None:
        self.name = name
        self.rows = rows
        self._root = str(root)
        self._paths = paths

    def stamp(self) -> Iterator[str]:
        yield os.path.abspath(self._root)
        for path in self._paths:
            yield f"{path}\0{file_stamp(os.path.join(self._root, path))}"

    def chunks(self) -> Iterator[Chunk]:
        for start in range(0, len(self._paths), ENCODED_ROWS):
            paths = [os.path.join(self._root, name) for name in self._paths[start : start + ENCODED_ROWS].tolist()]
            yield [(path, path) for path in paths]


class ArraySource:
    """Images that are arrays already."""

    def __init__(self, name: str, images: Images, rows: Rows) -> None:
        self.name = name
        self.rows = rows
        self._images = images

    def stamp(self) -> Iterator[str]:
        yield ImageSet(self._images).fingerprint()

    def chunks(self) -> Iterator[Chunk]:
        step = chunk_rows(self._images.shape)
        for start in range(0, len(self._images), step):
            yield self._images[start : start + step]


class JoinedSource:
    """Several sources as one, in order; labelled when all of them are, and captioned likewise.

    Args:
        parts: (text that is put before the ids, or "", source).
    """

    def __init__(self, name: str, parts: Sequence[tuple[str, Source]]) -> None:
        self.name = name
        self._parts = [source for _, source in parts]
        self._prefixes = [prefix for prefix, _ in parts]

    @functools.cached_property
    def rows(self) -> Rows:
        parts = [part.rows for part in self._parts]
        texts: list[str] = []
        for prefix, part in zip(self._prefixes, parts, strict=True):
            texts += [f"{prefix}/{text}" if prefix else text for text in part.ids.tolist()]
        classes = common_classes(parts)
        same = [part.renumbered(classes).labels for part in parts]
        labels = [numbers for numbers in same if numbers is not None]
        labelled = len(labels) == len(parts)
        captions = [part.texts for part in parts if part.texts is not None]
        return Rows(
            text_ids(texts),
            np.concatenate(labels) if labelled else None,
            classes if labelled else (),
            Texts(itertools.chain.from_iterable(captions)) if len(captions) == len(parts) else None,
        )

    def stamp(self) -> Iterator[str]:
        return itertools.chain.from_iterable(part.stamp() for part in self._parts)

    def chunks(self) -> Iterator[Chunk]:
        return itertools.chain.from_iterable(part.chunks() for part in self._parts)


class RenamedSource:
    """A source under another name, its classes called otherwise: ``classes`` maps a class name to the one to show."""

    def __init__(self, source: Source, name: str, classes: dict[str, str]) -> None:
        self.name = name
        self._source = source
        self._classes = classes

    @functools.cached_property
    def rows(self) -> Rows:
        rows = self._source.rows
        return replace(rows, classes=tuple(self._classes.get(name, name) for name in rows.classes))

    def stamp(self) -> Iterator[str]:
        return self._source.stamp()

    def chunks(self) -> Iterator[Chunk]:
        return self._source.chunks()


def chunk_rows(shape: Sequence[int]) -> int:
    """How many rows of an array of ``shape`` [N, ...] make a chunk."""
    return max(1, CHUNK_PIXELS // math.prod(shape[1:]))


def common_classes(parts: Sequence[Rows]) -> tuple[str, ...]:
    """Classes of all labelled parts together; an order that all of them share is kept, otherwise they are sorted."""
    tables = {part.classes for part in parts if part.labels is not None}
    if len(tables) == 1:
        return next(iter(tables))
    return class_order(itertools.chain.from_iterable(tables))


@contextlib.contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn what the system says of an unreadable file, or of a damaged packing, into one line about ``path``."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error, csv.Error) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def file_stamp(path: Path | str) -> str:
    """Size and time of change of a file; a missing file has a stamp too."""
    try:
        found = os.stat(path)
    except OSError as error:
        return f"? {error.errno}"
    return f"{found.st_size} {found.st_mtime_ns}"
