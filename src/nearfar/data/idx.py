"""IDX files, the form MNIST came in: a big-endian header with the shape, then the values; plain or gzipped."""

from __future__ import annotations

import contextlib
import functools
import gzip
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from nearfar.data.imageset import number_labels, row_ids
from nearfar.data.pixels import layout_of, to_nchw
from nearfar.data.sources import Chunk, Rows, Source, chunk_rows, file_stamp, readable
from nearfar.errors import InputError

# The four names of MNIST and its kin, with '-' or '.' between the parts and perhaps more before them:
# emnist-letters-train-images-idx3-ubyte.gz
_NAME = re.compile(
    r"(?P<set>.*?)(?P<split>train|t10k|test|validation|val)[-_.](?P<what>images|labels)[-_.]idx(?P<rank>[1-4])[-_.]ubyte(\.gz)?",
    re.IGNORECASE,
)
_TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}


class IdxSource:
    """Images of one IDX file, with the labels of another.

    Raises (when rows are asked for):
        InputError: one of the files is damaged or of another kind, or their numbers differ.
    """

    def __init__(self, images: Path, labels: Path | None) -> None:
        self.name = str(images)
        self._images = images
        self._labels = labels

    @functools.cached_property
    def rows(self) -> Rows:
        with open_idx(self._images) as (_, shape):
            layout_of(shape, self.name)
            count = shape[0]
        if self._labels is None:
            return Rows(row_ids(count))
        values = read_idx(self._labels)
        if values.ndim != 1:
            raise InputError(f"{self._labels} has the shape {list(values.shape)}; labels are one number for each image")
        if len(values) != count:
            raise InputError(
                f"{self._labels} has {len(values):,} labels, {self._images} has {count:,} images; there must be one per image"
            )
        numbers, classes = number_labels(values)
        return Rows(row_ids(count), numbers, classes)

    def stamp(self) -> Iterator[str]:
        yield f"{self._images.absolute()}\0{file_stamp(self._images)}"

    def chunks(self) -> Iterator[Chunk]:
        with open_idx(self._images) as (file, shape):
            layout = layout_of(shape, self.name)
            step = chunk_rows(shape)
            for start in range(0, shape[0], step):
                yield to_nchw(_values(file, self._images, (min(step, shape[0] - start), *shape[1:])), layout)
            _at_end(file, self._images, shape)


@contextlib.contextmanager
def open_idx(path: Path) -> Iterator[tuple[BinaryIO, tuple[int, ...]]]:
    """Open an IDX file of unsigned bytes, plain or gzipped: the file after its header, and the shape.

    Raises:
        InputError: the file cannot be read, is no IDX file, or holds another type.
    """
    with contextlib.ExitStack() as stack:
        with readable(path):
            file: BinaryIO = stack.enter_context(open(path, "rb"))
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                file = cast(BinaryIO, stack.enter_context(gzip.open(file)))
        zeros, kind, rank = struct.unpack(">HBB", _exactly(file, path, 4))
        if zeros or kind not in _TYPES or not 1 <= rank <= 4:
            raise InputError(f"{path} is not an IDX file: it does not begin with two zero bytes, a type and a rank")
        if kind != 0x08:
            raise InputError(f"{path} holds {_TYPES[kind]} values; expected unsigned bytes (type 0x08)")
        shape = struct.unpack(f">{rank}I", _exactly(file, path, 4 * rank))
        # Deflate shrinks at most 1,032 times; a header that claims more would cost memory before the first value is read.
        held, named = path.stat().st_size, math.prod(shape)
        if named > (held * 1032 if packed else held):
            raise InputError(f"{path} is cut short: its header names {named:,} values, the file has {held:,} bytes")
        yield file, shape


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """All values of an IDX file, as uint8 in its shape.

    Raises:
        InputError: as ``open_idx``, or the file is shorter or longer than its header says.
    """
    with open_idx(path) as (file, shape):
        values = _values(file, path, shape)
        _at_end(file, path, shape)
        return values


def idx_header(shape: tuple[int, ...]) -> bytes:
    """The header of an IDX file of unsigned bytes."""
    return struct.pack(f">HBB{len(shape)}I", 0, 0x08, len(shape), *shape)


def idx_name(name: str) -> tuple[str, str, str] | None:
    """Of the name of an IDX file: (which set, split, "images" or "labels"); None for any other name."""
    found = _NAME.fullmatch(name)
    return None if found is None else (found["set"], found["split"].lower(), found["what"].lower())


def labels_beside(images: Path) -> Path | None:
    """The labels file that belongs to an images file by its name, gzipped or not; None where there is none."""
    found = _NAME.fullmatch(images.name)
    if found is None:
        return None
    start, rank, end = found.start("what"), found.start("rank"), found.end("rank")
    between = images.name[found.end("what") : rank]
    plain = f"{images.name[:start]}labels{between}1{images.name[end:]}".removesuffix(".gz")
    return next((path for path in (images.with_name(plain), images.with_name(plain + ".gz")) if path.is_file()), None)


def idx_sources(paths: list[Path], where: Path) -> dict[str, Source]:
    """Sources by the split in the names of IDX files ("t10k" is the test split).

    Raises:
        InputError: two files claim the same split, or there are labels alone.
    """
    sources: dict[str, Source] = {}
    seen: dict[str, Path] = {}
    for path in paths:
        parts = idx_name(path.name)
        if parts is None or parts[2] != "images":
            continue
        split = {"t10k": "test", "val": "validation"}.get(parts[1], parts[1])
        if split in seen:
            if path.name == f"{seen[split].name}.gz":
                # The same file again; the plain one is quicker to read, and comes first in order.
                continue
            raise InputError(
                f"{where} holds the images of two {split} splits, {seen[split].name} and {path.name}; give one of the files"
            )
        seen[split] = path
        sources[split] = IdxSource(path, labels_beside(path))
    if not sources:
        raise InputError(f"{where} holds IDX labels but no images; expected a file such as train-images-idx3-ubyte.gz")
    return sources


def _values(file: BinaryIO, path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(_exactly(file, path, math.prod(shape)), dtype=np.uint8).reshape(shape)


def _at_end(file: BinaryIO, path: Path, shape: tuple[int, ...]) -> None:
    with readable(path):
        more = file.read(1)  # where a packed file ends, its checksum is compared
    if more:
        raise InputError(f"{path} is damaged: it is longer than the {list(shape)} values that its header names")


def _exactly(file: BinaryIO, path: Path, count: int) -> bytes:
    """Read ``count`` bytes, piece by piece so that a header cannot ask for memory that the file does not fill."""
    pieces, missing = [], count
    with readable(path):
        while missing and (piece := file.read(min(missing, 64 << 20))):
            pieces.append(piece)
            missing -= len(piece)
    if missing:
        raise InputError(f"{path} is cut short: {count:,} more bytes were expected, {count - missing:,} are there")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
