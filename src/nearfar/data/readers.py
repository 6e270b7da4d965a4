"""A path to the splits it holds: which reader, by what lies there. It decodes no pixel and reads no label."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nearfar.data.folders import (
    METADATA,
    SPLITS,
    folder_sources,
    is_image,
    list_files,
    metadata_sources,
    split_named,
)
from nearfar.data.idx import IdxSource, idx_name, idx_sources, labels_beside
from nearfar.data.imageset import text_ids
from nearfar.data.npz import npz_sources
from nearfar.data.parquet import ParquetSource
from nearfar.data.pixelcsv import CsvSource
from nearfar.data.sources import FileSource, Rows, Source
from nearfar.errors import InputError

_READ = (
    "a folder of images, image files, metadata.csv, IDX (train-images-idx3-ubyte.gz), a pixel table (.csv), .npz or .parquet"
)
_CSV = re.compile(r"(?:.*[-_.])?(?P<split>[a-z]+)\.csv(\.gz)?", re.IGNORECASE)
_SHARD = re.compile(r"(?P<split>[a-z]+)(?:[-_.].*)?\.parquet", re.IGNORECASE)


def open_path(path: Path, *, size: tuple[int, int] | None = None, flat: bool = False) -> dict[str, Source]:
    """Sources by split in the order train, validation, test; data without splits is "train".

    Args:
        path: a file or folder that exists.
        size: (H, W) of the rows of a pixel table, if they are not square.
        flat: take images in nested folders as unlabelled where the folders do not tell the classes clearly.

    Raises:
        InputError: nothing there can be read as images.
    """
    found = _open_folder(path, size, flat) if path.is_dir() else _open_file(path, size)
    return {split: found[split] for split in SPLITS if split in found}


def image_files(paths: Iterable[str]) -> Source:
    """Image files given one by one, unlabelled, with their paths as ids."""
    listed = list(paths)
    places = np.array(listed, dtype=np.dtypes.StringDType())
    return FileSource(listed[0] if len(listed) == 1 else f"{len(listed)} images", "", places, Rows(text_ids(listed)))


def _open_file(path: Path, size: tuple[int, int] | None) -> dict[str, Source]:
    lower = path.name.lower()
    if path.name == METADATA:
        return metadata_sources(path.parent, [path.name])
    if lower.endswith((".csv", ".csv.gz")):
        return {"train": CsvSource(path, size)}
    if lower.endswith(".npz"):
        return npz_sources(path)
    if lower.endswith((".parquet", ".pq")):
        return {"train": ParquetSource([path], path)}
    parts = idx_name(path.name)
    if parts is not None and parts[2] == "labels":
        raise InputError(f"{path} holds labels; give the file with the images, whose labels are found beside it")
    if is_image(lower):
        return {"train": image_files([str(path)])}
    if parts is not None or ".idx" in lower or lower.endswith(("ubyte", "ubyte.gz")):
        return {"train": IdxSource(path, labels_beside(path))}
    raise InputError(f"{path} is of no kind that is read here; expected {_READ}")


def _open_folder(root: Path, size: tuple[int, int] | None, flat: bool) -> dict[str, Source]:
    files = list_files(root)
    if METADATA in files:
        return metadata_sources(root, [METADATA])
    by_split = [path for path in files if path.count("/") == 1 and path.endswith(f"/{METADATA}")]
    tables = [path for path in by_split if split_named(path.partition("/")[0])]
    if tables:
        described = tuple(table.removesuffix(METADATA) for table in tables)
        rest = [path for path in files if is_image(path) and not path.startswith(described)]
        return metadata_sources(root, tables) | (folder_sources(root, rest, flat=flat) if rest else {})
    top = [path for path in files if "/" not in path]
    idx = [root / path for path in top if idx_name(path)]
    if idx:
        return idx_sources(idx, root)
    parquet = [path for path in files if path.lower().endswith(".parquet")]
    if parquet:
        return _parquet_sources(root, parquet)
    csvs = [path for path in top if path.lower().endswith((".csv", ".csv.gz"))]
    if csvs and not any(map(is_image, files)):
        return _csv_sources(root, csvs, size)
    return folder_sources(root, files, flat=flat)


def _csv_sources(root: Path, names: list[str], size: tuple[int, int] | None) -> dict[str, Source]:
    """Tables whose names end in a split; others (a sample of what to submit, say) are left alone."""
    by_split: dict[str, Source] = {}
    seen: dict[str, str] = {}
    for name in names:
        found = _CSV.fullmatch(name)
        split = split_named(found["split"]) if found else None
        if split is None:
            continue
        if split in seen:
            raise InputError(f"{root} holds two {split} splits, {seen[split]} and {name}; give one of the files")
        seen[split], by_split[split] = name, CsvSource(root / name, size)
    if not by_split:
        raise InputError(f"{root} holds {', '.join(names[:5])}; expected train.csv and test.csv, or give one of the files")
    return by_split


def _parquet_sources(root: Path, names: list[str]) -> dict[str, Source]:
    """Files by the split in their name (train-00000-of-00002.parquet), or all together when none names one."""
    by_split: dict[str, list[Path]] = {}
    for name in names:
        found = _SHARD.fullmatch(name.rpartition("/")[2])
        by_split.setdefault((split_named(found["split"]) if found else None) or "", []).append(root / name)
    if set(by_split) == {""}:
        return {"train": ParquetSource(by_split[""], root)}
    if "" in by_split:
        raise InputError(f"{by_split[''][0]} names no split, but files beside it do; rename it, or give one of the files")
    return {split: ParquetSource(paths, root) for split, paths in by_split.items()}
