"""What is done to a folder while it is disturbed, and what must be there afterwards. Small images, a tiny net."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from samples import TINY, shapes

from nearfar import runs, verbs
from nearfar.embedder import Embedder
from nearfar.files import LEFT_OVER
from nearfar.recipe import Recipe
from nearfar.runs import indexing
from nearfar.runs.opening import load_run

RECIPE: dict[str, Any] = {
    **TINY,
    "data": {**TINY["data"], "validation": 0.2},
    "train": {**TINY["train"], "epochs": 2},
    "evaluate": {"k": 5, "bootstrap": 0},
}
HEAD = {**RECIPE, "loss": {"kind": "cross-entropy"}, "train": {**RECIPE["train"], "mode": "finetune"}}


def train(out: Path, checkpoint_seconds: float = 60.0) -> None:
    """Train, or go on where an earlier process was killed: what a person would do."""
    begun = (out / runs.CONFIG).exists()
    if begun and runs.read_config(out)["state"] == "finished":
        return
    changes = {"train.checkpoint_seconds": checkpoint_seconds}
    recipe = Recipe.from_dict(RECIPE)
    verbs.train(shapes(90), recipe=recipe, out=out, seed=3, device="cpu", changes=changes, resume=begun)


def train_head(start: Path, out: Path) -> None:
    """The same with an encoder to start from and a head on top."""
    begun = (out / runs.CONFIG).exists()
    if begun and runs.read_config(out)["state"] == "finished":
        return
    verbs.train(shapes(90), recipe=Recipe.from_dict(HEAD), start=start, out=out, seed=3, device="cpu", resume=begun)


def embed(run: Path, out: Path) -> None:
    verbs.embed(run, shapes(60, seed=8), out=out, device="cpu")


def add(run: Path, count: int = 6, seed: int = 5) -> list[str]:
    """Add images of a class that the run does not know; returns what is acknowledged."""
    images = shapes(count, seed=seed, name=f"new{seed}")
    indexing.add_images(run, images, label="fresh", device="cpu")
    return [f"new{seed}/{one}" for one in images.ids.tolist()]


def remove(run: Path, names: list[str]) -> None:
    """Remove images, unless they are gone already."""
    there = set(load_run(run, device="cpu")[1].names["images"])
    if left := [name for name in names if name in there]:
        indexing.remove_images(run, ids=left)


def save(source: Path, out: Path) -> None:
    Embedder.load(source, device="cpu").save(out, overwrite=True)


def evaluate(run: Path) -> None:
    verbs.evaluate(run, shapes(30, seed=4), device="cpu")


def report(run: Path) -> None:
    from nearfar.report import report as make

    make(run, shapes(30, seed=4), device="cpu")


def export(run: Path) -> None:
    verbs.export(run, shapes(30, seed=4), out=run / "model.onnx", device="cpu")


def explore(run: Path) -> None:
    from nearfar.explore.make import make_map

    make_map(run, device="cpu")


def add_by_service(run: Path, pixels: np.ndarray, label: str) -> list[int]:
    """Add an image as the service does; returns the ids that are acknowledged."""
    from nearfar.serve.state import Served

    items, _ = Served(run, device="cpu").write(pixels, label)
    return [int(item["id"]) for item in items]


def contents(folder: Path) -> dict[str, str]:
    """The files of runs with a hash of each; figures of time and the folder that a run stands in left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not is_left_over(name) and "checkpoints" not in path.parts:
            found[name] = hashlib.sha256(_timeless(path)).hexdigest()
    return found


def names_in(run: Path) -> set[str]:
    return set(load_run(run, device="cpu")[1].names["images"])


def is_left_over(name: str) -> bool:
    """Whether a file, or the folder that it is in, is one that a killed writer leaves and nobody reads."""
    return name.startswith(".run.new/") or name.endswith("-pending") or bool(LEFT_OVER.fullmatch(name.rpartition("/")[2]))


def is_superseded(home: Path, name: str) -> bool:
    """Whether a file is of an earlier state of a run's index, or the picture of an image that is gone: the next change of the
    index removes it, and nobody reads it."""
    run, _, file = name.partition("/")
    if file.startswith("items/"):
        return int(Path(file).stem) not in load_run(home / run, device="cpu")[1].ids
    manifest = json.loads((home / run / runs.INDEX / "index.json").read_bytes())
    return file.startswith("index/") and Path(file).name not in {entry["name"] for entry in manifest["files"].values()}


def left_overs(folder: Path) -> list[str]:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return [name for name in names if is_left_over(name)]


def model_in(run: Path) -> str:
    """What the model in a folder answers."""
    return hashlib.sha256(Embedder.load(run, device="cpu").transform(shapes(8, seed=2)).tobytes()).hexdigest()


def _timeless(path: Path) -> bytes:
    if path.suffix == ".json":
        tree = _without_time(json.loads(path.read_bytes()))
        if path.name == runs.CONFIG and tree.get("start"):
            tree["start"]["run"] = Path(tree["start"]["run"]).name  # where it began, by its whole path
        return json.dumps(tree, sort_keys=True).encode()
    if path.suffix == ".jsonl":
        return json.dumps([_without_time(json.loads(line)) for line in path.read_text().splitlines()]).encode()
    if path.name in ("README.md", "report.html"):
        return b""  # they tell how long it took
    return path.read_bytes()


def _without_time(tree: Any) -> Any:
    if isinstance(tree, dict):
        kept = {key: value for key, value in tree.items() if key not in ("seconds", "images_per_second", "timing")}
        return {key: _without_time(value) for key, value in kept.items()}
    return tree
