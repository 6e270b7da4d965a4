"""Checks of what is given to an index beside vectors: ids and labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from nearfar.errors import InputError
from nearfar.search.base import Labels
from nearfar.search.vectors import Ints


def not_fitted(estimator: Any) -> Exception:
    """Return the error of an estimator used before ``fit``: an ``InputError`` that scikit-learn knows as its own."""
    from sklearn.exceptions import NotFittedError

    class NotFitted(InputError, NotFittedError):
        pass

    return NotFitted(f"this {type(estimator).__name__} is empty; call fit, or load one that was saved")


def check_ids(ids: Any, count: int) -> Ints:
    """Return ``ids`` as int64 [count] if they are so many distinct whole numbers.

    Raises:
        InputError: they are not.
    """
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


def check_labels(labels: Any, count: int) -> Labels:
    """Return a copy of ``labels`` if they are ``count`` whole numbers or strings.

    Raises:
        InputError: they are not.
    """
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
