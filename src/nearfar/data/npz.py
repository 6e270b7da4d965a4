"""NumPy archives: arrays of images and labels in one file, streamed, so that a small archive cannot ask for much memory."""

from __future__ import annotations

import contextlib
import functools
import math
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from nearfar.data.imageset import number_labels, row_ids
from nearfar.data.pixels import layout_of, to_nchw, to_uint8
from nearfar.data.sources import Chunk, Rows, Source, chunk_rows, file_stamp, readable
from nearfar.data.texts import COLUMNS, as_texts
from nearfar.errors import InputError

# By split: names that the images and the labels go by.
_NAMES: dict[str, list[tuple[str, str]]] = {
    "train": [("x_train", "y_train"), ("X_train", "y_train"), ("train_images", "train_labels")],
    "validation": [("x_val", "y_val"), ("X_val", "y_val"), ("val_images", "val_labels")],
    "test": [("x_test", "y_test"), ("X_test", "y_test"), ("test_images", "test_labels")],
}
_ALONE = [("images", "labels"), ("x", "y"), ("X", "y"), ("images", "y"), ("x", "labels"), ("X", "labels")]
_LABEL_BYTES = 1 << 30


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    columns_first: bool


class NpzSource:
    """The images in one member of an archive, with the labels in another, and perhaps the captions in a third.

    Raises (when rows or pixels are read):
        InputError: the archive is damaged, the numbers differ, or the arrays cannot be images and labels.
    """

    def __init__(self, path: Path, images: str, labels: str | None, texts: str | None = None) -> None:
        self.name = f"{path}: {images!r}"
        self._path = path
        self._images = images
        self._labels = labels
        self._texts = texts

    @functools.cached_property
    def rows(self) -> Rows:
        with _member(self._path, self._images) as (_, header):
            layout_of(header.shape, self.name)
            count = header.shape[0]
        rows = Rows(row_ids(count))
        if self._labels is not None:
            numbers, classes = number_labels(self._read(self._labels, count))
            rows = replace(rows, labels=numbers, classes=classes)
        if self._texts is not None:
            rows = replace(rows, texts=as_texts(self._read(self._texts, count, texts=True).tolist(), count))
        return rows

    def stamp(self) -> Iterator[str]:
        yield f"{self._path.absolute()}\0{self._images}\0{file_stamp(self._path)}"

    def chunks(self) -> Iterator[Chunk]:
        with _member(self._path, self._images) as (file, header):
            layout = layout_of(header.shape, self.name)
            if header.columns_first:
                raise InputError(f"{self.name} lies column by column; save np.ascontiguousarray(images)")
            step = chunk_rows(header.shape)
            for start in range(0, header.shape[0], step):
                shape = (min(step, header.shape[0] - start), *header.shape[1:])
                yield to_uint8(to_nchw(_values(file, shape, header.dtype, self.name), layout), self.name)

    def _read(self, name: str, count: int, *, texts: bool = False) -> npt.NDArray[Any]:
        """Labels [N], or captions [N] or [N, M]."""
        where = f"{self._path}: {name!r}"
        with _member(self._path, name) as (file, header):
            shape = header.shape[:1] if header.shape[1:] == (1,) else header.shape
            if texts and (len(shape) > 2 or header.dtype.kind != "U" or header.columns_first):
                raise InputError(
                    f"{where} is {header.dtype} {list(header.shape)}; captions must be texts [N], or [N, M] for M each"
                )
            if not texts and (len(shape) != 1 or header.dtype.kind not in "iuU"):
                raise InputError(
                    f"{where} is {header.dtype} {list(header.shape)}; labels must be [N] whole numbers or texts "
                    "(for one column per class save labels.argmax(1))"
                )
            if shape[0] != count:
                raise InputError(
                    f"{where} has {shape[0]:,} entries, {self._images!r} has {count:,} images; there must be one per image"
                )
            if (needed := math.prod(shape) * header.dtype.itemsize) > _LABEL_BYTES:
                mend = "shorten them, or use Parquet" if texts else "save labels as numbers"
                raise InputError(f"{where} needs {needed:,} bytes; {mend}")
            return _values(file, shape, header.dtype, where)


def npz_sources(path: Path) -> dict[str, Source]:
    """Sources by split; an archive without splits is "train".

    Raises:
        InputError: the archive cannot be read, or has no array of a name that is known.
    """
    with _archive(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
    sources: dict[str, Source] = {}
    for split, pairs in _NAMES.items():
        if pair := next((pair for pair in pairs if pair[0] in names), None):
            sources[split] = NpzSource(path, pair[0], pair[1] if pair[1] in names else None, _texts_beside(pair[0], names))
    if not sources:
        pairs = [pair for pair in _ALONE if pair[0] in names]
        if not pairs:
            held = ", ".join(sorted(names)) or "nothing"
            raise InputError(f"{path} holds {held}; expected images and labels, x and y, or x_train, y_train, x_test, y_test")
        images, labels = next((pair for pair in pairs if pair[1] in names), pairs[0])
        sources["train"] = NpzSource(path, images, labels if labels in names else None, _texts_beside("", names))
    return sources


def _texts_beside(images: str, names: set[str]) -> str | None:
    """The captions that belong to the array ``images``: ``text_train`` to ``x_train``, ``train_text`` to ``train_images``."""
    split = next((one for one in ("train", "val", "test") if one in images), None)
    forms = ("{text}",) if split is None else ("{text}_{split}", "{split}_{text}")
    return next((name for text in COLUMNS for form in forms if (name := form.format(text=text, split=split)) in names), None)


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with readable(path), zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, UnicodeDecodeError, struct.error) as error:
        # RuntimeError is how a password is asked for.
        raise InputError(f"{path} is not a readable .npz archive: {error}") from error


@contextlib.contextmanager
def _member(path: Path, name: str) -> Iterator[tuple[IO[bytes], _Header]]:
    """Open one array of the archive: the stream after its header, and the header."""
    with _archive(path) as archive:
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as file:
            try:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
                shape, columns_first, dtype = read(file)
            except (zipfile.BadZipFile, OSError):
                raise
            except Exception as error:  # a header is read as Python text, and fails in as many ways as that
                raise InputError(f"{path}: {name!r} is not a plain array ({error})") from error
            if dtype.hasobject or dtype.kind == "V":
                raise InputError(f"{path}: {name!r} holds Python objects, which are never loaded; save a plain array")
            if not shape:
                raise InputError(f"{path}: {name!r} is a single value; expected an array with one entry for each image")
            if math.prod(shape) * dtype.itemsize > info.file_size:
                raise InputError(f"{path}: {name!r} is damaged: it is shorter than the shape {list(shape)} in its header")
            yield file, _Header(shape, dtype, columns_first and len(shape) > 1)


def _values(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> npt.NDArray[Any]:
    wanted = math.prod(shape) * dtype.itemsize
    with readable(where):
        content = file.read(wanted)
    if len(content) != wanted:
        raise InputError(f"{where} is cut short: {wanted:,} more bytes were expected, {len(content):,} are there")
    return np.frombuffer(content, dtype=dtype).reshape(shape)
