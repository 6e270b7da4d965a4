"""The engines by name, and which one suits how many vectors."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

from nearfar.errors import InputError, did_you_mean
from nearfar.search.annoy import AnnoyEngine
from nearfar.search.base import Engine
from nearfar.search.hnsw import HnswEngine
from nearfar.search.milvus import MilvusEngine

ENGINES: dict[str, type[Engine]] = {"hnsw": HnswEngine, "annoy": AnnoyEngine, "milvus": MilvusEngine}
BACKENDS = ("auto", "exact", *ENGINES)

EXACT_UP_TO = 200_000
"""Vectors up to which "auto" takes exact search: a few milliseconds for one query, and no graph to build."""


class Choice(NamedTuple):
    """A backend, "exact" or one of ``ENGINES``, and why."""

    backend: str
    reason: str


def check_backend(backend: object) -> str:
    """Return ``backend`` if it is one of ``BACKENDS``.

    Raises:
        InputError: it is not; the nearest names are suggested.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}{did_you_mean(str(backend), BACKENDS)}")
    return str(backend)


def choose(backend: str, rows: int) -> Choice:
    """Return what ``backend`` means for a gallery of ``rows`` vectors."""
    if backend != "auto":
        return Choice(backend, "asked for")
    if rows <= EXACT_UP_TO:
        return Choice("exact", f"up to {EXACT_UP_TO:,} vectors exact search is fast, and there are {rows:,}")
    if find_spec(HnswEngine.modules[0].split(".")[0]) is None:
        return Choice("exact", f'{rows:,} vectors would be searched faster with: pip install "nearfar[{HnswEngine.extra}]"')
    return Choice("hnsw", f"beyond {EXACT_UP_TO:,} vectors a graph is faster, and there are {rows:,}")
