"""Maps that are kept, read and refused; rows that came later; queries among their neighbours."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from explore.explore_samples import MODEL, random_index, random_map

from nearfar.classify import similarities
from nearfar.errors import InputError
from nearfar.explore import open_positions
from nearfar.explore.positions import NEIGHBORS, Positions, place
from nearfar.explore.store import MAP, content_hash, read_map, row_marks, write_map


def slow_place(neighbors: npt.NDArray[np.float64], similar: npt.NDArray[np.float64]) -> list[float]:
    """The rule for one query, as its docstring says it."""
    k, mean = len(similar), sum(similar) / len(similar)
    weights = [1.0 if max(similar) == mean else float(np.exp((s - max(similar)) / (max(similar) - mean))) for s in similar]
    apart = [[float(np.hypot(*(neighbors[i] - neighbors[j]))) for j in range(k)] for i in range(k)]
    sums = [sum(weights[j] * apart[i][j] for j in range(k)) for i in range(k)]
    middle = sums.index(min(sums))
    near = sorted(range(k), key=lambda j: apart[middle][j])[: (k + 1) // 2]
    total = sum(weights[j] for j in near)
    return [sum(weights[j] * float(neighbors[j][axis]) for j in near) / total for axis in (0, 1)]


def test_a_map_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    made = random_map(random_index())
    assert write_map(tmp_path, made) == tmp_path / MAP
    read = read_map(tmp_path)
    assert read is not None
    for field in dataclasses.fields(made):
        ours, theirs = getattr(made, field.name), getattr(read, field.name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs
    assert [path.name for path in tmp_path.iterdir()] == [MAP]


def test_no_map_is_none(tmp_path: Path) -> None:
    assert read_map(tmp_path) is None
    assert open_positions(tmp_path, random_index()) is None


@pytest.mark.parametrize("at", [0.0, 0.3, 0.6, 0.95])
def test_a_damaged_map_is_one_line(tmp_path: Path, at: float) -> None:
    path = write_map(tmp_path, random_map(random_index(400)))
    content = bytearray(path.read_bytes())
    for byte in range(8):
        content[int(at * len(content)) + byte] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"map\.parquet is damaged .*delete it") as caught:
        read_map(tmp_path)
    assert "\n" not in str(caught.value)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged"):
        open_positions(tmp_path, random_index(400))


@pytest.mark.parametrize("field", ["neighbors", "labels", "predictions", "splits", "xy", "probability"])
def test_numbers_out_of_range_are_refused(tmp_path: Path, field: str) -> None:
    made = random_map(random_index())
    values = getattr(made, field).copy()
    values[3] = 99 if values.dtype.kind == "i" else np.nan
    write_map(tmp_path, dataclasses.replace(made, **{field: values}))
    with pytest.raises(InputError, match="out of range"):
        read_map(tmp_path)


def test_a_map_of_another_model_gives_no_positions(tmp_path: Path) -> None:
    index = random_index()
    write_map(tmp_path, random_map(index))
    assert open_positions(tmp_path, index) is not None
    index._model_hash = MODEL[::-1]
    assert open_positions(tmp_path, index) is None


def test_marks_and_hash_notice_what_was_exchanged() -> None:
    index = random_index()
    vectors = np.asarray(index.vectors)
    marks = row_marks(index.ids, vectors)
    assert len(set(marks.tolist())) == len(marks)
    changed = vectors.copy()
    changed[5, 2] = np.nextafter(changed[5, 2], 2.0, dtype=np.float32)
    np.testing.assert_array_equal(np.flatnonzero(row_marks(index.ids, changed) != marks), [5])
    assert (row_marks(index.ids + 1, vectors) != marks).all()
    before = content_hash(index)
    assert content_hash(random_index()) == before
    index.remove([4])
    assert content_hash(index) != before


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_rows_keep_their_place_and_added_ones_lie_among_their_neighbours(tmp_path: Path, metric: str) -> None:
    index = random_index(metric=metric)
    made = random_map(index)
    write_map(tmp_path, made)
    fresh = np.random.default_rng(9).normal(size=(5, 6)).astype(np.float32)
    scores, rows = index.search_rows(fresh, NEIGHBORS)
    expected = [slow_place(made.xy[near], likeness) for near, likeness in zip(rows, similarities(scores, metric), strict=True)]
    index.remove(index.ids[[3, 7]])
    kept = np.delete(np.arange(40), [3, 7])
    index.add(fresh, np.zeros(5, np.int64), ids=[6, 100, 101, 102, 103])  # 6 was row 3, which is another image now
    found = open_positions(tmp_path, index)
    assert found is not None
    assert (found.xy.shape, found.xy.dtype, found.method) == ((43, 2), np.float32, "t-SNE")
    np.testing.assert_array_equal(found.xy[:38], made.xy[kept])
    clean = ~np.isin(rows, [3, 7]).any(axis=1)
    assert clean.any()
    np.testing.assert_allclose(found.xy[38:][clean], np.array(expected)[clean], atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_place_is_its_rule(k: int) -> None:
    random = np.random.default_rng(k)
    xy = random.random((50, 2)).astype(np.float32)
    rows = random.integers(0, 50, (30, k))
    similar = -np.sort(-random.random((30, k)), axis=1)
    similar[0] = 0.5
    found = Positions(xy, "PCA").place(rows, similar)
    expected = [slow_place(xy[near].astype(np.float64), one) for near, one in zip(rows, similar, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_query_between_two_groups_lies_in_the_greater_one() -> None:
    groups = np.array([[0.1, 0.1]] * 6 + [[0.9, 0.9]] * 4, dtype=np.float32)
    assert place(groups[None], np.linspace(0.9, 0.8, 10)[None])[0].tolist() == pytest.approx([0.1, 0.1])


def test_positions_need_neither_torch_nor_what_draws(tmp_path: Path) -> None:
    code = (
        "import sys, nearfar.explore.positions; "
        "print([name for name in ('torch', 'plotly', 'openTSNE', 'fastapi', 'sklearn', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
