"""The folder that embeddings go to: Parquet parts, and a manifest that says what they are of. It computes nothing.

A part is written beside its place, renamed, and then noted in ``parts.jsonl``, one line a part, flushed to the disk. When all
are there, ``manifest.json`` takes the notes over and says ``finished``. So a process may end at any moment: what is noted is
whole, what is not noted is written again under the same name. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import nearfar
from nearfar.embedding.shards import Plan
from nearfar.errors import InputError
from nearfar.files import NOT_JSON, explain_os_errors, hash_file, read_json, write_atomic, write_json
from nearfar.search.vectors import METRICS

MANIFEST, NOTES, NAMES, SKIPPED = "manifest.json", "parts.jsonl", "images.list", "skipped.txt"
_FORMAT, _VERSION = "nearfar-embeddings", 1
_SKIPPED_KEY = b"nearfar.skipped"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """A finished part.

    Attributes:
        name: of its file.
        shard, block: the numbers of its shard and of the block of rows within it.
        read: rows of the shard that it covers.
        rows: of them embedded; the rest could not be read.
        bytes, sha256: of its file.
    """

    name: str
    shard: int
    block: int
    read: int
    rows: int
    bytes: int
    sha256: str

    @property
    def place(self) -> tuple[int, int]:
        """What parts are in order by."""
        return self.shard, self.block


def part_name(shard: int, block: int) -> str:
    """The name of a part; in order of names parts are in order of the data."""
    return f"part-{shard:06d}-{block:04d}.parquet"


def column_types(dim: int) -> dict[str, str]:
    """The columns of a part, with their types as Arrow writes them."""
    return {"id": "string", "label": "string", "text": "string", "embedding": f"fixed_size_list<float>[{dim}]"}


def write_part(
    folder: Path,
    shard: int,
    block: int,
    read: int,
    z: Floats,
    ids: list[str],
    labels: list[str | None],
    texts: list[str | None],
    skipped: list[str],
) -> Part:
    """Write one part; it is there whole or not at all.

    Args:
        folder: of the embeddings.
        shard, block: its place.
        read: rows of the shard that it covers.
        z: float32 [n, D].
        ids, labels, texts: [n].
        skipped: a line for each row that could not be read.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(z).ravel(), pa.float32()), z.shape[1])
    text = pa.string()
    columns = {"id": pa.array(ids, text), "label": pa.array(labels, text), "text": pa.array(texts, text)}
    table = pa.table(columns | {"embedding": vectors})
    if skipped:
        table = table.replace_schema_metadata({_SKIPPED_KEY: json.dumps(skipped).encode()})
    path = folder / part_name(shard, block)
    # Numbers that look random gain nothing by packing, names do.
    packing = {"id": "zstd", "label": "zstd", "text": "zstd", "embedding.list.element": "none"}
    with write_atomic(path) as file:
        pq.write_table(table, file, compression=packing, use_dictionary=["label"], write_statistics=False)
    return Part(path.name, shard, block, read, len(ids), path.stat().st_size, hash_file(path))


def write_file(out: Path, z: Floats, ids: list[str], labels: npt.NDArray[Any] | None) -> None:
    """Write embeddings [N, D] with ids and labels, all that were made, to one ``.npz`` or ``.parquet`` file.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    with write_atomic(out) as file:
        if out.suffix == ".npz":
            columns: dict[str, Any] = {"embedding": z, "id": np.array(ids)}
            np.savez(file, allow_pickle=False, **columns, **({} if labels is None else {"label": labels}))
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = {"id": pa.array(ids), "embedding": pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), z.shape[1])}
            pq.write_table(pa.table(table | ({} if labels is None else {"label": pa.array(labels.tolist())})), file)


class Writer:
    """The folder as its one writer holds it: what is done, and the notes of what comes.

    Args:
        folder: claimed; empty, or begun with the same model and data (see `begun_with`).
        about: of the model; see `nearfar.embedding.stream.describe`.
        plan: of the data.

    Attributes:
        done: finished parts by place.
        finished: whether nothing is left to do.

    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], plan: Plan, *, rows: int) -> None:
        self.folder, self.plan, self.rows = folder, plan, rows
        self._head = {"format": _FORMAT, "version": _VERSION, "nearfar": nearfar.__version__}
        self._body = {"model": dict(about), "rows_a_part": rows, "columns": column_types(about["dim"])}
        earlier = _read_manifest(folder) if (folder / MANIFEST).exists() else None
        self.finished = earlier is not None and earlier["state"] == "finished"
        self.done = {part.place: part for part in _parts(folder, earlier)} if earlier is not None else {}
        if not self.finished:
            _sweep(folder)
            for place, part in list(self.done.items()):
                if not _is_there(folder, part):  # by hand, or by a disk that lost it
                    del self.done[place]
            write_json(folder / MANIFEST, {**self._head, "state": "running", **self._body, "data": plan.to_dict()})
            _write_notes(folder, self.done.values())

    def note(self, part: Part) -> None:
        """Count a part as done; once this returns it outlasts a crash."""
        with explain_os_errors(self.folder / NOTES), open(self.folder / NOTES, "ab") as file:
            file.write(json.dumps(asdict(part)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[part.place] = part

    def rows_done(self, shard: int) -> tuple[int, int]:
        """(blocks, rows read) of a shard that are done from its front on."""
        blocks = rows = 0
        while (part := self.done.get((shard, blocks))) is not None:
            blocks, rows = blocks + 1, rows + part.read
        return blocks, rows

    def finish(self) -> None:
        """All parts are there: say so."""
        parts = [self.done[place] for place in sorted(self.done)]
        tree = {
            **self._head,
            "state": "finished",
            "rows": sum(part.rows for part in parts),
            "skipped": sum(part.read - part.rows for part in parts),
            **self._body,
            "data": self.plan.to_dict(),
            "parts": [asdict(part) for part in parts],
        }
        lines = _skipped_lines(self.folder, parts)
        if tree["skipped"]:
            with write_atomic(self.folder / SKIPPED) as file:
                file.writelines(line.encode(errors="replace") + b"\n" for line in lines)
        write_json(self.folder / MANIFEST, tree)
        with contextlib.suppress(FileNotFoundError):
            (self.folder / NOTES).unlink()
        self.finished = True


class Embeddings:
    """A folder of embeddings, to be read.

    Args:
        folder: what `nearfar.embedding.embed_stream` wrote.

    Attributes:
        folder: as given.
        parts: `Part`s in order of the data.
        dim: D, the length of a vector.
        rows: how many vectors.
        model: what the manifest says of the model: ``sha256``, ``metric``, ``dim``, and how images are read for it.

    Raises:
        InputError: it is not such a folder, or is not finished.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        tree = _read_manifest(self.folder)
        if tree["state"] != "finished":
            raise InputError(f"the embeddings in {self.folder} are not finished; repeat the same nearfar embed to go on")
        self.parts = _parts(self.folder, tree)
        self.model: dict[str, Any] = tree["model"]
        self.dim = int(self.model["dim"])
        self.rows = sum(part.rows for part in self.parts)

    def __len__(self) -> int:
        return self.rows

    def batches(self) -> Iterator[tuple[Floats, list[str], list[str | None]]]:
        """Vectors [n, D], ids and labels (None: it has none) of each part, in order of the data.

        Raises:
            InputError: a part is missing or damaged.
        """
        import pyarrow.parquet as pq

        for part in self.parts:
            path = self.folder / part.name
            with _explained(path):
                table = pq.read_table(path, columns=["id", "label", "embedding"], use_threads=False, memory_map=False)
                vectors = table.column("embedding").combine_chunks()
                if table.num_rows != part.rows or vectors.type.list_size != self.dim or vectors.null_count:
                    raise InputError(f"{path} is not the part that the manifest names; embed again into another folder")
                z = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)
                ids, labels = table.column("id").to_pylist(), table.column("label").to_pylist()
            yield z, ids, labels

    def skipped(self) -> Iterator[str]:
        """A line for each image that could not be read."""
        return _skipped_lines(self.folder, self.parts)

    def verify(self) -> None:
        """Read every part and compare its hash.

        Raises:
            InputError: one is missing or another.
        """
        for part in self.parts:
            path = self.folder / part.name
            if not path.exists() or hash_file(path) != part.sha256:
                raise InputError(f"{path} is missing or damaged: its SHA-256 is not the one in {MANIFEST}")


def claim(folder: Path) -> None:
    """Make the folder, or refuse one that holds something else.

    Raises:
        InputError: it is a file, or holds other things than embeddings.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder for the parts, or a name that ends in .npz or .parquet")
    known = (NAMES, MANIFEST, NOTES)
    if folder.is_dir() and not (folder / MANIFEST).exists():
        for path in folder.iterdir():
            if not path.name.startswith(tuple(f".{name}" for name in known)) and not path.name.startswith(NAMES):
                raise InputError(f"{folder} holds something else than embeddings; choose an empty or a new folder")
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def begun_with(folder: Path, about: Mapping[str, Any], rows: int) -> Plan | None:
    """The plan that a folder was begun with, if it was.

    Raises:
        InputError: it was begun with another model or parts of another size, or the manifest is damaged.
    """
    if not (folder / MANIFEST).exists():
        return None
    earlier = _read_manifest(folder)
    _check_begun(folder, earlier, about, rows)
    try:
        return Plan.from_dict(earlier["data"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged: {error}; delete the folder, and embed again") from None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        raise InputError(
            f"{folder} holds no embeddings: {MANIFEST} is missing; make them with nearfar embed RUN DATA --out {folder}"
        )
    tree = read_json(path)
    if tree.get("format") != _FORMAT:
        raise InputError(f"{path} does not describe embeddings; choose another folder")
    if tree.get("version") != _VERSION:
        raise InputError(f"{path} has version {tree.get('version')!r}, expected {_VERSION}; use the nearfar that wrote it")
    model = tree.get("model")
    told = (
        isinstance(model, dict)
        and isinstance(model.get("sha256"), str)
        and model.get("metric") in METRICS
        and _is_count(model.get("dim"), least=1)
    )
    if not told or tree.get("state") not in ("running", "finished"):
        raise InputError(f"{path} is damaged: it lacks its state or its model; delete the folder, and embed again")
    return tree


def _check_begun(folder: Path, earlier: Mapping[str, Any], model: Mapping[str, Any], rows: int) -> None:
    mend = "choose another --out, or delete it to begin anew"
    was = earlier["model"]
    for key in sorted(was.keys() | model.keys()):
        if was.get(key) != model.get(key):
            old, new = (str(one.get(key))[:12] for one in (was, model))
            raise InputError(f"{folder} was begun with another model: its {key} is {old}, now {new}; {mend}")
    if earlier.get("rows_a_part") != rows:
        raise InputError(f"{folder} has parts of {earlier.get('rows_a_part')} rows, not of {rows}; {mend}")


def _parts(folder: Path, tree: Mapping[str, Any] | None) -> list[Part]:
    """Finished parts in order: of a finished manifest, or else of the notes, of which a torn last line does not count."""
    if tree is not None and tree["state"] == "finished":
        given = tree.get("parts")
    else:
        given = []
        if (folder / NOTES).exists():
            for line in (folder / NOTES).read_bytes().split(b"\n"):
                with contextlib.suppress(*NOT_JSON):
                    given.append(json.loads(line))
    try:
        parts = [Part(**one) for one in given or []]
        for part in parts:
            counts = (part.shard, part.block, part.read, part.rows, part.bytes)
            if not all(_is_count(count) for count in counts) or part.rows > part.read or part.name != part_name(*part.place):
                raise ValueError("it describes a part wrongly")
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged: {error}; delete the folder, and embed again") from None
    return sorted({part.place: part for part in parts}.values(), key=lambda part: part.place)


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 1 << 53


def _is_there(folder: Path, part: Part) -> bool:
    path = folder / part.name
    return path.exists() and path.stat().st_size == part.bytes


def _write_notes(folder: Path, parts: Any) -> None:
    with write_atomic(folder / NOTES) as file:
        file.writelines(json.dumps(asdict(part)).encode() + b"\n" for part in parts)


def _sweep(folder: Path) -> None:
    """Remove what writers left that were killed."""
    for path in folder.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _skipped_lines(folder: Path, parts: list[Part]) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part in parts:
        if part.read > part.rows:
            path = folder / part.name
            with _explained(path):
                lines = json.loads((pq.read_schema(path).metadata or {}).get(_SKIPPED_KEY, b"[]"))
                if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
                    raise pa.ArrowInvalid("its notes of what was skipped are no lines")
            yield from lines


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say in one line what is wrong with a part."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, AttributeError, KeyError, *NOT_JSON) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}; embed again into another folder") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or 'it is damaged'}") from None
