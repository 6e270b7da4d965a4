"""Folders of image files: one sub-folder per class, or a table of labels and captions beside the images, or neither."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nearfar.data.decode import SUFFIXES
from nearfar.data.imageset import number_labels, text_ids
from nearfar.data.sources import FileSource, Rows, Source, readable
from nearfar.data.texts import COLUMNS, as_texts
from nearfar.errors import InputError, did_you_mean

METADATA = "metadata.csv"
SPLITS = ("train", "validation", "test")
_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def split_named(name: str) -> str | None:
    """The split that a folder, a column or a file calls by ``name``; None where it is no such name."""
    return _ALIASES.get(name.strip().lower())


def list_files(root: Path) -> list[str]:
    """Paths of all files under ``root``, relative to it and in order, hidden ones left out.

    Links to folders are followed, but not back to a folder that is being listed.

    Raises:
        InputError: a folder cannot be read.
    """
    return list(walk_files(root))


def walk_files(root: Path) -> Iterator[str]:
    """`list_files`, one by one: of one folder at a time the names are held."""
    return _walk(str(root), "", (os.path.realpath(root),))


def _walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    with readable(folder), os.scandir(folder) as found:
        entries = sorted((entry for entry in found if _visible(entry.name)), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
            if real not in above:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, real))
        elif entry.is_file():
            yield prefix + entry.name


def _visible(name: str) -> bool:
    # The second is what archives made on a Mac leave behind.
    return not name.startswith(".") and name != "__MACOSX"


def is_image(path: str) -> bool:
    """Whether the name ends as those of images do."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def folder_sources(root: Path, files: Sequence[str], *, flat: bool = False) -> dict[str, Source]:
    """Sources of the image files among ``files``, by split; without folders for splits all is "train".

    Args:
        flat: take every image, however deep, as unlabelled where folders do not tell the classes clearly.

    Raises:
        InputError: there is no image, or images lie beside folders of images.
    """
    images = [path for path in files if is_image(path)]
    if not images:
        raise InputError(f"{root} holds no images{_seen(files)}")
    by_split: dict[str, list[str]] = {}
    tops = dict.fromkeys(path.partition("/")[0] if "/" in path else "" for path in images)
    if all(split_named(top) for top in tops):
        for path in images:
            by_split.setdefault(split_named(path.partition("/")[0]) or "", []).append(path)
        depth = 1
    else:
        by_split["train"] = images
        depth = 0
    return {split: _class_source(root, paths, depth, flat) for split, paths in by_split.items()}


def _class_source(root: Path, paths: list[str], depth: int, flat: bool) -> Source:
    ids = text_ids(paths)
    parts = [path.split("/", depth + 1) for path in paths]
    nested = [len(part) > depth + 1 for part in parts]
    if any(nested) and not all(nested) and not flat:
        own, folder = nested.count(False), "/".join([str(root), *parts[0][:depth]])
        raise InputError(
            f"{folder} holds {own:,} images of its own beside folders of images; put each into the folder of its class"
        )
    if not all(nested):
        return FileSource(str(root), root, ids, Rows(ids))
    labels, classes = number_labels([part[depth] for part in parts])
    return FileSource(str(root), root, ids, Rows(ids, labels, classes))


def metadata_sources(root: Path, tables: Sequence[str]) -> dict[str, Source]:
    """Sources from tables with the columns file_name, perhaps label (or class), perhaps text (or caption) and perhaps split.

    Where there are captions, several rows of a split with one file and label are one image with several captions.

    Args:
        tables: paths of the tables relative to ``root``: one in it, or one in each of its folders for splits.

    Raises:
        InputError: a column is missing, a row is incomplete, or a split has a name that is not known.
    """
    found: dict[str, list[_Row]] = {}
    for table in tables:
        folder = table.rpartition("/")[0]
        for row in _read_metadata(root / table):
            row.path = f"{folder}/{row.path}" if folder else row.path
            found.setdefault(row.split or split_named(folder) or "train", []).append(row)
    if not found:
        raise InputError(f"{root / tables[0]} has no rows; expected one for each image")
    return {split: _described_source(root, rows) for split, rows in found.items()}


@dataclass
class _Row:
    """A row of a table; what has no column is None."""

    path: str
    label: str | None = None
    split: str | None = None
    texts: list[str] | None = None


def _described_source(root: Path, rows: list[_Row]) -> Source:
    for what, there in (
        ("labels", [row.label is not None for row in rows]),
        ("captions", [row.texts is not None for row in rows]),
    ):
        if any(there) and not all(there):
            raise InputError(
                f"{root}: {there.count(False):,} of {len(rows):,} images of one split come from a table without {what}"
            )
    captioned = rows[0].texts is not None
    rows = _together(rows) if captioned else rows
    paths = np.array([row.path for row in rows], dtype=np.dtypes.StringDType())
    about = Rows(text_ids(paths.tolist()), texts=as_texts((row.texts for row in rows), len(rows)) if captioned else None)
    labels = [row.label for row in rows if row.label is not None]
    if labels:
        numbers, classes = number_labels(labels)
        about = replace(about, labels=numbers, classes=classes)
    return FileSource(str(root), root, paths, about)


def _together(rows: list[_Row]) -> list[_Row]:
    """One row for each file and label, with the captions of all its rows."""
    found: dict[tuple[str, str | None], _Row] = {}
    for row in rows:
        first = found.setdefault((row.path, row.label), row)
        if first is not row:
            first.texts = [*(first.texts or []), *(row.texts or [])]
    return list(found.values())


def _read_metadata(table: Path) -> Iterator[_Row]:
    with readable(table), open(table, encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        header = [name.strip().lower() for name in next(reader, [])]
        if "file_name" not in header:
            near = did_you_mean("file_name", header)
            raise InputError(f"{table} has the columns {', '.join(header) or 'none'}; 'file_name' is missing{near}")
        at_file = header.index("file_name")
        at_label = next((header.index(name) for name in ("label", "class") if name in header), None)
        at_text = next((header.index(name) for name in COLUMNS if name in header), None)
        at_split = header.index("split") if "split" in header else None
        for cells in reader:
            if not cells:
                continue
            where = f"{table}, line {reader.line_num}"
            if len(cells) != len(header):
                raise InputError(f"{where} has {len(cells)} columns, expected {len(header)}")
            path, label = cells[at_file].strip(), None if at_label is None else cells[at_label].strip()
            if not path or label == "":
                raise InputError(f"{where}: {'label' if path else 'file_name'} is empty; every row needs one")
            if path.startswith("/") or ".." in path.split("/"):
                raise InputError(f"{where}: file_name is {path!r}; a table names files of its own folder alone")
            split = None if at_split is None else split_named(cells[at_split])
            if at_split is not None and split is None:
                raise InputError(f"{where}: split is {cells[at_split]!r}; expected train, validation or test")
            yield _Row(path, label, split, None if at_text is None else [cells[at_text]])


def _seen(files: Sequence[str]) -> str:
    if not files:
        return ": it is empty"
    kinds = Counter(os.path.splitext(path)[1].lower() or "without a suffix" for path in files)
    seen = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))
    return f": seen {seen}; images end in .png, .jpg, .webp, .tif, .bmp, .gif or the like"
