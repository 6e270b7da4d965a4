"""The same map for embedding-atlas, a viewer of its own: one Parquet file, and its server beside ours.

Knows a map, pictures and the columns that embedding-atlas takes (version 0.26): it is a program that is started, never
imported.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.classify import similarities
from nearfar.explore.store import SPLITS, Map
from nearfar.explore.subject import Subject
from nearfar.files import write_atomic

PROGRAM = "embedding-atlas"
FILE = "atlas.parquet"
_GROUP = 10_000  # rows of which the pictures are in memory together
_PATIENCE = 5.0  # seconds that the program is given to end


def write(subject: Subject, made: Map, folder: Path) -> Path:
    """Write ``atlas.parquet`` into a folder.

    Columns: ``name``, ``split``, ``label``, ``prediction`` and ``right`` (null where there is none), ``probability``,
    ``suspicion``, ``x``, ``y``, ``text`` (all of it in a line), ``image`` (a struct of ``bytes``, a PNG or null, and ``path``)
    and ``neighbors`` (a struct of ``ids``, numbers of rows, and ``distances``: 1 - cosine, minus the dot product, or the
    Euclidean one).

    Raises:
        InputError: the folder cannot be written to.
    """
    import pyarrow.parquet as pq

    path = folder / FILE
    with write_atomic(path) as file:
        writer = None
        for start in range(0, len(made), _GROUP):
            table = _table(subject, made, range(start, min(start + _GROUP, len(made))))
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()
    return path


def command(path: Path, port: int) -> list[str]:
    """The command line that opens the file."""
    columns = {"x": "x", "y": "y", "text": "text", "image": "image", "neighbors": "neighbors"}
    named = [part for option, column in columns.items() for part in (f"--{option}", column)]
    return [PROGRAM, str(path), *named, "--host", "127.0.0.1", "--port", str(port), "--no-mcp"]


@contextlib.contextmanager
def running(path: Path, note: Callable[[str], None], *, port: int = 5055) -> Iterator[None]:
    """Have embedding-atlas serve the file meanwhile; where it is not installed, say how it is."""
    if shutil.which(PROGRAM) is None:
        note(f"wrote {path}; {PROGRAM} is not installed: pip install {PROGRAM}, best in an environment of its own, then run "
             f"{' '.join(command(path, port))}")  # fmt: skip
        yield
        return
    process = subprocess.Popen(command(path, port), stdin=subprocess.DEVNULL, start_new_session=True)
    note(f"{PROGRAM} shows {path} at the address that it prints; its map needs a browser with WebGPU")
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _table(subject: Subject, made: Map, rows: range) -> Any:
    import pyarrow as pa

    part = slice(rows.start, rows.stop)
    names = made.names[part]
    label, prediction = ([made.class_of(number) for number in one[part].tolist()] for one in (made.labels, made.predictions))
    splits = [SPLITS[number] for number in made.splits[part].tolist()]
    distances = _distances(made.scores[part], made.metric)
    struct = pa.StructArray.from_arrays
    lists = pa.ListArray.from_arrays
    ends = pa.array(np.arange(len(rows) + 1) * made.neighbors.shape[1], pa.int32())
    return pa.table(
        {
            "name": names,
            "split": splits,
            "label": pa.array(label, pa.string()),
            "prediction": pa.array(prediction, pa.string()),
            "right": pa.array(~made.wrong[part], mask=~made.told[part]),
            "probability": made.probability[part],
            "suspicion": made.suspicion[part],
            "x": made.xy[part, 0],
            "y": made.xy[part, 1],
            "text": [
                f"{one}, {where}" if is_ is None else f"{one}, {where}, labelled {is_}"
                for one, where, is_ in zip(names, splits, label, strict=True)
            ],
            "image": struct(
                [pa.array([subject.picture(row) for row in rows], pa.binary()), pa.array([f"{row}.png" for row in rows])],
                ["bytes", "path"],
            ),
            "neighbors": struct(
                [
                    lists(ends, pa.array(made.neighbors[part].astype(np.int64).ravel())),
                    lists(ends, pa.array(distances.astype(np.float64).ravel())),
                ],
                ["ids", "distances"],
            ),
        }
    )


def _distances(scores: np.ndarray, metric: str) -> np.ndarray:
    if metric == "euclidean":
        return scores
    nearness = similarities(scores, "dot")
    return np.asarray(np.maximum(1.0 - nearness, 0.0) if metric == "cosine" else -nearness)
