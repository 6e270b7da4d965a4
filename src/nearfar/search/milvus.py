"""Milvus: the vectors in a database, which adds, removes and filters by itself.

Without an address it is Milvus Lite, which runs inside this process on files of its own; with one it is a server or a
cluster, by the same calls. The index keeps the truth either way, and the database only proposes.

A Lite database is saved as one archive in the folder of the index, and opened as a copy in a temporary folder: so
what was saved never changes, and several processes can read it. Of a server the folder names the collection only.
No address and no password is read from an index or written to one: an index from a stranger must not make this
machine call another.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlparse

import numpy as np

from nearfar.errors import InputError
from nearfar.files import NOT_JSON
from nearfar.search.base import Engine, Entries, Labels, check_count, import_for
from nearfar.search.vectors import Floats, Ints, Metric

URI, TOKEN = "NEARFAR_MILVUS_URI", "NEARFAR_MILVUS_TOKEN"

_METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
_BATCH = 1 << 20
"""Numbers sent in one call."""
_MOST = 16384
"""Neighbours and queries that a server takes in one call."""
_GRAPHS = (".idx", ".sidx")
"""Files of Milvus Lite that it builds from the others if they are missing. It believes what stands in them, so that those of
a stranger must not be opened, and none is kept."""
_TIMEOUT = 10.0
"""Seconds to wait for a server to answer at all."""
_ANSWER = 60.0
"""Seconds to wait for what a call does, from a server that has gone or hangs as well."""
_BULK = 600.0
"""Seconds to wait until what was sent is on the server's disks, or is loaded from there."""


class MilvusEngine(Engine):
    """A collection of Milvus.

    Args:
        metric: the metric of the index.
        uri: ``http://`` or ``https://`` address of a server or cluster, a database as its path. None: the environment
            variable NEARFAR_MILVUS_URI, and without it Milvus Lite. A password goes into NEARFAR_MILVUS_TOKEN.
        m, ef_construction, ef: as for ``HnswEngine``; the collection's index is an HNSW graph too.
    """

    extra = "milvus"
    modules = ("pymilvus", "milvus_lite.server_manager")
    adds = removes = filters = True
    private = ("uri",)

    def __init__(
        self, metric: Metric, *, uri: str | None = None, m: int = 16, ef_construction: int = 200, ef: int = 96
    ) -> None:
        self.metric = metric
        self.m = check_count("m", m, 2, 512)
        self.ef_construction, self.ef = check_count("ef_construction", ef_construction), check_count("ef", ef)
        self.uri = _check_uri(uri or os.environ.get(URI) or None)
        self._dead: list[int] = []
        self._database: _Database

    def settings(self) -> dict[str, Any]:
        return {"m": self.m, "ef_construction": self.ef_construction, "ef": self.ef}

    def library(self) -> str:
        lite = f", milvus-lite {version('milvus-lite')}" if self.uri is None else ""
        return f"pymilvus {version('pymilvus')}{lite}"

    def build(self, entries: Entries) -> None:
        pymilvus, manager = import_for(type(self), "milvus")
        self._dead = []
        self._database = database = _Database(self.uri, pymilvus, manager, f"nearfar_{token_hex(8)}", fresh=True)
        with database.errors():
            client, kinds = database.client, pymilvus.DataType
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("key", kinds.INT64, is_primary=True)
            schema.add_field("id", kinds.INT64)
            schema.add_field("vector", kinds.FLOAT_VECTOR, dim=entries.vectors.shape[1])
            if entries.labels is not None:
                words = entries.labels.dtype.kind == "U"
                schema.add_field("label", kinds.VARCHAR if words else kinds.INT64, **({"max_length": 65535} if words else {}))
            graph = client.prepare_index_params()
            params = {"M": self.m, "efConstruction": self.ef_construction}
            graph.add_index("vector", index_type="HNSW", metric_type=_METRICS[self.metric], params=params)
            how: dict[str, Any] = {"consistency_level": "Strong", "timeout": _ANSWER}
            client.create_collection(database.collection, schema=schema, index_params=graph, **how)
            for part in _parts(entries):  # no key is there yet, and to look for it takes a server's time
                client.insert(database.collection, _fields(entries, part, 0), timeout=_ANSWER)
            client.flush(database.collection, timeout=_BULK)

    def add(self, entries: Entries, first: int) -> None:
        database = self._database
        with database.errors():
            for part in _parts(entries):
                # A key may be there already, of an addition that was never saved.
                database.client.upsert(database.collection, _fields(entries, part, first), timeout=_ANSWER)

    def remove(self, keys: Ints) -> None:
        self._dead += keys.tolist()
        if self.uri is None:
            self._forget()  # from a copy of our own; a server serves the saved state too, until ``settle``

    def settle(self) -> None:
        self._database.saved()
        self._forget()

    def _forget(self) -> None:
        with self._database.errors():
            while self._dead:
                self._database.client.delete(self._database.collection, ids=self._dead[:_MOST], timeout=_ANSWER)
                del self._dead[:_MOST]

    def search(self, queries: Floats, k: int, only: Sequence[Any] | None = None) -> Ints:
        database, k = self._database, min(k, _MOST)
        chosen = "" if only is None else f"label in {json.dumps(list(only), ensure_ascii=False)}"
        found = np.full((len(queries), k), -1, dtype=np.int64)
        step = max(1, min(_MOST, _BATCH // max(k, queries.shape[1])))
        for start in range(0, len(queries), step):
            with database.errors():
                near = database.client.search(
                    database.collection,
                    data=queries[start : start + step].tolist(),
                    anns_field="vector",
                    limit=k,
                    filter=chosen,
                    search_params={"metric_type": _METRICS[self.metric], "params": {"ef": max(k, self.ef)}},
                    consistency_level="Strong",
                    timeout=_ANSWER,
                )
            for place, hits in zip(found[start : start + step], near, strict=True):
                place[: len(hits)] = [hit["key"] for hit in hits]
        return found

    def write(self, path: Path) -> None:
        database = self._database
        with database.errors():
            database.client.flush(database.collection, timeout=_BULK)
        about = json.dumps({"collection": database.collection})
        if database.home is None:
            path.write_text(about)
            return
        database.close_client()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("nearfar.json", about)
            for part in sorted(database.path.rglob("*")):
                if part.suffix in _GRAPHS:
                    continue
                archive.write(part, part.relative_to(database.home))
        database.open_client()
        with database.errors():
            database.client.load_collection(database.collection, timeout=_BULK)

    def read(self, path: Path, dimensions: int, size: int) -> None:
        pymilvus, manager = import_for(type(self), "milvus")
        lite = zipfile.is_zipfile(path)
        try:
            with zipfile.ZipFile(path) if lite else contextlib.nullcontext() as archive:
                collection = json.loads(archive.read("nearfar.json") if archive else path.read_bytes())["collection"]
                if not re.fullmatch(r"nearfar_[0-9a-f]{16}", collection):
                    raise ValueError(f"{collection!r} is no name of a collection")
                if archive is not None and sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                    raise ValueError("its parts are larger than the whole")
                if archive is None and self.uri is None:
                    raise InputError(f"{path.parent} lies on a Milvus server; name its address in {URI} or as option uri")
                self.uri = None if lite else self.uri
                self._database = _Database(self.uri, pymilvus, manager, collection, archive=archive)
        except InputError:
            raise
        except (*NOT_JSON, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is damaged: {error}; build the index again") from None
        with self._database.errors():
            there = self._database.client.has_collection(collection, timeout=_ANSWER)
            if there:
                self._database.client.load_collection(collection, timeout=_BULK)
        if not there:
            raise InputError(f"{self._database.place} has no collection {collection}; build the index again")


class _Database:
    """A connection to one collection, and for Milvus Lite the temporary folder that its files are in."""

    def __init__(
        self,
        uri: str | None,
        pymilvus: Any,
        manager: Any,
        collection: str,
        *,
        archive: zipfile.ZipFile | None = None,
        fresh: bool = False,
    ) -> None:
        self.uri, self.pymilvus, self.manager, self.collection = uri, pymilvus, manager.server_manager_instance, collection
        self.home = Path(tempfile.mkdtemp(prefix="nearfar-milvus-")) if uri is None else None
        self.path = (self.home or Path()) / "milvus.db"
        self.place = "Milvus Lite" if uri is None else f"the Milvus server at {uri}"
        self._held: dict[str, Any] = {"drop": fresh and uri is not None}
        self._end = weakref.finalize(self, _end, self._held, self.manager, self.path, self.home, collection)
        if archive is not None and self.home is not None:
            archive.extractall(self.home, [name for name in archive.namelist() if not name.endswith(_GRAPHS)])
        self.open_client()

    @property
    def client(self) -> Any:
        return self._held["client"]

    def open_client(self) -> None:
        with self.errors():
            self._held["client"] = self.pymilvus.MilvusClient(
                str(self.path) if self.uri is None else self.uri, token=os.environ.get(TOKEN, ""), timeout=_TIMEOUT
            )

    def close_client(self) -> None:
        _close(self._held, self.manager, self.path)

    def saved(self) -> None:
        """Keep the collection when this connection ends: a folder names it."""
        self._held["drop"] = False

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the client raises into one line, which says how long it was tried."""
        from grpc import RpcError  # the client passes on that of a server which does not answer in time

        start, log = time.monotonic(), logging.getLogger("pymilvus")
        earlier = log.level
        log.setLevel(logging.CRITICAL)  # what it raises it writes to the terminal as well, on thirty lines
        try:
            yield
        except (self.pymilvus.MilvusException, RpcError) as error:
            said = error.details() if isinstance(error, RpcError) else error.message
            reason = " ".join(str(said).split()) or type(error).__name__
            raise InputError(f"{self.place} cannot be used (tried for {time.monotonic() - start:.1f} s): {reason}") from error
        finally:
            log.setLevel(earlier)


def _close(held: dict[str, Any], manager: Any, path: Path) -> None:
    client = held.pop("client", None)
    if client is not None:
        client.close()
        manager.release_server(str(path))


def _end(held: dict[str, Any], manager: Any, path: Path, home: Path | None, collection: str) -> None:
    """Leave nothing behind: neither the server's threads and files, nor a collection that no folder names."""
    if held["drop"] and "client" in held:
        with contextlib.suppress(Exception):  # the server may be gone before us
            held["client"].drop_collection(collection, timeout=_TIMEOUT)
    _close(held, manager, path)
    if home is not None:
        shutil.rmtree(home, ignore_errors=True)


def _parts(entries: Entries) -> Iterator[slice]:
    """Rows that go in one call."""
    step = max(1, _BATCH // entries.vectors.shape[1])
    return (slice(at, min(at + step, len(entries.vectors))) for at in range(0, len(entries.vectors), step))


def _fields(entries: Entries, part: slice, first: int) -> list[dict[str, Any]]:
    """Rows as Milvus takes them, with keys that are ``first`` more than their numbers."""
    start, end = part.start, part.stop
    ids, labels = entries.ids[start:end].tolist(), _plain_labels(entries.labels, start, end)
    rows = [
        {"key": key, "id": number, "vector": vector}
        for key, (number, vector) in enumerate(zip(ids, entries.vectors[start:end], strict=True), first + start)
    ]
    if labels is not None:
        for row, label in zip(rows, labels, strict=True):
            row["label"] = label
    return rows


def _plain_labels(labels: Labels | None, start: int, end: int) -> list[Any] | None:
    """Labels as strings or whole numbers of Python."""
    if labels is None:
        return None
    part = labels[start:end]
    return list(part.tolist() if part.dtype.kind == "U" else part.astype(np.int64).tolist())


def _check_uri(uri: str | None) -> str | None:
    if uri is None:
        return None
    parts = urlparse(str(uri))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"option uri is {uri!r}, expected http://host:port; leave it out for Milvus Lite")
    if parts.username or parts.password:
        raise InputError(f"option uri names a user or password; put them into {TOKEN} as user:password")
    return str(uri)
