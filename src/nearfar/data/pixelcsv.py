"""Pixel tables: one image a row, one pixel a column, perhaps a label; read by Arrow, piece by piece.

A fault is named by line and column. Arrow's reader finds that there is one at full speed; only then is the text read again,
slowly, to say where.
"""

from __future__ import annotations

import csv
import functools
import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

import numpy as np
import numpy.typing as npt

from nearfar.data.imageset import number_labels, row_ids, text_ids
from nearfar.data.sources import Chunk, Rows, file_stamp, readable
from nearfar.errors import InputError

_LABEL = frozenset({"label", "labels", "class", "target", "y"})
_ID = frozenset({"id", "imageid", "image_id"})
_GOOD = frozenset(str(value) for value in range(256))
_BLOCK_BYTES = 8 << 20
_MEND = "pixels are whole numbers from 0 to 255"


@dataclass(frozen=True)
class _Layout:
    """Where things are in a row.

    Attributes:
        names: column names, as the header gives them, or column 1, column 2, ...
        header: whether the first line is a header.
        label, ids: position of that column, or None.
        size: (H, W).
    """

    names: tuple[str, ...]
    header: bool
    label: int | None
    ids: int | None
    size: tuple[int, int]

    @property
    def pixels(self) -> list[int]:
        return [column for column in range(len(self.names)) if column not in (self.label, self.ids)]


class CsvSource:
    """A pixel table, plain or gzipped, with or without a header, a label column and an id column.

    Args:
        size: (H, W) of the images in the file, for those that are not square.

    Raises (when it is made, or its rows or pixels are read):
        InputError: the columns cannot be an image, or a value is missing, not a number, or out of range.
    """

    def __init__(self, path: Path, size: tuple[int, int] | None = None) -> None:
        self.name = str(path)
        self._path = path
        self._layout = _layout(path, size)

    @functools.cached_property
    def rows(self) -> Rows:
        import pyarrow as pa

        layout = self._layout
        # With neither label nor id any column will do: it is only counted.
        columns = [column for column in (layout.label, layout.ids) if column is not None] or layout.pixels[:1]
        texts: dict[int, list[str]] = {column: [] for column in columns}
        try:
            for batch in self._batches(columns, "string"):
                for position, column in enumerate(columns):
                    texts[column] += batch.column(position).to_pylist()
        except pa.ArrowInvalid as error:
            self._explain(error)
        count = len(texts[columns[0]])
        ids = row_ids(count) if layout.ids is None else text_ids(texts[layout.ids])
        if layout.label is None:
            return Rows(ids)
        labels = [text.strip() for text in texts[layout.label]]
        if "" in labels:
            row = labels.index("")
            raise InputError(f"{self._place(row, layout.label)} is empty; every row needs a label, or none has one")
        numbers, classes = number_labels(labels)
        return Rows(ids, numbers, classes)

    def stamp(self) -> Iterator[str]:
        yield f"{self._path.absolute()}\0{file_stamp(self._path)}\0{self._layout.size}"

    def chunks(self) -> Iterator[Chunk]:
        import pyarrow as pa

        done = 0
        try:
            for batch in self._batches(self._layout.pixels, "uint8"):
                if any(column.null_count for column in batch.columns):
                    break
                yield self._images(batch, np.dtype(np.uint8))
                done += batch.num_rows
            else:
                return
        except pa.ArrowInvalid:
            pass
        yield from self._slowly(done)

    def _slowly(self, done: int) -> Iterator[Chunk]:
        """All rows from ``done`` on as floats: 12.0 is a pixel too; anything else is a fault, which is looked up."""
        import pyarrow as pa

        row = 0
        try:
            for batch in self._batches(self._layout.pixels, "float64"):
                values = self._images(batch, np.dtype(np.float64))
                with np.errstate(invalid="ignore"):
                    fits = (values >= 0) & (values <= 255) & (values == np.floor(values))
                if not fits.all():
                    self._explain(None, row + int(np.argmin(fits.reshape(len(fits), -1).all(axis=1))))
                if row + len(values) > done:
                    yield values[max(0, done - row) :].astype(np.uint8)
                row += len(values)
        except pa.ArrowInvalid as error:
            self._explain(error)

    def _images(self, batch: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        values = np.empty((batch.num_rows, batch.num_columns), dtype=dtype)
        for position, column in enumerate(batch.columns):
            values[:, position] = column.to_numpy(zero_copy_only=False)
        return values.reshape(-1, 1, *self._layout.size)

    def _batches(self, columns: list[int], kind: str) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.csv

        # Names may repeat; positions do not.
        names = [str(position) for position in range(len(self._layout.names))]
        chosen = [names[column] for column in columns]
        type_ = getattr(pa, kind)()
        packed = "gzip" if _is_gzip(self._path) else None
        with readable(self._path), pa.input_stream(str(self._path), compression=packed) as stream:
            reader = pyarrow.csv.open_csv(
                stream,
                pyarrow.csv.ReadOptions(
                    column_names=names, skip_rows=int(self._layout.header), block_size=max(_BLOCK_BYTES, 64 * len(names))
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=chosen, column_types={name: type_ for name in chosen}, strings_can_be_null=False
                ),
            )
            with reader:
                yield from reader

    def _place(self, row: int, column: int) -> str:
        line = row + 1 + self._layout.header
        return f"{self._path}: row {row + 1} (line {line}), column {self._layout.names[column]!r}"

    def _explain(self, error: Exception | None, start: int = 0) -> NoReturn:
        """Find the first fault at or after row ``start`` in the text, and raise it."""
        layout = self._layout
        with _open_text(self._path) as file, readable(self._path):
            reader = csv.reader(file)
            if layout.header:
                next(reader, None)
            for row, cells in enumerate(cells for cells in reader if cells):
                if row < start:
                    continue
                if len(cells) != len(layout.names):
                    raise InputError(
                        f"{self._path}: row {row + 1} (line {row + 1 + layout.header}) has {len(cells)} columns, "
                        f"expected {len(layout.names)}"
                    )
                if _GOOD.issuperset(cells):
                    continue
                for column in layout.pixels:
                    if fault := _fault(cells[column].strip()):
                        raise InputError(f"{self._place(row, column)} {fault}; {_MEND}")
        said = " ".join(str(error or "it changed while it was read").split())
        raise InputError(f"{self._path} cannot be read as a pixel table: {said}") from error


def _fault(text: str) -> str | None:
    """What is wrong with a pixel, if anything."""
    if not text or text.lower() in ("na", "n/a", "null", "none", "#n/a"):
        return f"is missing ({text!r})" if text else "is missing"
    try:
        value = float(text)
    except ValueError:
        return f"is {text!r}, not a number"
    if math.isnan(value):
        return "is NaN"
    if not 0 <= value <= 255:
        return f"is {text}, out of range"
    return None if value == int(value) else f"is {text}, a fraction (multiply pixels in [0, 1] by 255)"


def _layout(path: Path, size: tuple[int, int] | None) -> _Layout:
    """Work the columns out from the first line."""
    with _open_text(path) as file, readable(path):
        first = next((cells for cells in csv.reader(file) if cells), None)
    if first is None:
        raise InputError(f"{path} is empty; expected a table with one image a row, one pixel a column")
    first = [cell.strip() for cell in first]
    header = _is_header(first)
    names = tuple(first) if header else tuple(f"column {number}" for number in range(1, len(first) + 1))
    lower = [name.lower() for name in first] if header else []
    label = next((column for column, name in enumerate(lower) if name in _LABEL), None)
    ids = next((column for column, name in enumerate(lower) if name in _ID), None)
    width = len(first) - (label is not None) - (ids is not None)
    if not header and not _is_image(width, size) and _is_image(width - 1, size):
        label, width = 0, width - 1
    if not _is_image(width, size):
        hint = f"size={size} has {size[0] * size[1]:,}" if size else "not a square; give size=(height, width)"
        raise InputError(
            f"{path} has {width:,} pixel columns ({hint}); expected one column for each pixel, and before them perhaps 'label'"
        )
    side = math.isqrt(width)
    return _Layout(names, header, label, ids, (side, side) if side * side == width or size is None else size)


def _is_image(width: int, size: tuple[int, int] | None) -> bool:
    return width > 0 and (math.isqrt(width) ** 2 == width or (size is not None and width == size[0] * size[1]))


def _is_header(cells: list[str]) -> bool:
    """A header has words in most columns, or names its label, or counts the columns as data frames do."""
    words = sum(_number(cell) is None for cell in cells)
    if 2 * words > len(cells) or cells[0].lower() in _LABEL | _ID:
        return True
    rest = cells if _number(cells[0]) is not None else cells[1:]
    return len(rest) > 3 and rest in ([str(n) for n in range(len(rest))], [str(n) for n in range(1, len(rest) + 1)])


def _number(text: str) -> float | None:
    # An empty cell is a missing number, not a word.
    try:
        return float(text) if text else 0.0
    except ValueError:
        return None


def _open_text(path: Path) -> TextIO:
    with readable(path):
        opened = (gzip.open if _is_gzip(path) else open)(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
        return cast(TextIO, opened)


def _is_gzip(path: Path) -> bool:
    with readable(path), open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"
