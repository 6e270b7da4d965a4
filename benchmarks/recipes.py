"""How long the recipes take to an accuracy, each training in a process of its own; plain loops and embedding beside it.

    python benchmarks/recipes.py [--seeds 5] [--only goals plain embedding] [--goals NAME ...] [--out FOLDER]

``goals``: `nearfar train` on all training images, seeds 0, 1, ..., judged on the official test images by 10-NN accuracy.
Seconds are those of training, without reading the cached files; memory is the peak of the whole process, which also embeds
and indexes what it was trained on. ``plain``: the same encoder and loss in a loop as tutorials write it, and as the examples
of pytorch-metric-learning do, for one epoch. ``embedding``: images a second through the encoder of system A, trained for one
epoch, by PyTorch and by the exported files.

Finished runs in ``--out`` are used again.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain import Images, knn_accuracy
from torch.utils.data import DataLoader

import nearfar as nf
from nearfar import verbs
from nearfar.encoders import build_encoder
from nearfar.files import write_json
from nearfar.inference import embed
from nearfar.recipe import load_recipe
from nearfar.runs.opening import Model, load_model, load_run, open_model
from nearfar.training.loop import fit


@dataclass(frozen=True, kw_only=True)
class Goal:
    """An accuracy that a recipe should reach in some seconds."""

    data: str
    recipe: str
    accuracy: float  # percent, 10-NN on the test images
    seconds: float


GOALS = {
    "mnist-99.12": Goal(data="mnist", recipe="mnist-fastest", accuracy=99.12, seconds=2),
    "mnist-99.6": Goal(data="mnist", recipe="mnist-fast", accuracy=99.6, seconds=25),
    "mnist-99.75": Goal(data="mnist", recipe="mnist-best", accuracy=99.75, seconds=600),
    "fashion-90": Goal(data="fashion-mnist", recipe="fashion-fastest", accuracy=90, seconds=30),
    "fashion-93.5": Goal(data="fashion-mnist", recipe="fashion-fast", accuracy=93.5, seconds=300),
    "fashion-95": Goal(data="fashion-mnist", recipe="fashion-best", accuracy=95, seconds=3600),
}


def train(name: str, seed: int, out: Path) -> dict[str, float]:
    """Run `nearfar train` once, or read what it left; its figures and the peak memory of the process."""
    goal, run, notes = GOALS[name], out / f"{name}-{seed}", out / f"{name}-{seed}.json"
    if not notes.exists():
        command = [sys.executable, "-m", "nearfar", "train", goal.data, "--recipe", goal.recipe, "--seed", str(seed)]
        log = out / f"{name}-{seed}.log"
        with log.open("w") as said:
            process = subprocess.Popen([*command, "--out", str(run)], stdout=said, stderr=said)
            _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(log.read_text())
        model, index = load_run(run)
        test = nf.load_images(goal.data, split="test")
        z = model.transform(test)
        accuracy, one_nn = (nf.NeighborClassifier(index, k=k).score(z, test.require_labels()) for k in (10, 1))
        seconds = json.loads((run / "config.json").read_text())["training"]["seconds"]
        figures = {"accuracy": 100 * accuracy, "one_nn": 100 * one_nn, "seconds": seconds, "peak_mib": used.ru_maxrss / 1024}
        write_json(notes, figures)
    kept: dict[str, float] = json.loads(notes.read_text())
    return kept


def goals(names: list[str], seeds: int, out: Path) -> None:
    """A line for every goal: medians and ranges over the seeds."""
    print(
        f"{'goal':12} {'wanted':>16} {'10-NN':>7} {'lowest..highest':>16} {'1-NN':>7} {'seconds':>8} {'range':>16} {'peak':>9}"
    )
    for name in names:
        goal, runs = GOALS[name], [train(name, seed, out) for seed in range(seeds)]
        of = {key: [run[key] for run in runs] for key in runs[0]}
        middle = {key: statistics.median(values) for key, values in of.items()}
        missed = [
            what
            for what, fails in (("accuracy", middle["accuracy"] < goal.accuracy), ("time", middle["seconds"] > goal.seconds))
            if fails
        ]
        accuracies, seconds = ([f"{edge(of[key]):.2f}" for edge in (min, max)] for key in ("accuracy", "seconds"))
        print(
            f"{name:12} {goal.accuracy:7.2f} in {goal.seconds:4.0f} s {middle['accuracy']:7.2f} {'..'.join(accuracies):>16} "
            f"{middle['one_nn']:7.2f} {middle['seconds']:8.2f} {'..'.join(seconds):>16} {middle['peak_mib']:5.0f} MiB  "
            f"{'missed: ' + ', '.join(missed) if missed else 'reached'}",
            flush=True,
        )


def plain(recipe_name: str, rounds: int) -> None:
    """One epoch of MNIST: ours, a tutorial's loop, and the loop of pytorch-metric-learning's examples, in turns."""
    from pytorch_metric_learning.losses import SupConLoss

    recipe = load_recipe(recipe_name, {"train.epochs": 1.0})
    full, test = nf.load_images("mnist", split="train"), nf.load_images("mnist", split="test")
    images, labels = np.asarray(full.images), full.require_labels()

    def loop(loss: Any, seed: int) -> tuple[float, float]:
        torch.manual_seed(seed)
        data = Images(images, labels, 0.5, 0.5)
        start = time.perf_counter()
        params = {key: value for key, value in recipe.encoder.params.items() if key != "tta"}
        model = build_encoder(recipe.encoder.kind, channels=1, size=(28, 28), **params).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for pixels, answers in DataLoader(data, batch_size=128, shuffle=True):
            value = loss(model(pixels), answers)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        seconds = time.perf_counter() - start
        queries = Images(np.asarray(test.images), test.require_labels(), 0.5, 0.5)
        return seconds, 100 * knn_accuracy(model, data, queries, 10)

    def ours(seed: int) -> tuple[float, float]:
        fitted = fit(recipe, full, seed=seed)
        z, queries = (embed(fitted.encoder, part, recipe.data) for part in (full, test))
        index = nf.NeighborIndex(metric="cosine", backend="exact").fit(z, labels)
        return fitted.seconds, 100 * nf.NeighborClassifier(index, k=10).score(queries, test.require_labels())

    version = importlib.metadata.version("pytorch-metric-learning")
    sides = {
        f"nearfar {recipe_name}": ours,
        "a tutorial's loop": lambda seed: loop(nf.losses.SupConLoss(temperature=0.1), seed),
        f"pytorch-metric-learning {version}": lambda seed: loop(SupConLoss(temperature=0.1), seed),
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for seed in range(rounds):
        for name, side in sides.items():
            results[name].append(side(seed))
    least = statistics.median(seconds for seconds, _ in results[f"nearfar {recipe_name}"])
    for name, values in results.items():
        seconds, accuracy = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:34} one epoch {seconds:6.2f} s  {seconds / least:5.1f} times ours  10-NN {accuracy:.2f} %", flush=True)


def embedding(rounds: int) -> None:
    """Images a second through system A's encoder: a DataLoader and no_grad, ours, and the run exported, in turns.

    The plain loop has a process of its own, as what ours does to a process's memory speeds it up too.
    """
    full = nf.load_images("mnist", split="train")
    times: dict[str, list[float]] = {}
    nearest: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as apart:
        run = Path(folder, "run")
        verbs.train("mnist", recipe="cosine-pairs", epochs=1, out=run)
        for name, kind in (("float32", None), ("int8", "int8")):
            verbs.export(run, out=Path(folder, f"{name}.onnx"), quantize=kind)
        models: dict[str, Model] = {
            "ours, PyTorch": load_model(run),
            "ours, ONNX": open_model(Path(folder, "float32.onnx")),
            "ours, ONNX in 8 bits": open_model(Path(folder, "int8.onnx")),
        }
        sides: dict[str, Callable[[], tuple[float, np.ndarray]]] = {"plain": lambda: apart.apply(_plain_embedding, (run,))}
        sides |= {name: functools.partial(_timed, model, full) for name, model in models.items()}
        for turn in range(rounds):
            for name, side in sides.items():
                seconds, z = side()
                times.setdefault(name, []).append(seconds)
                if not turn:
                    nearest[name] = _nearest(z)
    middle = {name: statistics.median(values) for name, values in times.items()}
    print("embedding, encoder of system A; its nearest neighbour is the plain loop's for so many of 2,000 images")
    for name, seconds in middle.items():
        agreement = float((nearest["plain"] == nearest[name]).mean())
        print(
            f"{name:24} {len(full) / seconds:8,.0f} images/s  {middle['plain'] / seconds:4.1f} times  {100 * agreement:6.2f} %",
            flush=True,
        )


def _timed(model: Model, images: nf.ImageSet) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    z = model.transform(images)
    return time.perf_counter() - start, z


def _plain_embedding(run: Path) -> tuple[float, np.ndarray]:
    """Seconds of the plain loop with the weights of a run, laid out as PyTorch lays them out, and what it gives."""
    full, kept = nf.load_images("mnist", split="train"), load_model(run)
    recipe = kept.recipe_
    model = build_encoder(recipe.encoder.kind, channels=1, size=(28, 28), **recipe.encoder.params)
    model.load_state_dict(kept.encoder_.state_dict())
    model.eval()
    data = Images(np.asarray(full.images), full.require_labels(), *recipe.data.mean, *recipe.data.std)
    start = time.perf_counter()
    with torch.no_grad():
        z = torch.cat([model(pixels) for pixels, _ in DataLoader(data, batch_size=64)])
    return time.perf_counter() - start, z.numpy()


def _nearest(z: np.ndarray) -> np.ndarray:
    index = nf.NeighborIndex(metric="cosine", backend="exact").fit(z)
    return np.asarray(index.search(z[:2000], k=2)[1][:, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=["goals", "plain", "embedding"], choices=["goals", "plain", "embedding"])
    parser.add_argument("--goals", nargs="+", default=[*GOALS], choices=[*GOALS])
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    options = parser.parse_args()
    capability = torch.backends.cpu.get_cpu_capability()
    print(
        f"nearfar {nf.__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {capability}, "
        f"{platform.system()} {platform.machine()}"
    )
    if "embedding" in options.only:
        embedding(options.seeds)
    if "plain" in options.only:
        plain("mnist-fast", options.seeds)
    if "goals" in options.only:
        options.out.mkdir(parents=True, exist_ok=True)
        goals(options.goals, options.seeds, options.out)


if __name__ == "__main__":
    main()
