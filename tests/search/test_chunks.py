"""A gallery written by parts is the one written at once; what fails leaves nothing, or what was there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nearfar.errors import InputError
from nearfar.search import NeighborIndex
from nearfar.search.chunks import write_vectors
from nearfar.search.vectors import METRICS


@pytest.mark.parametrize("metric", METRICS)
def test_parts_make_the_index_that_the_whole_makes(tmp_path: Path, metric: str) -> None:
    z = np.random.default_rng(0).normal(size=(1234, 7)).astype(np.float32)
    parts = (z[start : start + 100] for start in range(0, 1234, 100))
    mapped = write_vectors(tmp_path / "deep" / "z.npy", parts, metric=metric)
    assert isinstance(mapped, np.memmap)
    assert mapped.mode == "r"
    index, whole = NeighborIndex(metric).fit(mapped), NeighborIndex(metric).fit(z)
    assert np.shares_memory(index.vectors, mapped)
    np.testing.assert_array_equal(mapped, whole.vectors)
    for one, other in zip(index.search(z[:9], 5), whole.search(z[:9], 5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_failure_leaves_the_earlier_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "z.npy"
    write_vectors(path, [np.eye(3)], metric="dot")

    def breaks_off() -> Iterator[np.ndarray]:
        yield np.ones((5, 3))
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_vectors(path, breaks_off(), metric="dot")
    for parts, message in [
        ([], "parts is empty"),
        ([np.eye(3), np.eye(2)], "part 1 has 2 features, but part 0 is expecting 3"),
        ([np.eye(3), np.full((1, 3), np.nan)], "part 1 row 0 holds NaN"),
        ([np.eye(3), np.zeros((1, 3))], "part 1 row 0 is all zeros"),
    ]:
        with pytest.raises(InputError, match=message):
            write_vectors(path, parts)
    with pytest.raises(InputError, match=r"does not end in .npy; call the file vectors.npy"):
        write_vectors(tmp_path / "vectors", [np.eye(3)])
    np.testing.assert_array_equal(np.load(path), np.eye(3))
    assert [file.name for file in tmp_path.iterdir()] == ["z.npy"]
