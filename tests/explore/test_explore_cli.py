"""The verb as people meet it: an address, one line where something is wrong, a clean end; and the file for another viewer."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nearfar.explore import atlas
from nearfar.explore.store import Map
from nearfar.explore.subject import Subject

Cli = Callable[..., tuple[int, str, str]]


def test_the_map_alone(cli: Cli, trained: Path) -> None:
    code, out, err = cli("explore", trained, "--map-only", "--json")
    assert (code, err) == (0, "")
    tree = json.loads(out)
    assert tree["splits"] == {"gallery": 60, "test": 24}
    assert (tree["points"], tree["method"], tree["map"]) == (84, "t-SNE", str(trained / "map.parquet"))
    code, out, _ = cli("explore", trained, "--map-only")
    assert (code, out.splitlines()[0]) == (0, f"t-SNE of 84 images (60 gallery, 24 test): {trained / 'map.parquet'}")


def test_a_port_in_use_is_one_line(cli: Cli, trained: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = cli("explore", trained, "--port", port)
    assert (code, out) == (2, "")
    assert err == f"nearfar: port {port} is in use; choose another with --port, or 0 for any that is free\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--port", 70000), "port is 70000, expected 1 to 65535"),
        (("--host", "192.0.2.1"), "cannot be had at 192.0.2.1"),
        (("--host", "no such host"), "'no such host' is no address"),
    ],
)
def test_what_is_wrong_is_one_line(cli: Cli, trained: Path, options: tuple[Any, ...], says: str) -> None:
    code, _, err = cli("explore", trained, *options)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1


def test_a_folder_that_is_no_run_is_one_line(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("explore", tmp_path, "--map-only")
    assert code == 2
    assert "is not a run" in err


def test_without_plotly_one_line_names_the_extra(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "plotly" else found(name, *rest))
    code, _, err = cli("explore", trained, "--port", 0)
    assert code == 2
    assert 'pip install "nearfar[explore]"' in err


def test_it_serves_until_it_is_interrupted(trained: Path) -> None:
    command = [sys.executable, "-m", "nearfar", "explore", str(trained), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stderr is not None
        address = process.stderr.readline().split()[2]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}about", timeout=60) as answer:
            assert json.load(answer)["points"] == 84
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err.strip()) == (0, "", "")


def test_the_file_for_embedding_atlas(opened: tuple[Subject, Map], tmp_path: Path) -> None:
    subject, made = opened
    table = pq.read_table(atlas.write(subject, made, tmp_path)).to_pydict()
    np.testing.assert_array_equal(np.array(table["x"], np.float32), made.xy[:, 0])
    assert table["label"] == [made.classes[one] for one in made.labels]
    assert table["right"] == (made.labels == made.predictions).tolist()
    for row in (0, 70):
        picture = table["image"][row]
        assert picture["bytes"] == subject.picture(row)
        assert Image.open(io.BytesIO(picture["bytes"])).size == (12, 12)
        assert table["neighbors"][row]["ids"] == made.neighbors[row].tolist()
        np.testing.assert_allclose(table["neighbors"][row]["distances"], np.maximum(1 - made.scores[row], 0), atol=1e-6)


def test_embedding_atlas_is_started_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "embedding-atlas"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/given\ntrap "echo ended > {tmp_path}/ended; exit 0" TERM\n'
                       "while true; do sleep 0.05; done\n")  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    notes: list[str] = []
    with atlas.running(tmp_path / "atlas.parquet", notes.append):
        while not (tmp_path / "given").exists() or not (tmp_path / "given").read_text():
            time.sleep(0.02)
    given = (tmp_path / "given").read_text().split()
    assert given[:5] == [str(tmp_path / "atlas.parquet"), "--x", "x", "--y", "y"]
    assert (tmp_path / "ended").exists()


def test_without_embedding_atlas_one_line_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    notes: list[str] = []
    with atlas.running(tmp_path / "atlas.parquet", notes.append):
        pass
    assert len(notes) == 1
    assert "pip install embedding-atlas" in notes[0]
