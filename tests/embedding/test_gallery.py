"""An index of streamed embeddings: what is found is what a loop finds, under the names of the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from embedding.stream_samples import everything, write_folder
from samples import shapes

from nearfar.embedding import build_index, embed_stream
from nearfar.errors import InputError
from nearfar.runs.opening import open_model
from nearfar.search import NeighborIndex

CLI = Callable[..., tuple[int, str, str]]


def test_an_index_finds_what_a_loop_finds(run: Path, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "photos", shapes(130))
    embed_stream(run, data, out=tmp_path / "z", rows=25)
    said = build_index(tmp_path / "z", out=tmp_path / "index")
    z, ids, labels = everything(tmp_path / "z")
    assert (said["images"], said["dim"], said["classes"], said["metric"], said["backend"]) == (130, 8, 3, "cosine", "exact")
    index = NeighborIndex.load(tmp_path / "index", verify=True)
    assert index.names["images"] == ids
    numbers = np.asarray(index.labels)
    assert [index.names["classes"][number] for number in numbers] == labels
    assert index.model_hash == json.loads((run / "config.json").read_text())["model"]["sha256"]
    queries = open_model(run).transform(shapes(9, seed=5))
    _, found = index.search(queries, 3)
    for query, near in zip(queries.astype(np.float64), found, strict=True):
        products = z.astype(np.float64) @ query
        assert near.tolist() == sorted(range(130), key=lambda row: -products[row])[:3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "photos", "z"]


def test_images_without_a_class_and_another_backend(run: Path, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "photos", shapes(40))
    (data / "a" / "00099.png").write_bytes(next((data / "b").iterdir()).read_bytes())
    for path in list((data / "b").iterdir()):
        path.rename(data / path.name)  # beside the folders: of no class
    embed_stream(run, data, out=tmp_path / "z")
    build_index(tmp_path / "z", out=tmp_path / "index", backend="hnsw", metric="euclidean", options={"m": 8})
    index = NeighborIndex.load(tmp_path / "index")
    assert index.built["backend"] == "hnsw"
    assert index.names["classes"] == ["a", "c"]
    loose = [row for row, name in enumerate(index.names["images"]) if "/" not in name]
    assert (np.asarray(index.labels) < 0).nonzero()[0].tolist() == loose


def test_what_is_not_finished_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no embeddings: manifest\.json is missing"):
        build_index(tmp_path, out=tmp_path / "index")


def test_on_the_command_line(run: Path, tmp_path: Path, cli: CLI) -> None:
    data = write_folder(tmp_path / "photos", shapes(60))
    embed_stream(run, data, out=tmp_path / "z")
    code, said, error = cli("index", "build", tmp_path / "z", "--out", tmp_path / "index")
    assert code == 0, error
    assert "exact index of 60 vectors of 8 numbers" in said
    query = next((data / "b").iterdir())
    code, said, _ = cli("search", run, query, "--index", tmp_path / "index", "-k", 2, "--json")
    first = json.loads(said)[0]["neighbors"][0]
    assert first["id"] == query.relative_to(data).as_posix()
    assert first["label"] == "b"
    assert first["score"] > 0.99999
    (tmp_path / "index" / "index.json").write_text(
        (tmp_path / "index" / "index.json").read_text().replace('"model_hash": "', '"model_hash": "0')
    )
    code, _, error = cli("search", run, query, "--index", tmp_path / "index")
    assert code == 2
    assert "not by the model" in error
