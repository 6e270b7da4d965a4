"""Parquet with an image column: struct{bytes, path} as Hugging Face writes it, or plain binary; labels as numbers or
text; captions as text or lists of texts.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nearfar.data.imageset import number_labels, text_ids
from nearfar.data.sources import ENCODED_ROWS, Chunk, Encoded, Rows, file_stamp, readable
from nearfar.data.texts import COLUMNS, as_texts
from nearfar.errors import InputError
from nearfar.files import NOT_JSON

_IMAGE = ("image", "img", "picture", "photo")
_LABEL = ("label", "labels", "class", "fine_label", "target", "y")


@dataclass(frozen=True)
class _Columns:
    """Which columns matter.

    Attributes:
        image: name of the image column.
        has_path: whether the images are structs that name a file.
        label: name of the label column, or None.
        classes: names of the numbers in the label column, where the file gives them.
        text: name of the column of captions, or None.
    """

    image: str
    has_path: bool
    label: str | None
    classes: tuple[str, ...] | None
    text: str | None


class ParquetSource:
    """The rows of one or more Parquet files, in order.

    Raises (when rows or pixels are read):
        InputError: a file is damaged, has no image column, or lacks labels in some rows.
    """

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self.name = str(paths[0] if len(paths) == 1 else root)
        self._paths = list(paths)

    @functools.cached_property
    def rows(self) -> Rows:
        texts: list[str] = []
        labels: list[Any] = []
        captions: list[Any] = []
        tables = set()
        for path in self._paths:
            with _parquet(path) as (file, columns):
                tables.add((columns.label, columns.classes, columns.text))
                wanted = [f"{columns.image}.path"] if columns.has_path else []
                wanted += [name for name in (columns.label, columns.text) if name]
                if not wanted:
                    texts += map(str, range(len(texts), len(texts) + file.metadata.num_rows))
                    continue
                for batch in file.iter_batches(1 << 16, columns=wanted, use_threads=False):
                    first = len(texts)
                    given = batch.column(columns.image).field("path").to_pylist() if columns.has_path else []
                    texts += [text or str(first + i) for i, text in enumerate(given or [None] * batch.num_rows)]
                    labels += batch.column(columns.label).to_pylist() if columns.label else []
                    captions += batch.column(columns.text).to_pylist() if columns.text else []
        if len(tables) > 1:
            what = "label column or class names" if len({table[:2] for table in tables}) > 1 else "column of captions"
            raise InputError(f"{self.name}: its files differ in their {what}; give them one by one")
        _, classes, text = tables.pop()
        rows = _rows(texts, labels, classes, self.name)
        return rows if text is None else replace(rows, texts=as_texts(captions, len(rows), f"{self.name}: the column {text!r}"))

    def stamp(self) -> Iterator[str]:
        for path in self._paths:
            yield f"{path.absolute()}\0{file_stamp(path)}"

    def chunks(self) -> Iterator[Chunk]:
        for path in self._paths:
            with _parquet(path) as (file, columns):
                row = 0
                for batch in file.iter_batches(ENCODED_ROWS, columns=[columns.image], use_threads=False):
                    images = batch.column(columns.image).to_pylist()
                    yield [_encoded(image, path, row + i) for i, image in enumerate(images)]
                    row += len(images)


class Described(NamedTuple):
    """Some rows: images still encoded, what the file calls them (None: nothing), labels as text (None: no label), captions."""

    images: list[Encoded]
    names: list[str | None]
    labels: list[str | None]
    texts: Sequence[tuple[str, ...]]


def row_groups(path: Path) -> list[tuple[int, int]]:
    """Rows and bytes of each row group of a file, from its footer alone.

    Raises:
        InputError: it is damaged, or has no image column.
    """
    with _parquet(path) as (file, _):
        groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
        return [(group.num_rows, group.total_byte_size) for group in groups]


def described(path: Path, groups: Sequence[int], *, skip: int = 0, rows: int = ENCODED_ROWS) -> Iterator[Described]:
    """The rows of some row groups without the first ``skip`` of them, at most ``rows`` at a time; nothing else is held.

    Raises:
        InputError: as `ParquetSource`.
    """
    with _parquet(path) as (file, columns):
        row = sum(file.metadata.row_group(number).num_rows for number in range(groups[0])) if groups else 0
        wanted = [name for name in (columns.image, columns.label, columns.text) if name]
        for batch in file.iter_batches(rows, row_groups=list(groups), columns=wanted, use_threads=False):
            passed = min(skip, batch.num_rows)
            skip, row, batch = skip - passed, row + passed, batch.slice(passed)
            if not batch.num_rows:
                continue
            images = batch.column(columns.image).to_pylist()
            labels = batch.column(columns.label).to_pylist() if columns.label else [None] * len(images)
            texts = batch.column(columns.text).to_pylist() if columns.text else [None] * len(images)
            yield Described(
                [_encoded(image, path, row + i) for i, image in enumerate(images)],
                [image.get("path") if isinstance(image, dict) else None for image in images],
                [_label_text(label, columns.classes) for label in labels],
                as_texts(texts, len(texts), f"{path}: the column {columns.text!r}"),
            )
            row += len(images)


def _label_text(label: Any, classes: tuple[str, ...] | None) -> str | None:
    if label is None or (classes is not None and label == -1):
        return None
    return classes[label] if classes is not None and isinstance(label, int) and 0 <= label < len(classes) else str(label)


def _rows(texts: list[str], labels: list[Any], classes: tuple[str, ...] | None, name: str) -> Rows:
    ids = text_ids(texts)
    # Test sets without labels hold -1 throughout.
    if all(label is None or (classes is not None and label == -1) for label in labels):
        return Rows(ids)
    if None in labels:
        raise InputError(f"{name}: row {labels.index(None)} (from 0) has no label; every row needs one, or none has one")
    if classes is None:
        numbers, classes = number_labels(labels if isinstance(labels[0], str) else np.asarray(labels))
        return Rows(ids, numbers, classes)
    numbers = np.asarray(labels, dtype=np.int64)
    if numbers.min() < 0 or numbers.max() >= len(classes):
        row = int(np.argmax((numbers < 0) | (numbers >= len(classes))))
        raise InputError(f"{name}: row {row} (from 0) has the label {numbers[row]}, and the file names {len(classes)} classes")
    return Rows(ids, numbers, classes)


def _encoded(image: Any, path: Path, row: int) -> Encoded:
    # A path without bytes is not followed: a file from elsewhere has no business naming files of this machine.
    inner = image.get("path") if isinstance(image, dict) else None
    content = image.get("bytes") if isinstance(image, dict) else image
    return f"{path}, row {row} (from 0)" + (f", {inner}" if inner else ""), content or b""


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[tuple[Any, _Columns]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        # Through a buffer, and not ahead: a row group may hold all images of a set.
        with readable(path), pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            yield file, _columns(file.schema_arrow, path)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {' '.join(str(error).split())}") from error


def _columns(schema: Any, path: Path) -> _Columns:
    import pyarrow.types as types

    features = _features(schema.metadata)
    images, labels, texts = {}, [], []
    for field in schema:
        if types.is_binary(field.type) or types.is_large_binary(field.type):
            images[field.name] = False
        elif types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            images[field.name] = field.type.get_field_index("path") >= 0
        value = field.type.value_type if types.is_dictionary(field.type) else field.type
        if types.is_integer(value) or types.is_string(value) or types.is_large_string(value):
            labels.append(field.name)
        if types.is_list(value) or types.is_large_list(value):
            value = value.value_type
        if types.is_string(value) or types.is_large_string(value):
            texts.append(field.name)
    image = _choose(list(images), _kind(features, "Image"), _IMAGE) or (next(iter(images)) if len(images) == 1 else None)
    if image is None:
        raise InputError(
            f"{path} has the columns {', '.join(schema.names)}; expected one image column, of bytes or struct{{bytes, path}}, "
            "named 'image' where there are several"
        )
    label = _choose(labels, _kind(features, "ClassLabel"), _LABEL)
    names = features.get(label, {}).get("names") if label else None
    text = _choose([name for name in texts if name != label], [], COLUMNS)
    return _Columns(image, images[image], label, tuple(map(str, names)) if isinstance(names, list) else None, text)


def _choose(columns: list[str], marked: list[str], usual: Sequence[str]) -> str | None:
    """The column that metadata marks, when it marks one; else the first of the usual names that there is."""
    marked = [name for name in marked if name in columns]
    if len(marked) == 1:
        return marked[0]
    lower = {name.lower(): name for name in columns}
    return next((lower[name] for name in usual if name in lower), None)


def _kind(features: dict[str, Any], kind: str) -> list[str]:
    return [name for name, feature in features.items() if feature.get("_type") == kind]


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """What the ``datasets`` library notes of the columns; nothing where there is no such note or it is damaged."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (*NOT_JSON, KeyError, TypeError, AttributeError):
        return {}
