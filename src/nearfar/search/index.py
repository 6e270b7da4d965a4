"""``NeighborIndex``: vectors with their ids and labels, searched by similarity, and kept in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError, did_you_mean
from nearfar.params import Params
from nearfar.search.exact import nearest_prepared, neighbours_to_find
from nearfar.search.storage import Stored, read_index, write_index
from nearfar.search.vectors import Floats, Ints, as_vectors, check_k, check_metric, unit_rows

_BACKENDS = ("auto", "exact")


class NeighborIndex(Params):
    """The nearest of many vectors, exactly.

    Args:
        metric: "cosine" or "dot" (scores: greater is nearer), or "euclidean" (scores are distances: smaller is nearer).
        backend: "exact" compares a query with every vector; "auto" takes what suits the number of vectors, which up to
            some 200,000 is "exact", and the only choice so far.

    Attributes:
        n_features_in_: D, the length of a vector.
    """

    n_features_in_: int
    _vectors: Floats
    _ids: Ints
    _labels: npt.NDArray[Any] | None
    _model_hash: str | None
    _names: dict[str, list[str]]
    _by_id: Ints | None

    def __init__(self, metric: str = "cosine", backend: str = "auto") -> None:
        self.metric = metric
        self.backend = backend

    def fit(self, X: Any, y: Any = None, ids: Any = None) -> Self:
        """Take in a gallery, in place of what the index held.

        Args:
            X: numbers [N, D]; kept as float32, and with "cosine" as rows of unit length. A read-only memory map that
                is so already is kept as it is, everything else is copied.
            y: labels [N], whole numbers or strings, or None.
            ids: distinct whole numbers [N] by which vectors are named; the numbers of the rows if None.

        Raises:
            InputError: empty, NaN, a zero vector with "cosine", a length that is not N, or an id that occurs twice.
        """
        vectors = self._prepared(X, "X")
        numbers = np.arange(len(vectors)) if ids is None else _check_ids(ids, len(vectors))
        labels = None if y is None else _check_labels(y, len(vectors))
        # Unless it cannot change, a copy: what the caller does to the array later must not change the index.
        fixed = isinstance(X, np.memmap) and X.mode == "r"
        borrowed = vectors is X or vectors.base is not None
        self._take(vectors.copy() if borrowed and not fixed else vectors, numbers, labels, None, {})
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
    def labels(self) -> npt.NDArray[Any] | None:
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

    def search(self, z: Any, k: int = 10, *, exclude: Any = None) -> tuple[Floats, Ints]:
        """Return the ``k`` nearest vectors of each query.

        Args:
            z: queries [N, D].
            k: how many, at most the vectors that there are.
            exclude: an id [N] for each query that is never its neighbour (its own, when it is in the gallery itself).
                An id that is not in the index excludes nothing.

        Returns:
            ``scores`` float32 [N, k], best first, and ``ids`` int64 [N, k]. Equal scores are in order of rows.

        Raises:
            InputError: the index is empty, or D, k or a value does not fit.
        """
        scores, rows = self.search_rows(z, k, exclude=exclude)
        return scores, self._ids[rows]

    def search_rows(self, z: Any, k: int = 10, *, exclude: Any = None) -> tuple[Floats, Ints]:
        """Do as ``search`` does, and return row numbers [N, k] (of ``vectors``, ``ids`` and ``labels``) for ids."""
        queries = self._queries(z, "z")
        return self._nearest(queries, k, "k", None if exclude is None else self._rows_of(exclude, len(queries)))

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

        Raises:
            InputError: as ``fit``; or an id is in use; or labels are given and the index has none, or the reverse.
        """
        vectors = self._prepared(X, "X", dimensions=self._require()._vectors.shape[1])
        if (y is None) != (self._labels is None):
            have, given = ("no labels", "some") if self._labels is None else ("labels", "none")
            raise InputError(f"the index has {have} but {given} were given for the vectors to add")
        start = int(self._ids.max()) + 1
        numbers = np.arange(start, start + len(vectors)) if ids is None else _check_ids(ids, len(vectors))
        in_use = np.isin(numbers, self._ids)
        if in_use.any():
            raise InputError(f"ids holds {numbers[in_use][0]}, which is in the index already; remove it first")
        labels = self._labels
        if labels is not None:
            fresh = _check_labels(y, len(vectors))
            if (fresh.dtype.kind == "U") != (labels.dtype.kind == "U"):
                raise InputError(f"labels to add are {fresh.dtype}, those of the index {labels.dtype}")
            labels = np.concatenate([labels, fresh])
        vectors, numbers = np.concatenate([self._vectors, vectors]), np.concatenate([self._ids, numbers])
        self._take(vectors, numbers, labels, self._model_hash, self._names)
        return self

    def remove(self, ids: Any) -> Self:
        """Remove the vectors with these ``ids`` (whole numbers, of any count).

        Raises:
            InputError: there is no such id, or nothing would be left.
        """
        numbers = np.atleast_1d(np.asarray(ids))
        rows = self._require()._rows_of(numbers, len(numbers))
        if (rows < 0).any():
            raise InputError(f"ids holds {numbers[rows < 0][0]}, which is not in the index")
        keep = np.ones(len(self._ids), dtype=bool)
        keep[rows] = False
        if not keep.any():
            raise InputError("ids names every vector of the index; an index cannot be empty")
        labels = None if self._labels is None else self._labels[keep]
        self._take(self._vectors[keep], self._ids[keep], labels, self._model_hash, self._names)
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
        stored = Stored(self.metric, self._vectors, self._ids, self._labels, self._model_hash, self._names)
        write_index(folder, stored)

    @classmethod
    def load(cls, folder: Path | str, *, expect_model_hash: str | None = None, verify: bool = False) -> Self:
        """Open the index in ``folder``; its vectors are mapped into memory, not read.

        Args:
            folder: what ``save`` wrote.
            expect_model_hash: refuse an index that another model made.
            verify: read every file and compare its hash.

        Raises:
            InputError: a file is missing, truncated or damaged, or another model made the index.
        """
        stored = read_index(folder, verify=verify)
        if expect_model_hash is not None and stored.model_hash != expect_model_hash:
            made = f"by {stored.model_hash[:12]}" if stored.model_hash else "without naming its model"
            raise InputError(f"{folder} was made {made}, not by the model {expect_model_hash[:12]}; build it again")
        index = cls(metric=check_metric(stored.metric))
        index._take(stored.vectors, stored.ids, stored.labels, stored.model_hash, stored.names)
        return index

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_vectors")

    def _take(
        self,
        vectors: Floats,
        ids: Ints,
        labels: npt.NDArray[Any] | None,
        model_hash: str | None,
        names: dict[str, list[str]],
    ) -> None:
        self._vectors, self._ids, self._labels = vectors, ids, labels
        self._model_hash, self._names, self._by_id = model_hash, names, None
        self.n_features_in_ = vectors.shape[1]

    def _require(self) -> Self:
        if not self.__sklearn_is_fitted__():
            raise not_fitted(self)
        return self

    def _prepared(self, values: Any, name: str, dimensions: int | None = None) -> Floats:
        metric = check_metric(self.metric)
        if self.backend not in _BACKENDS:
            raise InputError(f"backend is {self.backend!r}{did_you_mean(str(self.backend), _BACKENDS)}")
        vectors = as_vectors(values, name, dimensions=dimensions, owner=type(self).__name__)
        return unit_rows(vectors, name) if metric == "cosine" else vectors

    def _queries(self, values: Any, name: str) -> Floats:
        return self._prepared(values, name, dimensions=self._require()._vectors.shape[1])

    def _nearest(self, queries: Floats, k: Any, name: str, exclude: Ints | None) -> tuple[Floats, Ints]:
        k = check_k(k, neighbours_to_find(len(self._vectors), exclude), name)
        return nearest_prepared(queries, self._vectors, k, check_metric(self.metric), exclude)

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


def not_fitted(estimator: Any) -> Exception:
    """Return the error of an estimator used before ``fit``: an ``InputError`` that scikit-learn knows as its own."""
    from sklearn.exceptions import NotFittedError

    class NotFitted(InputError, NotFittedError):
        pass

    return NotFitted(f"this {type(estimator).__name__} is empty; call fit, or load one that was saved")


def _check_ids(ids: Any, count: int) -> Ints:
    numbers = np.asarray(ids)
    if numbers.shape != (count,) or numbers.dtype.kind not in "iu":
        raise InputError(
            f"ids has shape {numbers.shape} and dtype {numbers.dtype}, expected {count:,} whole numbers, one a vector"
        )
    ordered = np.sort(numbers)
    twice = ordered[:-1][ordered[:-1] == ordered[1:]]
    if len(twice):
        raise InputError(f"ids holds {twice[0]} more than once, expected distinct numbers")
    return numbers.astype(np.int64)


def _check_labels(labels: Any, count: int) -> npt.NDArray[Any]:
    array = np.asarray(labels)
    if array.ndim != 1 or len(array) != count:
        had = f"{len(array):,} entries" if array.ndim == 1 else f"shape {array.shape}"
        raise InputError(f"labels has {had}, X has {count:,} rows; expected one label for each row")
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array):
        array = array.astype(str)
    if array.dtype.kind not in "biufU":
        raise InputError(f"Unknown label type: {array.dtype}; expected whole numbers or strings")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError("Input y contains NaN or infinity; expected a label for each row")
        if (array != np.floor(array)).any():
            raise InputError("Unknown label type: continuous; expected whole numbers or strings")
    return array.copy()
