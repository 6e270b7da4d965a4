"""A run's index built anew while it is searched and changed. Nothing is embedded.

The new one is made beside, from the vectors of the old one, which goes on answering: whoever opened it keeps it, and a server
takes the new one over within a second. Only then is the folder held against writers, for as long as one manifest takes to be
replaced. What was added or removed meanwhile is brought over first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nearfar import runs
from nearfar.errors import InputError
from nearfar.files import only_writer
from nearfar.runs.opening import load_index
from nearfar.search import NeighborIndex

_TRIES = 3


def rebuild_index(run: str | Path, *, backend: str | None = None, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Build the index of a run anew, with the same or another backend, and put it in the place of the old one at once.

    Args:
        run: the run folder.
        backend: as of `nearfar.NeighborIndex`; None: the one that it was made with.
        options: of the backend.

    Returns:
        ``out`` (the folder of the index), ``images``, ``dim``, ``metric``, and what ``NeighborIndex.built`` says.

    Raises:
        InputError: the run or the backend cannot be used, or another process keeps changing the index.
    """
    folder = Path(run)
    config = runs.read_finished(folder)
    for _ in range(_TRIES):
        old = load_index(folder, config, config["classes"])
        asked = old.backend if backend is None else backend
        new = NeighborIndex(old.metric, asked, options).fit(old.vectors, old.labels, old.ids)
        with only_writer(folder):
            now = load_index(folder, config, config["classes"])
            if not _brought_over(new, now):
                continue  # labels were numbered anew, say: from the beginning
            new.save(folder / runs.INDEX, model_hash=now.model_hash, names=now.names)
        return {
            "out": str(folder / runs.INDEX),
            "images": len(new),
            "dim": new.n_features_in_,
            "metric": new.metric,
            **new.built,
        }
    raise InputError(f"the index in {folder} was changed each time while it was built anew; try again when others are done")


def _brought_over(new: NeighborIndex, now: NeighborIndex) -> bool:
    """Remove from ``new`` and add to it what it lacks of ``now``; whether both then hold the same."""
    gone = np.setdiff1d(new.ids, now.ids)
    if len(gone) == len(new):
        return False
    if len(gone):
        new.remove(gone)
    come = np.flatnonzero(~np.isin(now.ids, new.ids))
    if len(come):
        new.add(now.vectors[come], None if now.labels is None else now.labels[come], ids=now.ids[come])
    same = np.array_equal(new.ids, now.ids) and np.array_equal(np.asarray(new.labels), np.asarray(now.labels))
    return same and np.array_equal(new.vectors, now.vectors)
