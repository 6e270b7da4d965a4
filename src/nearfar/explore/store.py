"""The map of a run as one file, ``map.parquet``: points, what is said of them, their neighbours, and what it all holds for.

Knows arrays and Parquet; neither how a map is made nor how it is shown. The file is written whole or not at all, its pages
bear checksums, and what is read is checked before anyone counts with it: a run may come from a stranger. N points, of which the
first M are the rows of the run's index in their order; K neighbours each, which are rows of the index.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError, reason_of
from nearfar.files import NOT_JSON, write_atomic

if TYPE_CHECKING:
    from nearfar.search import NeighborIndex

MAP = "map.parquet"
SPLITS = ("gallery", "added", "test", "validation", "unseen")
"""What a point is: an image of training, one that was added to the index since, or one of those that the run is judged by."""

_FORMAT = 1
_KEY = b"nearfar"
_BLOCK = 1 << 22

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Map:
    """All that the explorer shows."""

    bound_to: dict[str, Any]  # see `nearfar.explore.make.binding`
    method: str  # "t-SNE" or "PCA"
    metric: str  # of the scores
    classes: list[str]
    source: str  # what the images are
    names: list[str]  # [N]
    splits: npt.NDArray[np.int8]  # [N], numbers of `SPLITS`
    labels: npt.NDArray[np.int32]  # [N], numbers of ``classes``; -1: none
    predictions: npt.NDArray[np.int32]  # [N], numbers of ``classes``; -1 for all where no image of the index has a label
    probability: Floats  # [N], that the prediction is right; 0 where there is none
    suspicion: Floats  # [N], from 0 to 1, the neighbours surely contradict the label; 0 where there is none
    xy: Floats  # [N, 2], from 0 to 1, y upwards
    ids: Ints  # [N], those of the index; -1 for the others
    marks: npt.NDArray[np.uint64]  # [N], see `row_marks`; 0 for the others
    neighbors: npt.NDArray[np.int32]  # [N, K], rows of the index, the nearest first
    scores: Floats  # [N, K]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def gallery(self) -> int:
        """M, how many of the points are rows of the index."""
        return int((self.ids >= 0).sum())

    @property
    def told(self) -> npt.NDArray[np.bool_]:
        """Which points have a label and a prediction, and so are right or wrong [N]."""
        return (self.labels >= 0) & (self.predictions >= 0)

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        """Which points have a label that is not what was predicted [N]."""
        return self.told & (self.labels != self.predictions)

    def class_of(self, number: int) -> str | None:
        """The name of a class; None for -1."""
        return None if number < 0 else self.classes[number]


@dataclass(frozen=True, eq=False)
class Placed:
    """Of a map, where the rows of the index lay when it was made."""

    bound_to: dict[str, Any]
    method: str
    ids: Ints  # [M]
    marks: npt.NDArray[np.uint64]  # [M]
    xy: Floats  # [M, 2]


def write_map(folder: Path, made: Map) -> Path:
    """Keep a map in a run folder, in place of an earlier one.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "name": pa.array(made.names, pa.string()),
        "split": pa.array(made.splits),
        "label": pa.array(made.labels),
        "prediction": pa.array(made.predictions),
        "probability": pa.array(made.probability),
        "suspicion": pa.array(made.suspicion),
        "x": pa.array(made.xy[:, 0]),
        "y": pa.array(made.xy[:, 1]),
        "id": pa.array(made.ids),
        "mark": pa.array(made.marks),
        "neighbors": pa.FixedSizeListArray.from_arrays(pa.array(made.neighbors.ravel()), made.neighbors.shape[1]),
        "scores": pa.FixedSizeListArray.from_arrays(pa.array(made.scores.ravel()), made.scores.shape[1]),
    }
    about = {
        "format": _FORMAT,
        "bound_to": made.bound_to,
        "method": made.method,
        "metric": made.metric,
        "classes": made.classes,
        "source": made.source,
    }
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about, ensure_ascii=False).encode()})
    path = folder / MAP
    with write_atomic(path) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    return path


def read_map(folder: Path) -> Map | None:
    """The map of a run folder, whatever it holds for; None where there is none, or it is of another format.

    Raises:
        InputError: the file is damaged.
    """
    read = _read(folder, None)
    if read is None:
        return None
    about, columns = read
    path, count = folder / MAP, len(columns["x"])
    made = Map(
        bound_to=about["bound_to"],
        method=about["method"],
        metric=about["metric"],
        classes=about["classes"],
        source=about["source"],
        names=columns["name"].to_pylist(),
        splits=_numbers(columns["split"], np.int8),
        labels=_numbers(columns["label"], np.int32),
        predictions=_numbers(columns["prediction"], np.int32),
        probability=_numbers(columns["probability"], np.float32),
        suspicion=_numbers(columns["suspicion"], np.float32),
        xy=_xy(columns),
        ids=_numbers(columns["id"], np.int64),
        marks=_numbers(columns["mark"], np.uint64),
        neighbors=_lists(columns["neighbors"], np.int32),
        scores=_lists(columns["scores"], np.float32),
    )
    gallery = made.gallery
    sound = (
        made.neighbors.shape == made.scores.shape == (count, made.neighbors.shape[1])
        and (made.ids[:gallery] >= 0).all()
        and ((made.neighbors >= 0) & (made.neighbors < gallery)).all()
        and ((made.splits >= 0) & (made.splits < len(SPLITS))).all()
        and all(((one >= -1) & (one < len(made.classes))).all() for one in (made.labels, made.predictions))
        and all(np.isfinite(one).all() for one in (made.xy, made.probability, made.suspicion, made.scores))
        and None not in made.names
    )
    if not sound:
        raise _damaged(path, "its numbers are out of range")
    return made


def read_placed(folder: Path) -> Placed | None:
    """Of the map in a run folder only where rows of the index lay; None and errors as for `read_map`."""
    read = _read(folder, ["id", "mark", "x", "y"])
    if read is None:
        return None
    about, columns = read
    ids, xy = _numbers(columns["id"], np.int64), _xy(columns)
    rows = ids >= 0
    if not np.isfinite(xy).all():
        raise _damaged(folder / MAP, "its positions are not finite")
    return Placed(about["bound_to"], about["method"], ids[rows], _numbers(columns["mark"], np.uint64)[rows], xy[rows])


def row_marks(ids: npt.ArrayLike, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """A number for each row of an index, uint64 [M], that tells whether its id still stands for the same vector.

    A sum of the bits of the id and of the vector's float32 numbers, times fixed odd weights, modulo 2^64. It notices what was
    exchanged; it does not withstand someone who wants to deceive it.

    Args:
        ids: whole numbers [M].
        vectors: [M, D].
    """
    weights = np.random.default_rng(0).integers(0, 1 << 63, vectors.shape[1] + 1, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    marks = np.asarray(ids, dtype=np.int64).view(np.uint64) * weights[-1]
    step = max(1, _BLOCK // max(1, vectors.shape[1]))
    for start in range(0, len(marks), step):
        bits = np.ascontiguousarray(vectors[start : start + step], dtype="<f4").view("<u4").astype(np.uint64)
        marks[start : start + step] += bits @ weights[:-1]
    return marks


def content_hash(index: NeighborIndex) -> str:
    """SHA-256 of the ids, labels, vectors and names of an index, as hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(index.names, sort_keys=True).encode())
    for column, kind in ((index.ids, "<i8"), (index.labels, "<i8"), (index.vectors, "<f4")):
        digest.update(np.ascontiguousarray(column, dtype=kind).data)
    return digest.hexdigest()


def _read(folder: Path, wanted: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What the file says of itself, and its columns; None where there is no file of this format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / MAP
    if not path.exists():
        return None
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            about = json.loads((file.schema_arrow.metadata or {})[_KEY])
            if about["format"] != _FORMAT:
                return None
            table = file.read(wanted)
        texts = (about["method"], about["metric"], about["source"], *about["classes"])
        if not (isinstance(about["bound_to"], dict) and all(isinstance(one, str) for one in texts)):
            raise ValueError("it does not say what it is of")
        if any(column.null_count for column in table.columns):
            raise ValueError("values are missing")
        columns = {name: table.column(name).combine_chunks() for name in wanted or _COLUMNS}
    except (pa.ArrowException, OSError, *NOT_JSON, KeyError, TypeError) as error:
        raise _damaged(path, reason_of(error)) from None
    return about, columns


_COLUMNS = (
    *("name", "split", "label", "prediction", "probability", "suspicion", "x", "y", "id", "mark", "neighbors", "scores"),
)


def _numbers(column: Any, kind: Any) -> npt.NDArray[Any]:
    return np.array(column.to_numpy(zero_copy_only=False), dtype=kind)


def _lists(column: Any, kind: Any) -> npt.NDArray[Any]:
    return np.array(column.flatten().to_numpy(zero_copy_only=False), dtype=kind).reshape(len(column), -1)


def _xy(columns: dict[str, Any]) -> Floats:
    return np.stack([_numbers(columns[axis], np.float32) for axis in ("x", "y")], axis=1)


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged ({reason}); delete it, and nearfar explore makes it anew")
