"""A run folder made by an enemy: nothing in it is executed, nothing is connected to, nothing it says moves the terminal."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reliability import data_targets, jobs
from samples import shapes

from nearfar import runs, verbs
from nearfar.cli.root import show_result
from nearfar.data import load_images
from nearfar.data.mirrors import Unavailable, read_deb
from nearfar.errors import InputError
from nearfar.recipe import Recipe
from nearfar.runs.card import write_card
from nearfar.runs.opening import load_run
from nearfar.search import NeighborIndex
from nearfar.spreadsheet import csv_text
from nearfar.terminal import plain


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as waiting:
        waiting.bind(("127.0.0.1", 0))
        waiting.listen()
        waiting.settimeout(0.5)
        yield waiting


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    tree = json.loads(path.read_bytes())
    change(tree)
    path.write_text(json.dumps(tree))


def test_an_index_that_names_a_server_is_not_followed_there(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEARFAR_MILVUS_TOKEN", "user:secret")
    vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    NeighborIndex(backend="hnsw").fit(vectors).save(tmp_path / "index")
    engine = next((tmp_path / "index").glob("engine-*.bin"))
    engine.write_text(json.dumps({"collection": "nearfar_0123456789abcdef"}))

    def change(tree: Any) -> None:
        tree["backend"] = "milvus"
        settings = {"uri": f"http://127.0.0.1:{listener.getsockname()[1]}"}
        tree["engine"] = {"name": "milvus", "keys_given": 50, "settings": settings}
        tree["files"]["engine"]["bytes"] = engine.stat().st_size

    edit(tmp_path / "index" / "index.json", change)
    with pytest.raises(InputError, match="uri"):
        NeighborIndex.load(tmp_path / "index")
    with pytest.raises(TimeoutError):
        listener.accept()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    jobs.train(run)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def refused(read: Callable[..., Any], *arguments: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "encoder",
    [
        {"kind": "os.system"},
        {"kind": "nearfar.hub"},
        {"kind": "mlp", "hidden": [2**63], "dim": 8},
        {"kind": "mlp", "hidden": [10**9, 10**9], "dim": 8},
        {"kind": "mlp", "hidden": [32], "dim": 8, "__class__": "x"},
    ],
)
def test_a_config_cannot_name_code_or_take_memory(run: Path, encoder: dict[str, Any]) -> None:
    edit(run / runs.CONFIG, lambda tree: tree["recipe"].update(encoder=encoder))
    refused(load_run, run, words=r"encoder|network")


@pytest.mark.parametrize("classes", [[1, 2, 3], [None], [["a"]]])
def test_classes_that_are_no_texts_are_refused(run: Path, classes: list[Any]) -> None:
    edit(run / runs.CONFIG, lambda tree: tree.update(classes=classes))
    refused(load_run, run, words="classes")


def test_vectors_that_are_no_numbers_are_refused(run: Path) -> None:
    path = next((run / runs.INDEX).glob("vectors-*.npy"))
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    refused(load_run, run, words="finite")


def test_a_header_that_is_no_header_is_refused(run: Path) -> None:
    path = next((run / runs.INDEX).glob("ids-*.npy"))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"}", b"(", 1))
    refused(load_run, run, words="damaged")


def test_figures_of_any_kind_do_not_break_the_card(run: Path) -> None:
    for metrics in ({"classification": 3}, {"retrieval": {"recall@1": 0.5}, "confidence": {"retrieval": 3}}, {"data": "x"}):
        (run / runs.METRICS).write_text(json.dumps(metrics))
        refused(write_card, run, words="damaged")


def test_a_recipe_beyond_all_memory_is_one_line(tmp_path: Path) -> None:
    tree = {**jobs.RECIPE, "encoder": {"kind": "mlp", "hidden": [2**63], "dim": 8}}
    refused(lambda: verbs.train(shapes(60), recipe=Recipe.from_dict(tree), out=tmp_path / "run"), words="cannot be built")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_a_table_names_no_file_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "metadata.csv").write_text(f"file_name,label\n{name},a\n")
    refused(load_images, tmp_path / "pets", words="its own folder")


def test_damage_that_was_found_by_fuzzing_is_one_line(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(data_targets.idx_bytes((5, 6, 6)), mtime=0))
    packed[-8] ^= 1  # of the checksum at its end
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(packed)
    refused(load_images, tmp_path / "train-images-idx3-ubyte.gz", words="damaged")
    archive = bytearray(data_targets.archives()[0])
    with zipfile.ZipFile(io.BytesIO(archive)) as readable:
        first = readable.infolist()[0]
    archive[first.header_offset + 7] |= 8  # the name of the member is UTF-8, and then it is not
    archive[first.header_offset + 30] = 0xD1
    (tmp_path / "a.npz").write_bytes(archive)
    refused(load_images, tmp_path / "a.npz", words="not a readable")
    (tmp_path / "a.deb").write_bytes(b"!<arch>\n" + f"{'data.tar.xz/':48}{9_999_999_999:<10}`\n".encode())
    with pytest.raises(Unavailable):
        read_deb(tmp_path / "a.deb")


def test_names_do_not_move_the_terminal(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    assert plain("\x1b[31mred\x07") == r"\x1b[31mred\x07"
    assert plain("\u202etxt.exe\x9b") == r"\u202etxt.exe\x9b"
    assert plain("Füße 猫 \u3000 \N{FAMILY}") == "Füße 猫 \u3000 \N{FAMILY}"
    evil = "\x1b]0;title\x07\x9b2J\u202e"
    show_result({"name": evil}, False, lambda result: f"one\n{result['name']}")
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "one"
    assert shown.replace("\n", "").isprintable()
    show_result({"name": evil}, True, str)
    text = capsys.readouterr().out
    assert text.rstrip("\n").isprintable()
    assert json.loads(text) == {"name": evil}


def test_a_spreadsheet_computes_nothing() -> None:
    rows = [{"image": "=cmd|' /C calc'!A0", "label": "-1", "score": -0.5}, {"image": "@SUM(1)", "label": "+x", "score": 1.0}]
    found = list(csv.DictReader(io.StringIO(csv_text(["image", "label", "score"], rows), newline="")))
    assert [row["image"] for row in found] == ["'=cmd|' /C calc'!A0", "'@SUM(1)"]
    assert [row["label"] for row in found] == ["-1", "'+x"]
    assert [row["score"] for row in found] == ["-0.5", "1.0"]


def test_pictures_that_claim_too_much_are_one_line(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", 30_000, 30_000)  # width and height in the header, whose checksum follows
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "bomb.png").write_bytes(content)
    refused(load_images, tmp_path / "bomb.png", words="pixels")
