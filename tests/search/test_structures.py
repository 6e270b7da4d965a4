"""Files of engines whose links were forged: what is let through can be searched, whatever it finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from usearch.index import Index

from nearfar.search import NeighborIndex
from nearfar.search.structures import BrokenStructure, check_forest, check_graph

Z = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)

# Every copy of the file has one number overwritten. It is refused, or else searched, which must not end the process.
PROGRAM = """
import sys, numpy as np
from pathlib import Path
from nearfar.errors import InputError
from nearfar.search.engines import ENGINES
name, refused = sys.argv[1], 0
queries = np.random.default_rng(1).normal(size=(20, 6)).astype("f")
for metric, source in zip(("cosine", "dot", "euclidean"), map(Path, sys.argv[2:]), strict=True):
    content, rng = source.read_bytes(), np.random.default_rng(0)
    for turn in range(250):
        forged = bytearray(content)
        at = int(rng.integers(0, len(content) // 4 if turn % 2 else 60)) * 4 if turn % 4 else len(content) - 4 * (turn + 1)
        forged[at : at + 4] = int(rng.choice([0, 1, 2, 77, 499, 500, 501, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little")
        path = source.with_name(f"forged{turn}")
        path.write_bytes(forged)
        engine = ENGINES[name](metric, **({"longest": 9.0} if name == "hnsw" and metric == "dot" else {}))
        try:
            engine.read(path, 6, 500)
        except InputError as error:
            refused += 1
            continue
        engine.search(queries, 40)
print(refused)
"""


def engine_file(folder: Path, backend: str, metric: str) -> Path:
    NeighborIndex(metric, backend).fit(Z).save(folder)
    return next(folder.glob("engine-*.bin"))


@pytest.mark.parametrize("backend", ["hnsw", "annoy"])
def test_a_forged_file_is_refused_or_harmless(tmp_path: Path, backend: str) -> None:
    paths = [str(engine_file(tmp_path / metric, backend, metric)) for metric in ("cosine", "dot", "euclidean")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, backend, *paths], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_links_of_a_graph_that_lead_astray(tmp_path: Path) -> None:
    index = Index(ndim=6, metric="l2sq", dtype="f32", connectivity=4)
    empty = bytes(index.save())
    index.add(np.arange(500), Z)
    whole = bytes(index.save())
    path = tmp_path / "graph"
    path.write_bytes(whole)
    check_graph(np.memmap(path, np.uint8, mode="r"), empty, 24, 500)
    head = 8 + 500 * 24
    nodes = head + 64 + 40 + 2 * 500
    for at, number, message in [
        (0, 499, "not hold such vectors"),
        (head + 16, 7, "not hold such vectors"),
        (head + 64, 501, "not hold such vectors"),
        (head + 64 + 32, 500, "numbers that cannot be"),
        (head + 64 + 8, 0, "numbers that cannot be"),
        (head + 64 + 40, 0x7FFF, "impossible layers"),
        (head + 64 + 40, 0x00010001, "shorter or longer|contradict|impossible"),
        (nodes + 8, 0x00010000 + index.connectivity, "contradict|more links"),
        (nodes + 10, 9, "more links at a node"),
        (nodes + 14, 500, "lead to no node"),
    ]:
        forged = bytearray(whole)
        forged[at : at + 4] = number.to_bytes(4, "little")
        path.write_bytes(forged)
        with pytest.raises(BrokenStructure, match=message):
            check_graph(np.memmap(path, np.uint8, mode="r"), empty, 24, 500)
    for cut in (0, 7, 100, head + 30, nodes + 3, len(whole) - 4):
        path.write_bytes(whole[:cut] if cut else b"\0")
        with pytest.raises(BrokenStructure):
            check_graph(np.memmap(path, np.uint8, mode="r"), empty, 24, 500)


def test_children_in_a_forest_that_lead_astray(tmp_path: Path) -> None:
    path = engine_file(tmp_path, "annoy", "cosine")
    whole = np.fromfile(path, "<i4").reshape(-1, 9)
    check_forest(path, "angular", 6, 500)
    inner = int(np.flatnonzero(whole[:, 0] > 8)[0])
    leaf = int(np.flatnonzero((np.arange(len(whole)) >= 500) & (whole[:, 0] <= 8))[0])
    for row, column, number, message in [
        (3, 0, 2, "vectors that are no leaves"),
        (leaf, 0, 0, "leaves that hold no vectors"),
        (leaf, 1, 500, "leaves that hold no vectors"),
        (leaf, 1, -1, "leaves that hold no vectors"),
        (inner, 1, inner, "children that are no nodes below"),
        (inner, 2, -3, "children that are no nodes below"),
        (3, 8, 0x7FC00000, "vectors that are not finite"),
        (inner, 8, 0x7F800000, "planes that are not finite"),
    ]:
        forged = whole.copy()
        forged[row, column] = number
        forged.tofile(path)
        with pytest.raises(BrokenStructure, match=message):
            check_forest(path, "angular", 6, 500)
    whole.ravel()[:-1].tofile(path)
    with pytest.raises(BrokenStructure, match="whole nodes"):
        check_forest(path, "angular", 6, 500)


def test_a_forest_is_read_and_let_go_without_standard_input(tmp_path: Path) -> None:
    path = engine_file(tmp_path, "annoy", "cosine")
    program = """
import os, sys, numpy as np
from pathlib import Path
from nearfar.search.engines import ENGINES
os.close(0)
engine = ENGINES["annoy"]("cosine")
engine.read(Path(sys.argv[1]), 6, 500)
print(engine.search(np.ones((1, 6), "f"), 3).shape)
del engine
print("let go")
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["(1, 3)", "let go"]), done.stderr
