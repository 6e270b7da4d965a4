"""An index built anew while others search it, add to it and serve it."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from samples import TINY, shapes

from nearfar import verbs
from nearfar.errors import InputError
from nearfar.recipe import Recipe
from nearfar.runs import indexing, rebuilding
from nearfar.runs.rebuilding import rebuild_index
from nearfar.search import NeighborIndex

CLI = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rebuilt") / "run"
    verbs.train(shapes(300), recipe=Recipe.from_dict(TINY), out=folder, epochs=1)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_searches_go_on_with_the_state_before_or_the_state_after(run: Path) -> None:
    folder = run / "index"
    opened = NeighborIndex.load(folder)
    queries = np.array(opened.vectors[:7])
    states = {backend: NeighborIndex.load(folder, backend=backend).search(queries, 5) for backend in ("exact", "hnsw")}
    before = opened.search(queries, 5)
    seen: list[str] = []
    faults: list[BaseException] = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set() or len(seen) < 20:
            try:
                index = NeighborIndex.load(folder)
                backend = str(index.built["backend"])
                for given, expected in zip(index.search(queries, 5), states[backend], strict=True):
                    np.testing.assert_array_equal(given, expected)
                seen.append(backend)
            except BaseException as fault:
                faults.append(fault)
                return

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(8):
        said = rebuild_index(run, backend=("hnsw", "exact")[number % 2])
        assert said["backend"] == ("hnsw", "exact")[number % 2]
    done.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert set(seen) <= {"exact", "hnsw"}
    for given, expected in zip(opened.search(queries, 5), before, strict=True):  # its files have gone, its map has not
        np.testing.assert_array_equal(given, expected)


def test_what_is_added_and_removed_meanwhile_is_in_the_new_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, name = NeighborIndex.fit, NeighborIndex.load(run / "index").names["images"][5]

    def slow(self: NeighborIndex, *arguments: object) -> NeighborIndex:
        monkeypatch.setattr(NeighborIndex, "fit", fit)
        made = fit(self, *arguments)
        indexing.add_images(run, shapes(8, seed=9), label="b")
        indexing.remove_images(run, ids=[name])
        return made

    monkeypatch.setattr(NeighborIndex, "fit", slow)
    said = rebuild_index(run, backend="hnsw")
    index, expected = NeighborIndex.load(run / "index", verify=True), len(shapes(300)) * 0.8
    assert said["images"] == len(index) == len(index.names["images"])
    assert name not in index.names["images"]
    assert sum(one.startswith("shapes/") for one in index.names["images"]) == 8
    assert expected - 1 <= len(index) - 7 <= 300
    z = np.array(index.vectors)
    np.testing.assert_array_equal(index.search(z, 1)[0], NeighborIndex().fit(z).search(z, 1)[0])


def test_an_index_that_changes_each_time_is_given_up(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "_brought_over", lambda new, now: False)
    before = (run / "index" / "index.json").read_bytes()
    with pytest.raises(InputError, match="was changed each time while it was built anew"):
        rebuild_index(run)
    assert (run / "index" / "index.json").read_bytes() == before


def test_a_server_takes_the_new_one_over(run: Path) -> None:
    from nearfar.serve.state import Served

    served = Served(run, device="cpu")
    assert served.now.index.built["backend"] == "exact"
    assert not served.follow()
    rebuild_index(run, backend="hnsw")
    assert served.follow()
    assert served.now.index.built["backend"] == "hnsw"
    assert served.trouble is None


def test_on_the_command_line(run: Path, cli: CLI) -> None:
    code, said, error = cli("index", "rebuild", run, "--backend", "hnsw")
    assert code == 0, error
    assert said.startswith("hnsw index of ")
    assert "against exact search" in said
    code, said, _ = cli("index", "rebuild", run, "--json")  # as it was made
    assert json.loads(said)["backend"] == "hnsw"
