"""What strangers may write and nearfar reads: the parts of a run here, images and tables in ``data_targets``; all by name."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reliability import jobs
from reliability.data_targets import (
    bodies,
    decoded,
    idx,
    metadata,
    npz,
    packages,
    parquet,
    pickles,
    pictures,
    recipes,
    table,
)
from reliability.shard_targets import embeddings, tars
from reliability.target import Several, Target
from reliability.text_targets import json_of_captions, prompts, tensors_of_captions
from samples import shapes

from nearfar import runs, show
from nearfar.answers import CALIBRATION, answer, current_calibration, gallery_of, trained_images
from nearfar.files import hash_file, read_json
from nearfar.runs import indexing
from nearfar.runs.card import write_card
from nearfar.runs.opening import load_run
from nearfar.search import NeighborIndex
from nearfar.search.storage import MANIFEST

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def images() -> Pixels:
    return shapes(3, seed=2).images[:]


def open_all(run: Path) -> None:
    """Whatever a run folder is opened for, on the way to an answer."""
    model, index = load_run(run, device="cpu")
    config = runs.read_config(run)
    gallery = gallery_of(index, model.recipe_.evaluate, trained_images(config, index))
    z = model.transform(images())
    answer(gallery, z, current_calibration(run, gallery))
    if model.head_ is not None:
        model.head_.predict(z)
    runs.read_history(run)
    show.index(indexing.index_info(run))
    write_card(run)


def run_in(home: Path) -> Path:
    run = home / "run"
    if not run.exists():
        jobs.train(home / "start")
        jobs.train_head(home / "start", run)
        jobs.add(run, 4, 6)
        write_card(run)
    return run


def agree(run: Path) -> None:
    """Make the hashes of a run agree with its files, as an enemy would."""
    with contextlib.suppress(Exception):
        config = read_json(run / runs.CONFIG)
        config["model"]["sha256"] = hash_file(run / runs.MODEL)
        config["head"]["sha256"] = hash_file(run / runs.HEAD)
        (run / runs.CONFIG).write_text(json.dumps(config))
        manifest = read_json(run / runs.INDEX / MANIFEST)
        manifest["model_hash"] = config["model"]["sha256"]
        for entry in manifest["files"].values():
            path = run / runs.INDEX / entry["name"]
            entry["bytes"], entry["sha256"] = path.stat().st_size, hash_file(path)
        (run / runs.INDEX / MANIFEST).write_text(json.dumps(manifest))


def json_of_run(home: Path) -> Several:
    run = run_in(home)
    names = [runs.CONFIG, CALIBRATION, f"{runs.INDEX}/{MANIFEST}", runs.CONFIG]
    names += [path.relative_to(run).as_posix() for path in (run / runs.INDEX).glob("names-*.json")]
    (run / runs.METRICS).write_text(json.dumps(_metrics()))
    names.append(runs.METRICS)

    def after(name: str) -> Callable[[], None]:
        return (lambda: agree(run)) if name.startswith(f"{runs.INDEX}/names") else (lambda: None)

    return Several(
        "json of a run",
        [
            Target(name, run / name, [(run / name).read_bytes()], lambda path: open_all(run), as_json=True, after=after(name))
            for name in names
        ],
    )


def tensors_of_run(home: Path) -> Several:
    run = run_in(home)
    names = [runs.MODEL, runs.HEAD, runs.HISTORY]
    names += [path.relative_to(run).as_posix() for path in sorted((run / runs.INDEX).glob("*-*"))]
    return Several(
        "tensors of a run",
        [
            Target(name, run / name, [(run / name).read_bytes()], lambda path: open_all(run), after=lambda: agree(run))
            for name in names
        ],
    )


def engine(backend: str) -> Callable[[Path], Target]:
    def make(home: Path) -> Target:
        random = np.random.default_rng(0)
        vectors = random.normal(size=(200, 8)).astype(np.float32)
        if not (home / "index").exists():
            NeighborIndex(backend=backend).fit(vectors, np.arange(200) % 3).save(home / "index")
        path = next((home / "index").glob("engine-*.bin"))

        def after() -> None:
            manifest = read_json(home / "index" / MANIFEST)
            manifest["files"]["engine"]["bytes"] = path.stat().st_size
            (home / "index" / MANIFEST).write_text(json.dumps(manifest))

        return Target(
            backend,
            path,
            [path.read_bytes()],
            lambda path: NeighborIndex.load(home / "index").search(vectors[:4], 5),
            after=after,
        )

    return make


def hnsw(home: Path) -> Target:
    return engine("hnsw")(home)


def annoy(home: Path) -> Target:
    return engine("annoy")(home)


def maps(home: Path) -> Target:
    from nearfar.explore.positions import open_positions
    from nearfar.explore.store import MAP, read_map

    run = run_in(home)
    if not (run / MAP).exists():
        jobs.explore(run)
    _, index = load_run(run, device="cpu")

    def read(path: Path) -> None:
        read_map(run)
        open_positions(run, index)

    return Target("map", run / MAP, [(run / MAP).read_bytes()], read)


def onnx(home: Path) -> Target:
    from nearfar.onnxmodel import OnnxEmbedder

    run, path = run_in(home), home / "model.onnx"
    if not path.exists():
        jobs.export(run)
        shutil.copy(run / "model.onnx", path)
    return Target("onnx", path, [path.read_bytes()], lambda path: OnnxEmbedder.load(path, threads=1).transform(images()))


def _metrics() -> dict[str, Any]:
    return {
        "classification": {"accuracy": 0.9, "one_nn_accuracy": 0.8, "k": 5},
        "retrieval": {"recall@1": 0.9, "map@r": 0.5},
        "data": {"queries": 30, "gallery": 60, "split": "test", "source": "shapes", "gallery_is": "the run's index"},
        "confidence": {"retrieval": {"recall@1": [0.8, 0.95]}},
    }


TARGETS: dict[str, Callable[[Path], Any]] = {
    one.__name__: one
    for one in (
        *(json_of_run, tensors_of_run, hnsw, annoy, maps, onnx, pictures, table, idx, npz, parquet, metadata, recipes),
        *(bodies, packages, pickles, decoded, json_of_captions, tensors_of_captions, prompts, tars, embeddings),
    )
}
