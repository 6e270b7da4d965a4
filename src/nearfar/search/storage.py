"""An index as a folder: arrays in .npy files, the file of an engine, and a manifest that names all with sizes and hashes.

A file is called after its content (``vectors-<16 hex digits>.npy``), so a new state never overwrites an old one. The
manifest ``index.json`` is replaced last, in one step: whoever reads finds the state before or the state after. Files
that no manifest names are removed by the next write. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.files import (
    explain_os_errors,
    hash_file,
    make_folder,
    only_writer,
    read_json,
    sync_folder,
    write_atomic,
    write_json,
)
from nearfar.search.vectors import LARGEST

MANIFEST = "index.json"
_FORMAT = "nearfar-index"
_PLAIN, _WITH_ENGINE = 1, 2
"""Versions of the format. An index without an engine is written as ever, so that an earlier nearfar can read it."""
_OWN_FILE = re.compile(r"(vectors|ids|labels|names|keys|engine)-[0-9a-f]{16}\.(npy|json|bin)")
_BLOCK = 1 << 24
_LOOKED_THROUGH = 1 << 25
"""Numbers of vectors that are looked through when an index is opened, which takes some hundredths of a second."""

Names = dict[str, list[str]]


class StoredEngine(NamedTuple):
    """An approximate engine as it is stored.

    ``keys`` [N] are its keys of the rows (-1: it does not know the row), None if they are the numbers of the rows;
    ``given`` is how many keys were given out. ``write`` writes its file, and ``path`` is where that was found.
    """

    name: str
    settings: dict[str, Any]
    keys: npt.NDArray[np.int64] | None
    given: int
    write: Callable[[Path], None] | None = None
    path: Path | None = None


class Stored(NamedTuple):
    """What a folder holds: ``vectors`` [N, D] (a read-only map of the file), ``ids`` [N], ``labels`` [N] or None.

    ``backend`` is what was asked for, and ``built`` what was chosen, why, and what it measured.
    """

    metric: str
    vectors: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[Any] | None
    model_hash: str | None
    names: Names
    backend: str = "auto"
    built: Mapping[str, Any] = MappingProxyType({})
    engine: StoredEngine | None = None


def write_index(folder: Path | str, stored: Stored) -> None:
    """Write an index to ``folder``; a crash at any moment leaves the earlier index there readable.

    Raises:
        InputError: the folder holds something else, another process is writing to it, or the disk is full.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder for the index")
    if (folder / MANIFEST).exists():
        _check_format(folder / MANIFEST, read_json(folder / MANIFEST))
    with explain_os_errors(folder):
        make_folder(folder)
    with only_writer(folder):
        files = {"vectors": _write_array(folder, "vectors", stored.vectors)}
        files["ids"] = _write_array(folder, "ids", stored.ids)
        if stored.labels is not None:
            files["labels"] = _write_array(folder, "labels", stored.labels)
        if stored.names:
            content = json.dumps(stored.names, ensure_ascii=False).encode()
            files["names"] = _write_content(folder, "names", ".json", [content])
        engine = stored.engine
        if engine is not None and engine.write is not None:
            files["engine"] = _write_engine(folder, engine.write)
            if engine.keys is not None:
                files["keys"] = _write_array(folder, "keys", engine.keys)
        rows, dimensions = stored.vectors.shape
        manifest = {
            "format": _FORMAT,
            "version": _PLAIN if engine is None else _WITH_ENGINE,
            "metric": stored.metric,
            "rows": rows,
            "dimensions": dimensions,
            "model_hash": stored.model_hash,
            "files": files,
            "backend": stored.backend,
            "built": dict(stored.built),
        }
        if engine is not None:
            manifest["engine"] = {"name": engine.name, "keys_given": engine.given, "settings": engine.settings}
        sync_folder(folder)  # the files are there for good before the manifest names them
        write_json(folder / MANIFEST, manifest)
        _sweep(folder, keep={entry["name"] for entry in files.values()})


def read_index(folder: Path | str, *, verify: bool = False, mapped: bool = True) -> Stored:
    """Open the index in ``folder``; vectors are ``mapped``, or else read. ``verify`` also compares every file's hash.

    The engine's file is named and not opened.

    Raises:
        InputError: a file is missing, truncated, damaged or not of an index.
    """
    folder = Path(folder)
    while True:
        stamp = state_of(folder)
        manifest = _read_manifest(folder)
        try:
            return _read_files(folder, manifest, verify, mapped)
        except FileNotFoundError as error:
            # A writer may have replaced the index between the reading of the manifest and of the files it names.
            if state_of(folder) == stamp:
                raise InputError(f"{error.filename} is missing; build the index again") from None


def state_of(folder: Path | str) -> tuple[int, int] | None:
    """Another one once the folder holds another state of the index; None where it holds none."""
    try:
        found = (Path(folder) / MANIFEST).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} holds no index: {MANIFEST} is missing")
    manifest = read_json(path)
    _check_format(path, manifest)
    return manifest


def _check_format(path: Path, manifest: Mapping[str, Any]) -> None:
    if manifest.get("format") != _FORMAT:
        raise InputError(f"{path} does not describe a nearfar index; choose another folder")
    if manifest.get("version") not in (_PLAIN, _WITH_ENGINE):
        raise InputError(
            f"{path} has version {manifest.get('version')!r}, expected at most {_WITH_ENGINE}; "
            f"build the index again, or use the nearfar that wrote it"
        )


def _read_files(folder: Path, manifest: Mapping[str, Any], verify: bool, mapped: bool) -> Stored:
    path = folder / MANIFEST
    rows, dimensions, metric = manifest.get("rows"), manifest.get("dimensions"), manifest.get("metric")
    files, model_hash = manifest.get("files"), manifest.get("model_hash")
    if not (
        isinstance(rows, int)
        and isinstance(dimensions, int)
        and isinstance(metric, str)
        and isinstance(files, dict)
        and {"vectors", "ids"} <= set(files)
    ):
        raise InputError(f"{path} is damaged: it lacks rows, dimensions, metric or the names of the files")
    if not (model_hash is None or isinstance(model_hash, str)):
        raise InputError(f"{path} is damaged: model_hash is {model_hash!r}")
    paths = {what: _check_file(folder, what, entry, verify) for what, entry in files.items()}
    shape: tuple[Any, ...] = (rows, dimensions)
    vectors = _read_array(paths["vectors"], np.float32, shape, mapped=mapped)
    if 0 < vectors.size <= _LOOKED_THROUGH and not (vectors.min() >= -LARGEST and vectors.max() <= LARGEST):  # NaN fails both
        raise InputError(f"{paths['vectors']} is damaged: its vectors are not all finite numbers; build the index again")
    ids = _read_array(paths["ids"], np.int64, shape[:1])
    labels = _read_array(paths["labels"], None, shape[:1]) if "labels" in paths else None
    names = read_json(paths["names"]) if "names" in paths else {}
    if not all(isinstance(given, list) and all(isinstance(name, str) for name in given) for given in names.values()):
        raise InputError(f"{paths['names']} is damaged: expected lists of names")
    backend, built = manifest.get("backend", "auto"), manifest.get("built", {})
    if not isinstance(backend, str) or not isinstance(built, dict):
        raise InputError(f"{path} is damaged: it says wrongly how the index was built")
    return Stored(str(metric), vectors, ids, labels, model_hash, names, backend, built, _engine_of(path, manifest, paths, rows))


def _engine_of(path: Path, manifest: Mapping[str, Any], paths: Mapping[str, Path], rows: int) -> StoredEngine | None:
    """Return what the manifest at ``path`` says of an engine, checked; None if the index has none."""
    about = manifest.get("engine")
    if about is None:
        return None
    about = about if isinstance(about, dict) else {}
    name, settings, given = about.get("name"), about.get("settings"), about.get("keys_given")
    known = isinstance(name, str) and isinstance(settings, dict) and "engine" in paths
    if not known or not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise InputError(f"{path} is damaged: it describes its engine wrongly")
    keys = _read_array(paths["keys"], np.int64, (rows,)) if "keys" in paths else None
    if keys is None and given != rows:
        raise InputError(f"{path} is damaged: its engine knows {given:,} vectors, the index has {rows:,}")
    if keys is not None:
        held = keys[: int((keys >= 0).sum())]
        # Those that the engine does not know come last, and no key belongs to two rows.
        if (held < 0).any() or (keys >= given).any() or len(np.unique(held)) < len(held):
            raise InputError(f"{paths['keys']} is damaged: it holds keys that cannot be; build the index again")
    return StoredEngine(str(name), dict(settings or {}), keys, given, path=paths["engine"])


def _check_file(folder: Path, what: str, entry: Any, verify: bool) -> Path:
    """Return the path of a file that the manifest names, once its size (and hash) agree."""
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not _OWN_FILE.fullmatch(name) or not name.startswith(f"{what}-"):
        raise InputError(f"{folder / MANIFEST} is damaged: {name!r} is no name for the file of the {what}")
    path = folder / name
    size = path.stat().st_size
    if size != entry.get("bytes"):
        raise InputError(f"{path} has {size:,} bytes, expected {entry.get('bytes')}; build the index again")
    if verify and hash_file(path) != entry.get("sha256"):
        raise InputError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}; build the index again")
    return path


def _read_array(path: Path, dtype: npt.DTypeLike | None, shape: tuple[int, ...], *, mapped: bool = False) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # a header is read as Python text, and fails in as many ways as that
        raise InputError(f"{path} is damaged: {str(error)[:200]}; build the index again") from None
    wrong_type = array.dtype != dtype if dtype is not None else array.dtype.kind not in "biufU"
    if wrong_type or array.shape != shape or not array.flags.c_contiguous:
        expected = "labels" if dtype is None else f"{np.dtype(dtype)} in row order,"
        raise InputError(f"{path} holds {array.dtype} {array.shape}, expected {expected} {shape}")
    return array


def _write_array(folder: Path, what: str, array: npt.NDArray[Any]) -> dict[str, Any]:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    step = max(1, _BLOCK // max(1, array.itemsize * int(np.prod(array.shape[1:]))))
    parts = (np.ascontiguousarray(array[at : at + step]).tobytes() for at in range(0, len(array), step))
    return _write_content(folder, what, ".npy", _chain(header.getvalue(), parts))


def _write_engine(folder: Path, write: Callable[[Path], None]) -> dict[str, Any]:
    """Let an engine write its file, name it after its content, and return what the manifest says of it."""
    pending = folder / "engine-pending"
    with _or_nothing(pending):
        write(pending)
        with pending.open("rb") as file:
            os.fsync(file.fileno())
        digest, size = hash_file(pending), pending.stat().st_size
        name = f"engine-{digest[:16]}.bin"
        os.replace(pending, folder / name)
    return {"name": name, "bytes": size, "sha256": digest}


@contextlib.contextmanager
def _or_nothing(pending: Path) -> Iterator[None]:
    """Leave no part of a file behind that could not be written."""
    with explain_os_errors(pending.parent):
        try:
            yield
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                pending.unlink()
            raise


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _write_content(folder: Path, what: str, suffix: str, parts: Iterator[bytes] | Sequence[bytes]) -> dict[str, Any]:
    """Write a file called after its hash, and return what the manifest says of it."""
    digest, size = hashlib.sha256(), 0
    pending = folder / f"{what}-pending"
    with _or_nothing(pending):
        with write_atomic(pending) as file:
            for part in parts:
                file.write(part)
                digest.update(part)
                size += len(part)
        name = f"{what}-{digest.hexdigest()[:16]}{suffix}"
        os.replace(pending, folder / name)
    return {"name": name, "bytes": size, "sha256": digest.hexdigest()}


def _sweep(folder: Path, keep: set[str]) -> None:
    """Remove the files of earlier states and of writers that were killed."""
    for path in folder.iterdir():
        if path.name in keep:
            continue
        left_over = re.fullmatch(r"\.?(vectors|ids|labels|names|keys|engine)-pending(\..*\.part)?", path.name)
        if _OWN_FILE.fullmatch(path.name) or left_over:
            with contextlib.suppress(OSError):  # the new state is there, whatever becomes of the old one
                path.unlink()
