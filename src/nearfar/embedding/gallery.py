"""An index made of a folder of embeddings, whose vectors are never held as a whole. It embeds nothing.

Vectors go part by part to one file, which is then mapped; ids of rows are their numbers in order of the data, and the index
keeps the names of images and of classes. Those are held: some 100 bytes an image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.data.imageset import class_order
from nearfar.embedding.output import Embeddings, Floats
from nearfar.errors import InputError
from nearfar.files import explain_os_errors
from nearfar.search import NeighborIndex
from nearfar.search.chunks import write_vectors


def build_index(
    embeddings: str | Path,
    *,
    out: str | Path,
    backend: str = "auto",
    metric: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build an index of a folder of embeddings, for `nearfar.NeighborIndex.load` and ``nearfar search --index``.

    Args:
        embeddings: what `nearfar.embedding.embed_stream` wrote.
        out: the folder of the index; an index that is there is searched until the new one takes its place, at once.
        backend: as of `nearfar.NeighborIndex`.
        metric: None: that of the run.
        options: of the backend.

    Returns:
        ``out``, ``images``, ``dim``, ``classes`` (how many), ``metric``, and what ``NeighborIndex.built`` says.

    Raises:
        InputError: the embeddings are not finished or damaged, ``out`` holds something else, or the backend is missing.
    """
    found, folder = Embeddings(embeddings), Path(out)
    metric = str(found.model["metric"]) if metric is None else metric
    names: list[str] = []
    numbers: list[int] = []
    known: dict[str, int] = {}

    def parts() -> Iterator[Floats]:
        for z, ids, labels in found.batches():
            names.extend(ids)
            numbers.extend(-1 if label is None else known.setdefault(label, len(known)) for label in labels)
            if len(z):
                yield z

    if not found.rows:
        raise InputError(f"{embeddings} holds no embeddings, and an index cannot be empty")
    with explain_os_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        vectors = write_vectors(Path(beside) / "vectors.npy", parts(), metric=metric)
        classes = class_order(known)
        place = np.array([classes.index(name) for name in known] + [-1], dtype=np.int64)
        labels = place[np.array(numbers, dtype=np.int64)]
        index = NeighborIndex(metric, backend, options).fit(vectors, labels)
        index.save(folder, model_hash=str(found.model["sha256"]), names={"images": names, "classes": classes})
    return {
        "out": str(folder),
        "images": len(index),
        "dim": index.n_features_in_,
        "classes": len(classes),
        "metric": metric,
        **index.built,
    }
