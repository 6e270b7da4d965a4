"""An index in a folder: what was saved comes back, and no fault leaves anything but the state before or after."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfar.errors import InputError
from nearfar.search import NeighborIndex, storage

Z = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
Q = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "index.json").read_text()))


def path_of(folder: Path, what: str) -> Path:
    return folder / str(manifest(folder)["files"][what]["name"])


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("labels", [None, np.arange(40) % 4, np.array(["käse", "b"] * 20)])
def test_what_was_saved_comes_back(tmp_path: Path, metric: str, labels: np.ndarray | None) -> None:
    index = NeighborIndex(metric=metric).fit(Z, labels, ids=np.arange(40)[::-1])
    names = {"images": [f"bild {i} ü.png" for i in range(40)], "classes": ["käse", "b"]}
    index.save(tmp_path / "index", model_hash="abc", names=names)
    loaded = NeighborIndex.load(tmp_path / "index", expect_model_hash="abc", verify=True)
    for one, other in zip(index.search(Q, 9), loaded.search(Q, 9), strict=True):
        np.testing.assert_array_equal(one, other)
    assert loaded.metric == metric
    assert loaded.names == names
    assert loaded.model_hash == "abc"
    if labels is None:
        assert loaded.labels is None
    else:
        assert loaded.labels is not None
        np.testing.assert_array_equal(loaded.labels, labels)
        assert loaded.labels.dtype == labels.dtype


def test_vectors_are_mapped_and_files_are_the_manifests(tmp_path: Path) -> None:
    NeighborIndex().fit(Z, np.arange(40)).save(tmp_path)
    loaded = NeighborIndex.load(tmp_path)
    assert isinstance(loaded._vectors, np.memmap)
    assert loaded._vectors.mode == "r"
    named = {entry["name"] for entry in manifest(tmp_path)["files"].values()}
    assert {path.name for path in tmp_path.iterdir()} == named | {"index.json"}


def test_saving_over_a_loaded_index_keeps_it_usable(tmp_path: Path) -> None:
    NeighborIndex().fit(Z, np.arange(40)).save(tmp_path, model_hash="abc", names={"classes": ["a"]})
    loaded = NeighborIndex.load(tmp_path)
    before = path_of(tmp_path, "vectors")
    loaded.add(Q, np.arange(5)).save(tmp_path)
    assert not before.exists()
    again = NeighborIndex.load(tmp_path, verify=True)
    assert len(again) == 45
    assert again.model_hash == "abc"
    assert again.names == {"classes": ["a"]}
    again.save(tmp_path)  # over the very files that it maps
    np.testing.assert_array_equal(NeighborIndex.load(tmp_path, verify=True).vectors, loaded.vectors)
    assert len(list(tmp_path.iterdir())) == 5


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def _forge(path: Path, content: bytes) -> None:
    """Put foreign content in place of a file, and make the manifest agree."""
    path.write_bytes(content)
    entry = {"name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _edit(path.parent, lambda tree: tree["files"].update({path.name.split("-")[0]: entry}))


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = manifest(folder)
    change(tree)
    (folder / "index.json").write_text(json.dumps(tree))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda f: (f / "index.json").unlink(), "holds no index: index.json is missing"),
    "manifest cut": (lambda f: _cut(f / "index.json"), "not valid JSON"),
    "foreign manifest": (lambda f: (f / "index.json").write_text("{}"), "does not describe a nearfar index"),
    "later version": (lambda f: _edit(f, lambda t: t.update(version=3)), "has version 3, expected at most 2"),
    "no rows": (lambda f: _edit(f, lambda t: t.pop("rows")), "is damaged: it lacks rows"),
    "other rows": (lambda f: _edit(f, lambda t: t.update(rows=39)), r"holds float32 \(40, 6\), expected .* \(39, 6\)"),
    "strange hash": (lambda f: _edit(f, lambda t: t.update(model_hash=3)), "model_hash is 3"),
    "strange metric": (lambda f: _edit(f, lambda t: t.update(metric="cosin")), "metric is 'cosin'"),
    "path out": (
        lambda f: _edit(f, lambda t: t["files"]["ids"].update(name="../ids-0123456789abcdef.npy")),
        "is no name for the file of the ids",
    ),
    "swapped": (
        lambda f: _edit(f, lambda t: t["files"].update(ids=t["files"]["labels"])),
        "is no name for the file of the ids",
    ),
    "vectors gone": (lambda f: path_of(f, "vectors").unlink(), "vectors-.* is missing; build the index again"),
    "vectors cut": (lambda f: _cut(path_of(f, "vectors")), r"has 1,086 bytes, expected 1088"),
    "vectors flipped": (lambda f: _flip(path_of(f, "vectors")), "is damaged: its SHA-256"),
    "labels flipped": (lambda f: _flip(path_of(f, "labels")), "is damaged: its SHA-256"),
    "other dtype": (lambda f: _forge(path_of(f, "vectors"), _npy(Z.astype(np.float64))), "holds float64"),
    "other order": (lambda f: _forge(path_of(f, "vectors"), _npy(np.asfortranarray(Z))), "holds float32"),
    "no array": (lambda f: _forge(path_of(f, "ids"), b"no array"), "ids-.* is damaged"),
    "pickled labels": (
        lambda f: _forge(path_of(f, "labels"), _npy(np.array([{}] * 40, dtype=object))),
        "is damaged: Object arrays cannot be loaded",
    ),
    "other model": (lambda f: _edit(f, lambda t: t.update(model_hash="other")), "was made by other, not by the model abc"),
    "no model": (lambda f: _edit(f, lambda t: t.update(model_hash=None)), "without naming its model"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    NeighborIndex().fit(Z, np.arange(40)).save(tmp_path, model_hash="abc")
    do, message = DAMAGE[damage]
    do(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        NeighborIndex.load(tmp_path, expect_model_hash="abc", verify=True)
    assert "\n" not in str(caught.value)


def test_the_size_is_checked_even_without_verifying(tmp_path: Path) -> None:
    NeighborIndex().fit(Z).save(tmp_path)
    _cut(path_of(tmp_path, "vectors"))
    with pytest.raises(InputError, match="bytes, expected"):
        NeighborIndex.load(tmp_path)


@pytest.mark.parametrize("call", ["replace", "fsync", "unlink"])
def test_a_fault_at_any_moment_leaves_the_index_before_or_after(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every n-th system call of a kind fails, as if the process had died there."""
    before = NeighborIndex().fit(Z, np.arange(40))
    plain = getattr(os, call)
    for fatal in range(1, 20):
        folder = tmp_path / f"{call}{fatal}"
        before.save(folder)
        index = NeighborIndex.load(folder).add(Q, np.arange(5))
        calls = 0

        def dying(*arguments: Any, fatal: int = fatal, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= fatal:
                raise KeyboardInterrupt
            return plain(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, dying)
            try:
                index.save(folder)
                finished = True
            except KeyboardInterrupt:
                finished = False
        assert len(NeighborIndex.load(folder, verify=True)) in ((45,) if finished else (40, 45))
        if finished:
            break
        index.save(folder)  # goes through afterwards, and tidies up
        assert len(NeighborIndex.load(folder, verify=True)) == 45
        assert len(list(folder.iterdir())) == 4
    assert finished
    assert fatal > 1


def test_a_full_disk_is_one_line_and_leaves_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    NeighborIndex().fit(Z).save(tmp_path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="the disk is full"):
            NeighborIndex().fit(Q).save(tmp_path)
    assert len(NeighborIndex.load(tmp_path, verify=True)) == 40


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    index = NeighborIndex().fit(Z)
    index.save(tmp_path)
    program = (
        "import pathlib, sys\n"
        "from nearfar import files\n"
        "with files.only_writer(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="is being written by another process"):
            index.save(tmp_path)
        assert len(NeighborIndex.load(tmp_path)) == 40  # reading goes on
        other.kill()
    index.save(tmp_path)


def test_a_reader_between_two_states_finds_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    NeighborIndex().fit(Z).save(tmp_path)
    plain = storage._read_manifest
    overtaken = []

    def late(folder: Path) -> dict[str, Any]:
        tree = plain(folder)
        if not overtaken:
            overtaken.append(True)
            NeighborIndex().fit(Q).save(folder)
        return tree

    monkeypatch.setattr(storage, "_read_manifest", late)
    assert len(NeighborIndex.load(tmp_path)) == 5


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    index = NeighborIndex().fit(Z)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        index.save(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.json").write_text('{"name": "a web page"}')
    with pytest.raises(InputError, match="does not describe a nearfar index"):
        index.save(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["index.json"]
    with pytest.raises(InputError, match="holds no index"):
        NeighborIndex.load(tmp_path / "nowhere")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("mine")
    index.save(tmp_path / "notes")
    assert (tmp_path / "notes" / "README.md").read_text() == "mine"
