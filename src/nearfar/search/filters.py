"""Which rows of an index have which label, so that only these are searched."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nearfar.errors import InputError, did_you_mean
from nearfar.search.base import Labels
from nearfar.search.vectors import Ints

_MANY = 30
"""Labels up to which an error names them all."""


class Only(NamedTuple):
    """A filter: ``labels`` asked for, and the ``rows`` int64 [m] of the gallery that have one of them, ascending."""

    labels: list[Any]
    rows: Ints


class LabelRows:
    """The rows of each label, sorted once.

    Args:
        labels: [N], whole numbers or strings.
    """

    def __init__(self, labels: Labels) -> None:
        self._order = np.argsort(labels, kind="stable")
        self._known, starts = np.unique(labels[self._order], return_index=True)
        self._bounds = np.append(starts, len(labels))

    def only(self, labels: Any) -> Only:
        """Return the filter for one label or several.

        Raises:
            InputError: none is given, or the index has no such label.
        """
        asked = np.unique(np.asarray(labels))
        if asked.size == 0:
            raise InputError("labels is empty, expected one label or more; leave it out to search all")
        words = self._known.dtype.kind == "U"
        if (asked.dtype.kind == "U") != words or asked.dtype.kind not in "biufU":
            expected = "strings" if words else "whole numbers"
            raise InputError(f"labels to search are {asked.tolist()!r}, expected {expected} as the index has")
        places = np.minimum(np.searchsorted(self._known, asked), len(self._known) - 1)
        unknown = asked[self._known[places] != asked]
        if len(unknown):
            raise InputError(f"the index has no label {unknown[0].item()!r}{self._near(unknown[0])}")
        parts = [self._order[self._bounds[place] : self._bounds[place + 1]] for place in places]
        found = self._known[places]
        plain = found.tolist() if words else found.astype(np.int64).tolist()
        return Only(plain, parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts)))

    def _near(self, label: Any) -> str:
        known = self._known.tolist()
        if self._known.dtype.kind == "U":
            near = did_you_mean(str(label), known)
            if "did you mean" in near or len(known) <= _MANY:
                return near
        elif len(known) <= _MANY:
            return "; known are " + ", ".join(str(one) for one in known)
        return f"; it has {len(known):,} others, from {known[0]!r} to {known[-1]!r}"
