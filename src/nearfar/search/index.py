"""``NeighborIndex``: vectors with their ids and labels, searched by similarity, and kept in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from nearfar.errors import InputError, did_you_mean
from nearfar.params import Params
from nearfar.search.approximate import Known, nearest_proposed
from nearfar.search.base import Entries, Labels, make_engine
from nearfar.search.building import build
from nearfar.search.checks import check_ids, check_labels, not_fitted
from nearfar.search.engines import ENGINES, Choice, check_backend, choose
from nearfar.search.exact import Lengths, lengths_of, nearest_prepared, neighbours_to_find
from nearfar.search.filters import LabelRows
from nearfar.search.storage import Stored, StoredEngine, read_index, state_of, write_index
from nearfar.search.vectors import Floats, Ints, Metric, as_vectors, check_k, check_metric, unit_rows


class NeighborIndex(Params):
    """The nearest of many vectors, exactly or nearly so.

    Args:
        metric: "cosine" or "dot" (scores: greater is nearer), or "euclidean" (scores are distances: smaller is nearer).
        backend: "exact" compares a query with every vector. "hnsw", "annoy" and "milvus" look at few vectors and may
            miss some; ``built`` says how many. "auto" takes "exact" up to 200,000 vectors, and "hnsw" beyond.
        options: arguments of the approximate engine, such as ``{"ef": 200}``; see docs/search.md.

    Whatever finds them, scores are those of exact search, and so is the order of what was found.

    Attributes:
        n_features_in_: D, the length of a vector.
    """

    n_features_in_: int
    _vectors: Floats
    _ids: Ints
    _labels: Labels | None
    _model_hash: str | None
    _names: dict[str, list[str]]
    _by_id: Ints | None
    _by_label: LabelRows | None
    _lengths: tuple[Metric, Lengths] | None
    _known: Known | None  # None: search is exact
    _built: dict[str, Any]

    def __init__(self, metric: str = "cosine", backend: str = "auto", options: Mapping[str, Any] | None = None) -> None:
        self.metric = metric
        self.backend = backend
        self.options = options

    def fit(self, X: Any, y: Any = None, ids: Any = None) -> Self:
        """Take in a gallery, in place of what the index held.

        Args:
            X: numbers [N, D]; kept as float32, and with "cosine" as rows of unit length. A read-only memory map that
                is so already is kept as it is, everything else is copied.
            y: labels [N], whole numbers or strings, or None.
            ids: distinct whole numbers [N] by which vectors are named; the numbers of the rows if None.

        An approximate engine is built and measured; ``built`` and the log of "nearfar" say how well it does.

        Raises:
            InputError: empty, NaN, a zero vector with "cosine", a length that is not N, an id that occurs twice, an
                option that cannot be, or an engine that is not installed.
        """
        vectors = self._prepared(X, "X")
        numbers = np.arange(len(vectors)) if ids is None else check_ids(ids, len(vectors))
        labels = None if y is None else check_labels(y, len(vectors))
        # Unless it cannot change, a copy: what the caller does to the array later must not change the index.
        fixed = isinstance(X, np.memmap) and X.mode == "r"
        borrowed = vectors is X or vectors.base is not None
        entries = Entries(vectors.copy() if borrowed and not fixed else vectors, numbers, labels)
        known, built = build(entries, check_metric(self.metric), choose(self.backend, len(vectors)), self.options or {})
        self._take(entries, known, built, None, {})
        return self

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self._require()._vectors)

    @property
    def vectors(self) -> Floats:
        """The gallery, float32 [N, D], in rows of unit length with "cosine"; not to be written to."""
        view = self._require()._vectors.view()
        view.flags.writeable = False
        return view

    @property
    def ids(self) -> Ints:
        """The id of each row, int64 [N]."""
        return self._require()._ids

    @property
    def labels(self) -> Labels | None:
        """The label of each row [N], or None."""
        return self._require()._labels

    @property
    def names(self) -> dict[str, list[str]]:
        """Lists of names that were saved with the index (of images by id, of classes by label); may be empty."""
        return self._require()._names

    @property
    def model_hash(self) -> str | None:
        """The hash of the model that made the vectors, if the index was saved with one."""
        return self._require()._model_hash

    @property
    def built(self) -> dict[str, Any]:
        """How the index was built: ``backend``, the ``reason`` for it, and of an approximate one ``recall@10`` against
        exact search for a ``sample`` of its vectors, ``latency_ms`` and ``exact_latency_ms`` of one query,
        ``build_seconds``, ``rows``, ``library`` and ``settings``."""
        return dict(self._require()._built)

    def search(self, z: Any, k: int = 10, *, exclude: Any = None, labels: Any = None) -> tuple[Floats, Ints]:
        """Return the ``k`` nearest vectors of each query.

        Args:
            z: queries [N, D].
            k: how many, at most the vectors that there are.
            exclude: an id [N] for each query that is never its neighbour (its own, when it is in the gallery itself).
                An id that is not in the index excludes nothing.
            labels: one label or several: only vectors that have one of them are found.

        Returns:
            ``scores`` float32 [N, k], best first, and ``ids`` int64 [N, k]. Equal scores are in order of rows.

        Raises:
            InputError: the index is empty, or D, k or a value does not fit, or there is no such label.
        """
        scores, rows = self.search_rows(z, k, exclude=exclude, labels=labels)
        return scores, self._ids[rows]

    def search_rows(self, z: Any, k: int = 10, *, exclude: Any = None, labels: Any = None) -> tuple[Floats, Ints]:
        """Do as ``search`` does, and return row numbers [N, k] (of ``vectors``, ``ids`` and ``labels``) for ids."""
        queries = self._queries(z, "z")
        excluded = None if exclude is None else self._rows_of(exclude, len(queries))
        return self._nearest(queries, k, "k", excluded, labels)

    def get(self, ids: Any) -> Floats:
        """Return the vectors [N, D] of these ``ids`` [N].

        Raises:
            InputError: there is no such id.
        """
        return np.array(self._require()._vectors[self._rows_there(ids)])

    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> tuple[Floats, Ints] | Ints:
        """Return distances and row numbers as scikit-learn's neighbours do.

        Args:
            X: queries [N, D]; None takes the gallery's own vectors and leaves each out of its own neighbours.
            n_neighbors: how many; None is 10.
            return_distance: False returns the rows alone.

        Returns:
            ``distances`` float32 [N, k], smallest first (1 - cosine, minus the dot product, or Euclidean), and ``rows``
            int64 [N, k], the numbers of rows of ``vectors``.

        Raises:
            InputError: as ``search``.
        """
        self._require()
        queries = self._vectors if X is None else self._queries(X, "X")
        exclude = np.arange(len(queries)) if X is None else None
        scores, rows = self._nearest(queries, 10 if n_neighbors is None else n_neighbors, "n_neighbors", exclude)
        return (self._distances(scores), rows) if return_distance else rows

    def add(self, X: Any, y: Any = None, ids: Any = None) -> Self:
        """Add vectors [N, D] behind those that are there; without ``ids`` they are numbered on from the greatest id.

        An approximate engine takes them in if it can; if not, they are searched exactly beside it, until so many have
        changed that it is built anew.

        Raises:
            InputError: as ``fit``; or an id is in use; or labels are given and the index has none, or the reverse.
        """
        vectors = self._prepared(X, "X", dimensions=self._require()._vectors.shape[1])
        if (y is None) != (self._labels is None):
            have, given = ("no labels", "some") if self._labels is None else ("labels", "none")
            raise InputError(f"the index has {have} but {given} were given for the vectors to add")
        start = int(self._ids.max()) + 1
        numbers = np.arange(start, start + len(vectors)) if ids is None else check_ids(ids, len(vectors))
        in_use = np.isin(numbers, self._ids)
        if in_use.any():
            raise InputError(f"ids holds {numbers[in_use][0]}, which is in the index already; remove it first")
        labels = fresh = None
        if self._labels is not None:
            fresh = check_labels(y, len(vectors))
            if (fresh.dtype.kind == "U") != (self._labels.dtype.kind == "U"):
                raise InputError(f"labels to add are {fresh.dtype}, those of the index {self._labels.dtype}")
            labels = np.concatenate([self._labels, fresh])
        whole = Entries(np.concatenate([self._vectors, vectors]), np.concatenate([self._ids, numbers]), labels)
        known = None if self._known is None else self._known.with_added(Entries(vectors, numbers, fresh))
        self._change(whole, known)
        return self

    def remove(self, ids: Any) -> Self:
        """Remove the vectors with these ``ids`` (whole numbers, of any count).

        Raises:
            InputError: there is no such id, or nothing would be left.
        """
        keep = np.ones(len(self._require()._ids), dtype=bool)
        keep[self._rows_there(ids)] = False
        if not keep.any():
            raise InputError("ids names every vector of the index; an index cannot be empty")
        labels = None if self._labels is None else self._labels[keep]
        known = None if self._known is None else self._known.without(keep)
        self._change(Entries(self._vectors[keep], self._ids[keep], labels), known)
        return self

    def save(
        self,
        folder: Path | str,
        *,
        model_hash: str | None = None,
        names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Write the index to ``folder``; what was there before stays readable until the new state is whole.

        Args:
            folder: made if missing.
            model_hash: names the model that made the vectors, so that ``load`` can refuse another one's.
            names: lists of strings to keep beside the vectors, such as those of images (by id) and of classes.
                None keeps, as with ``model_hash``, what the index was loaded with.

        Raises:
            InputError: the folder holds something else, another process writes to it, or the disk is full.
        """
        self._require()
        if model_hash is not None:
            self._model_hash = model_hash
        if names is not None:
            self._names = {what: [str(name) for name in given] for what, given in names.items()}
        engine = None if self._known is None else self._known.stored()
        kept = (self._model_hash, self._names, self.backend, self._built)
        write_index(folder, Stored(self.metric, self._vectors, self._ids, self._labels, *kept, engine))
        if self._known is not None:
            self._known.engine.settle()

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        expect_model_hash: str | None = None,
        verify: bool = False,
        mapped: bool = True,
        backend: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Open the index in ``folder``; its vectors and most engines are mapped into memory, not read.

        Args:
            folder: what ``save`` wrote.
            expect_model_hash: refuse an index that another model made.
            verify: read every file and compare its hash.
            mapped: False reads the vectors into memory, so that nothing done to the files later reaches them.
            backend: None opens the engine that was saved. "exact" leaves it aside, and so do the others, which build
                theirs anew from the vectors.
            options: of the engine, instead of those that it was saved with.

        Raises:
            InputError: a file is missing, truncated or damaged, another model made the index, or its engine is not
                installed.
        """
        stamp = state_of(folder)
        stored = read_index(folder, verify=verify, mapped=mapped)
        if expect_model_hash is not None and stored.model_hash != expect_model_hash:
            made = f"by {stored.model_hash[:12]}" if stored.model_hash else "without naming its model"
            raise InputError(f"{folder} was made {made}, not by the model {expect_model_hash[:12]}; build it again")
        metric, entries = check_metric(stored.metric), Entries(stored.vectors, stored.ids, stored.labels)
        index = cls(metric, check_backend(stored.backend if backend is None else backend), options)
        known, built = None, dict(stored.built) or choose("exact", len(stored.ids))._asdict()
        if backend is not None:
            known, built = build(entries, metric, choose(backend, len(stored.ids)), options or {})
        elif stored.engine is not None:
            try:
                known = _open(stored.engine, entries, metric, options or {})
            except (FileNotFoundError, InputError):
                if state_of(folder) == stamp:
                    raise
                # Another process has saved a new state meanwhile: that is read.
                return cls.load(folder, expect_model_hash=expect_model_hash, verify=verify, mapped=mapped, options=options)
        index._take(entries, known, built, stored.model_hash, stored.names)
        return index

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_vectors")

    def _take(
        self,
        entries: Entries,
        known: Known | None,
        built: dict[str, Any],
        model_hash: str | None,
        names: dict[str, list[str]],
    ) -> None:
        self._vectors, self._ids, self._labels = entries
        self._known, self._built = known, built
        self._model_hash, self._names, self._by_id, self._by_label = model_hash, names, None, None
        self._lengths = None
        self.n_features_in_ = entries.vectors.shape[1]

    def _change(self, entries: Entries, known: Known | None) -> None:
        """Take in what ``add`` and ``remove`` leave, and build an engine where one is due."""
        built, choice, options = self._built, choose(self.backend, len(entries.ids)), dict(self.options or {})
        if known is not None and known.stale:
            options = {**known.engine.settings(), **options}
            choice = Choice(known.name, f"{built.get('reason', '')}; built anew after many changes")
        if choice.backend != "exact" and (known is None or known.stale):
            known, built = build(entries, check_metric(self.metric), choice, options)
        self._take(entries, known, built, self._model_hash, self._names)

    def _require(self) -> Self:
        if not self.__sklearn_is_fitted__():
            raise not_fitted(self)
        return self

    def _prepared(self, values: Any, name: str, dimensions: int | None = None) -> Floats:
        metric = check_metric(self.metric)
        check_backend(self.backend)
        vectors = as_vectors(values, name, dimensions=dimensions, owner=type(self).__name__)
        return unit_rows(vectors, name) if metric == "cosine" else vectors

    def _queries(self, values: Any, name: str) -> Floats:
        return self._prepared(values, name, dimensions=self._require()._vectors.shape[1])

    def _nearest(self, queries: Floats, k: Any, name: str, exclude: Ints | None, labels: Any = None) -> tuple[Floats, Ints]:
        metric, only, there, excluded = check_metric(self.metric), None, len(self._vectors), exclude
        if labels is not None:
            only = self._label_rows().only(labels)
            there = len(only.rows)
            excluded = None if exclude is None else np.where(np.isin(exclude, only.rows), exclude, -1)
        k = check_k(k, neighbours_to_find(there, excluded), name)
        if self._known is not None:
            return nearest_proposed(self._known, queries, self._vectors, k, metric, excluded, only)
        rows = None if only is None else only.rows
        return nearest_prepared(queries, self._vectors, k, metric, excluded, rows=rows, lengths=lambda: self._measured(metric))

    def _measured(self, metric: Metric) -> Lengths:
        """The lengths of the vectors, four bytes each, which are computed once."""
        found = self._lengths
        if found is None or found[0] != metric:
            self._lengths = found = (metric, lengths_of(self._vectors, metric))
        return found[1]

    def _label_rows(self) -> LabelRows:
        if self._labels is None:
            raise InputError("the index has no labels to search by; give them to fit")
        if self._by_label is None:
            self._by_label = LabelRows(self._labels)
        return self._by_label

    def _rows_there(self, ids: Any) -> Ints:
        """Return the row of each id, of any count, all of which must be there."""
        numbers = np.atleast_1d(np.asarray(ids))
        rows = self._rows_of(numbers, len(numbers))
        if (rows < 0).any():
            raise InputError(f"ids holds {numbers[rows < 0][0]}, which is not in the index")
        return rows

    def _rows_of(self, ids: Any, count: int) -> Ints:
        """Return the row of each id [count], -1 where there is none."""
        numbers = np.asarray(ids)
        if numbers.shape != (count,) or numbers.dtype.kind not in "iu":
            raise InputError(f"ids have shape {numbers.shape} and dtype {numbers.dtype}, expected {count} whole numbers")
        if self._by_id is None:
            self._by_id = np.argsort(self._ids, kind="stable")
        at = np.minimum(np.searchsorted(self._ids, numbers, sorter=self._by_id), len(self._ids) - 1)
        rows = self._by_id[at]
        return np.where(self._ids[rows] == numbers, rows, -1)

    def _distances(self, scores: Floats) -> Floats:
        if self.metric == "cosine":
            return np.maximum(np.float32(1.0) - scores, np.float32(0.0))
        return scores if self.metric == "euclidean" else -scores


def _open(stored: StoredEngine, entries: Entries, metric: Metric, options: Mapping[str, Any]) -> Known:
    """Open an engine that was saved."""
    if stored.name not in ENGINES:
        raise InputError(f"the index was built by the engine {stored.name!r}{did_you_mean(stored.name, ENGINES)}")
    assert stored.path is not None
    if odd := [name for name in ENGINES[stored.name].private if name in stored.settings]:
        raise InputError(f"{stored.path.parent} names an option that only you may give, {odd[0]!r}; it is not opened")
    engine = make_engine(ENGINES[stored.name], stored.name, metric, {**stored.settings, **options})
    engine.read(stored.path, entries.vectors.shape[1], stored.given)
    keys = np.arange(len(entries.ids)) if stored.keys is None else stored.keys
    return Known(stored.name, engine, keys, stored.given)
