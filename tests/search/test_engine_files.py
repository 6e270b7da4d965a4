"""The file of an engine in the folder of an index: mapped, checked, and never half there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfar import files
from nearfar.errors import InputError
from nearfar.search import NeighborIndex, storage
from nearfar.search.engines import ENGINES

Z = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
Q = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
MAPPED = ["hnsw", "annoy"]


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "index.json").read_text()))


def path_of(folder: Path, what: str = "engine") -> Path:
    return folder / str(manifest(folder)["files"][what]["name"])


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = manifest(folder)
    change(tree)
    (folder / "index.json").write_text(json.dumps(tree))


def saved(folder: Path, backend: str) -> NeighborIndex:
    index = NeighborIndex(backend=backend).fit(Z, np.arange(400) % 4)
    index.save(folder)
    return index


Put = Callable[[Path, str], None]


@pytest.fixture(scope="module")
def put(tmp_path_factory: pytest.TempPathFactory) -> Put:
    """Put what `saved` writes into a folder; an index of each engine is built once."""
    made: dict[str, Path] = {}

    def copy(folder: Path, backend: str) -> None:
        if backend not in made:
            made[backend] = tmp_path_factory.mktemp(backend)
            saved(made[backend], backend)
        shutil.copytree(made[backend], folder, dirs_exist_ok=True)

    return copy


@pytest.mark.parametrize("backend", ENGINES)
def test_the_manifest_names_every_file(tmp_path: Path, backend: str) -> None:
    index = saved(tmp_path, backend)
    tree = manifest(tmp_path)
    assert tree["version"] == 2
    assert tree["backend"] == backend
    assert tree["built"] == index.built
    assert tree["engine"]["name"] == backend
    assert tree["engine"]["keys_given"] == 400
    named = {entry["name"] for entry in tree["files"].values()}
    assert set(tree["files"]) == {"vectors", "ids", "labels", "engine"}
    assert {path.name for path in tmp_path.iterdir()} == named | {"index.json"}
    index.add(Q, np.zeros(30, dtype=int)).remove([0]).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {e["name"] for e in manifest(tmp_path)["files"].values()} | {
        "index.json"
    }


def test_an_exact_index_is_written_as_ever_and_read_from_before(tmp_path: Path) -> None:
    NeighborIndex().fit(Z).save(tmp_path)
    tree = manifest(tmp_path)
    assert tree["version"] == 1
    assert set(tree["files"]) == {"vectors", "ids"}
    assert tree["built"] == {"backend": "exact", "reason": "up to 200,000 vectors exact search is fast, and there are 400"}
    edit(tmp_path, lambda t: (t.pop("backend"), t.pop("built")))  # as it was written before there were engines
    old = NeighborIndex.load(tmp_path)
    assert old.backend == "auto"
    assert old.built["backend"] == "exact"
    np.testing.assert_array_equal(old.search(Q, 3)[1], NeighborIndex().fit(Z).search(Q, 3)[1])


@pytest.mark.parametrize("backend", MAPPED)
def test_an_engine_is_mapped_not_read(tmp_path: Path, put: Put, backend: str) -> None:
    put(tmp_path, backend)
    index = NeighborIndex.load(tmp_path)
    assert str(path_of(tmp_path)) in Path("/proc/self/maps").read_text()
    before = index.search(Q, 5)
    index.save(tmp_path)  # over the very file that it maps
    for one, other in zip(before, index.search(Q, 5), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("backend", ENGINES)
def test_an_engine_goes_on_when_its_file_is_gone(tmp_path: Path, put: Put, backend: str) -> None:
    """Another process may save a new state at any time, which removes the files of the old one."""
    put(tmp_path, backend)
    index = NeighborIndex.load(tmp_path)
    before = index.search(Q, 5)
    path_of(tmp_path).unlink()
    for one, other in zip(before, index.search(Q, 5), strict=True):
        np.testing.assert_array_equal(one, other)
    index.add(Q, np.zeros(30, dtype=int)).save(tmp_path)
    assert len(NeighborIndex.load(tmp_path, verify=True)) == 430


@pytest.mark.parametrize("backend", ENGINES)
def test_exact_search_needs_no_engine(tmp_path: Path, put: Put, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, backend)
    for name in ENGINES[backend].modules:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="pip install"):
        NeighborIndex.load(tmp_path)
    index = NeighborIndex.load(tmp_path, backend="exact")
    assert index.built == {"backend": "exact", "reason": "asked for"}
    np.testing.assert_array_equal(index.search(Q, 5)[1], NeighborIndex(backend="exact").fit(Z).search(Q, 5)[1])


def test_another_engine_is_built_from_the_vectors(tmp_path: Path) -> None:
    saved(tmp_path, "annoy")
    index = NeighborIndex.load(tmp_path, backend="hnsw", options={"ef": 50})
    assert index.built["settings"]["ef"] == 50
    index.save(tmp_path)
    assert NeighborIndex.load(tmp_path).built["backend"] == "hnsw"
    assert NeighborIndex.load(tmp_path, options={"ef": 70})._known.engine.ef == 70


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)


def forge(folder: Path, content: bytes) -> None:
    """Put foreign content in place of the engine's file, and make the manifest agree."""
    path = path_of(folder)
    path.write_bytes(content)
    edit(folder, lambda tree: tree["files"]["engine"].update(bytes=len(content), sha256=storage.hash_file(path)))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda f: cut(path_of(f)), "engine-.* bytes, expected .*; build the index again"),
    "gone": (lambda f: path_of(f).unlink(), "engine-.* is missing; build the index again"),
    "zeros": (lambda f: path_of(f).write_bytes(bytes(path_of(f).stat().st_size)), "is damaged: its SHA-256"),
    "no engine": (lambda f: forge(f, b"nothing of the kind" * 99), "is damaged: .*; build the index again"),
    "empty": (lambda f: forge(f, b""), "is damaged: .*; build the index again"),
    "unnamed": (lambda f: edit(f, lambda t: t["engine"].pop("name")), "it describes its engine wrongly"),
    "unknown": (lambda f: edit(f, lambda t: t["engine"].update(name="hnws")), "by the engine 'hnws'; did you mean 'hnsw'"),
    "no file": (lambda f: edit(f, lambda t: t["files"].pop("engine")), "it describes its engine wrongly"),
    "a list": (lambda f: edit(f, lambda t: t.update(engine=[1])), "it describes its engine wrongly"),
    "other size": (lambda f: edit(f, lambda t: t["engine"].update(keys_given=300)), "its engine knows 300 vectors"),
    "strange option": (lambda f: edit(f, lambda t: t["engine"]["settings"].update(x=1)), "has no option 'x'"),
    "strange value": (lambda f: edit(f, lambda t: t["engine"].update(settings={"m": [], "trees": []})), "option"),
    "path out": (
        lambda f: edit(f, lambda t: t["files"]["engine"].update(name="../engine-0123456789abcdef.bin")),
        "no name for",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("backend", ENGINES)
def test_damage_is_refused_in_one_line(tmp_path: Path, put: Put, backend: str, damage: str) -> None:
    put(tmp_path, backend)
    do, message = DAMAGE[damage]
    do(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        NeighborIndex.load(tmp_path, verify=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keys", ["twice", "too large", "holes"])
def test_keys_that_cannot_be_are_refused(tmp_path: Path, keys: str) -> None:
    saved(tmp_path, "annoy").add(Q, np.zeros(30, dtype=int)).save(tmp_path)
    array = np.load(path_of(tmp_path, "keys"))
    assert (array[:400] == np.arange(400)).all()
    assert (array[400:] == -1).all()
    array[3] = {"twice": 2, "too large": 400, "holes": -1}[keys]
    np.save(path_of(tmp_path, "keys"), array)
    with pytest.raises(InputError, match="keys that cannot be"):
        NeighborIndex.load(tmp_path)


@pytest.mark.parametrize("backend", ["hnsw", "annoy"])
def test_a_file_of_another_index_is_refused(tmp_path: Path, put: Put, backend: str) -> None:
    put(tmp_path / "one", backend)
    NeighborIndex(backend=backend).fit(np.concatenate([Z, Q])).save(tmp_path / "more")
    forge(tmp_path / "one", path_of(tmp_path / "more").read_bytes())
    with pytest.raises(InputError, match="is damaged: it"):
        NeighborIndex.load(tmp_path / "one")


@pytest.mark.parametrize("call", ["replace", "fsync", "unlink"])
@pytest.mark.parametrize("backend", ENGINES)
def test_a_fault_at_any_moment_leaves_the_index_before_or_after(
    tmp_path: Path, backend: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From every n-th system call of a kind on all fail, as if the process had died there."""
    index = NeighborIndex(backend=backend).fit(Z)
    index.save(tmp_path)
    plain, expected = getattr(os, call), {400: index.search(Q, 5)}
    step = {"replace": 1, "fsync": 3, "unlink": 1}[call]
    for fatal in range(1, 20, step):
        start = len(index)
        index.add(Q[:1] + fatal)
        expected[len(index)] = index.search(Q, 5)
        calls = 0

        def dying(*arguments: Any, fatal: int = fatal, **named: Any) -> Any:
            nonlocal calls
            if threading.current_thread() is not threading.main_thread():
                return plain(*arguments, **named)  # of the database, which lives elsewhere
            calls += str(arguments[0]).startswith(str(tmp_path)) or call == "fsync"
            if calls >= fatal:
                raise KeyboardInterrupt
            return plain(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, dying)
            try:
                index.save(tmp_path)
                finished = True
            except KeyboardInterrupt:
                finished = False
        loaded = NeighborIndex.load(tmp_path, verify=True)
        assert len(loaded) in ((start + 1,) if finished else (start, start + 1))
        np.testing.assert_array_equal(loaded.search(Q, 5)[1], expected[len(loaded)][1])
        if finished:
            break
        index.save(tmp_path)  # goes through afterwards, and tidies up
        assert len(list(tmp_path.iterdir())) == 1 + len(manifest(tmp_path)["files"])
    assert finished
    assert fatal > 1


@pytest.mark.parametrize("backend", ["hnsw", "milvus"])
def test_a_fault_while_adding_leaves_the_index_as_it_was(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = NeighborIndex(backend=backend).fit(Z)
    before = index.search(Q, 5)
    engine = type(index._known.engine)
    whole = engine.add

    def half(self: Any, entries: Any, first: int) -> None:
        whole(self, type(entries)(entries.vectors[:7], entries.ids[:7], None), first)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "add", half)
        with pytest.raises(KeyboardInterrupt):
            index.add(Q)
    assert len(index) == 400
    for one, other in zip(before, index.search(Q, 5), strict=True):
        np.testing.assert_array_equal(one, other)
    assert index.add(Q).search(Q, 1)[1].ravel().tolist() == list(range(400, 430))


@pytest.mark.parametrize("backend", MAPPED)
def test_a_full_disk_is_one_line_and_leaves_the_index(tmp_path: Path, put: Put, backend: str) -> None:
    """In a process whose files may not grow beyond a limit, which is how a full disk looks to a library."""
    put(tmp_path, backend)
    program = (
        "import resource, signal, sys, numpy as np\n"
        "from nearfar.errors import InputError\n"
        "from nearfar.search import NeighborIndex\n"
        "z = np.random.default_rng(0).normal(size=(3000, 4)).astype('f')\n"
        f"index = NeighborIndex(backend={backend!r}).fit(z)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "try:\n"
        "    index.save(sys.argv[1])\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cannot write ")
    assert done.stdout.count("\n") == 1
    assert len(NeighborIndex.load(tmp_path, verify=True)) == 400


@pytest.mark.parametrize("backend", ENGINES)
def test_two_writers_and_many_readers(tmp_path: Path, backend: str) -> None:
    index = saved(tmp_path, backend)
    readers = [NeighborIndex.load(tmp_path) for _ in range(2)]
    with files.only_writer(tmp_path), pytest.raises(InputError, match="is being written by another process"):
        index.save(tmp_path)
    for reader in readers:
        np.testing.assert_array_equal(reader.search(Q, 5)[1], index.search(Q, 5)[1])


@pytest.mark.parametrize("backend", ENGINES)
def test_a_reader_between_two_states_finds_the_new_one(
    tmp_path: Path, put: Put, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, backend)
    plain = ENGINES[backend].read
    overtaken = []

    def late(self: Any, *arguments: Any) -> None:
        if not overtaken:
            overtaken.append(True)
            NeighborIndex(backend=backend).fit(np.concatenate([Z, Q])).save(tmp_path)
        plain(self, *arguments)

    monkeypatch.setattr(ENGINES[backend], "read", late)
    assert len(NeighborIndex.load(tmp_path)) == 430


@pytest.mark.parametrize("backend", ENGINES)
def test_an_index_of_another_model_is_refused(tmp_path: Path, backend: str) -> None:
    NeighborIndex(backend=backend).fit(Z).save(tmp_path, model_hash="abc")
    with pytest.raises(InputError, match="was made by abc, not by the model xyz"):
        NeighborIndex.load(tmp_path, expect_model_hash="xyz")
