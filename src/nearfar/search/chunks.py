"""A gallery that is written part by part and never held as a whole: what ``NeighborIndex.fit`` then maps into memory."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.errors import InputError
from nearfar.files import write_atomic
from nearfar.search.vectors import Floats, as_vectors, check_metric, unit_rows


def write_vectors(path: Path | str, parts: Iterable[Any], *, metric: str = "cosine") -> Floats:
    """Write vectors that come in parts to one .npy file, and return it mapped into memory.

    ``NeighborIndex(metric).fit(write_vectors(path, parts, metric=metric))`` builds an index of more vectors than memory holds.

    Args:
        path: the file, ``.npy``; it appears when it is whole.
        parts: arrays [n, D], one after another.
        metric: with "cosine" rows are divided by their lengths, as the index wants them.

    Returns:
        A read-only map, float32 [N, D].

    Raises:
        InputError: there is no part, one has another D, NaN or (cosine) a row of zeros, or the disk is full.
    """
    path, metric, rows, dimensions = Path(path), check_metric(metric), 0, 0
    if path.suffix != ".npy":
        raise InputError(f"{path} does not end in .npy; call the file {path.name}.npy")
    with write_atomic(path) as file:
        for number, part in enumerate(parts):
            name = f"part {number}"
            vectors = as_vectors(part, name, dimensions=dimensions or None, owner="part 0")
            if metric == "cosine":
                vectors = unit_rows(vectors, name)
            if not rows:
                dimensions = vectors.shape[1]
                file.write(_header(0, dimensions))
            file.write(vectors.data)
            rows += len(vectors)
        if not rows:
            raise InputError("parts is empty, expected at least one array [n, D]")
        file.seek(0)
        file.write(_header(rows, dimensions))
    mapped: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _header(rows: int, dimensions: int) -> bytes:
    """Return the head of a .npy file; NumPy leaves room in it, so that its length does not depend on the rows."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": (rows, dimensions)}
    )
    return head.getvalue()
