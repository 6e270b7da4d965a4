"""What is learned without labels, and what a few labels then bring, each training in a process of its own.

    python benchmarks/unlabelled.py [--seeds 0 1 2] [--only mnist fashion] [--shares 0.01 0.1] [--out FOLDER]
    python benchmarks/unlabelled.py --lengths [0.05 0.2 1] [--only mnist fashion] [--out FOLDER]

For each seed: `nearfar train` on all training images without their labels, judged on the official test images by 10-NN
and 1-NN accuracy; a linear classifier on it with all labels; then training with the labels of one image in a hundred,
and in ten, that begins with it, and the same training from random weights. There the index has the labelled images alone.
Seconds are those of training. Finished runs in ``--out`` are used again.

With ``--lengths``: how far what the test images say without their labels (how many are found again by a changed view of them)
goes with what they say with these, after so many epochs, after supervised training, and of pixels. Seed 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import nearfar as nf
from nearfar.measuring import judging
from nearfar.measuring.figures import figures
from nearfar.runs.opening import load_run

LINEAR = ["train.mode=linear", "train.epochs=60", "train.vector_rate=0.1", "sampling.batch_size=512"]
FEW = [
    "loss.kind=supcon",
    "loss.temperature=0.1",
    "sampling.kind=shuffle",
    "sampling.batch_size=128",
    "train.projector=[]",
    "encoder.whiten=0",
]


@dataclass(frozen=True, kw_only=True)
class Set:
    """A data set, recipes for it without labels and with them, and what is done to its images where they have labels."""

    data: str
    recipe: str
    supervised: str
    augment: tuple[str, ...]


SETS = {
    "mnist": Set(
        data="mnist",
        recipe="dcl",
        supervised="mnist-fast",
        augment=(
            *("augment.shift=1", "augment.degrees=10", "augment.scale=0.1", "augment.shear=5"),
            *("augment.elastic=0", "augment.gamma=0", "augment.erase=0"),
        ),
    ),
    "fashion": Set(
        data="fashion-mnist",
        recipe="fashion-views",
        supervised="fashion-fastest",
        augment=("augment.shift=1", "augment.crop=0", "augment.gamma=0"),
    ),
}
FRACTIONS = {0.01: 60, 0.1: 15}  # share of the labels: epochs

Figures = dict[str, float]


def train(data: str, out: Path, seed: int, *options: str) -> None:
    """Run `nearfar train` once; nothing where ``out`` holds a finished run."""
    config = out / "config.json"
    if config.exists() and json.loads(config.read_text())["state"] == "finished":
        return
    resume = ["--resume"] if config.exists() else []
    command = [sys.executable, "-m", "nearfar", "train", data, "--seed", str(seed), "--out", str(out), *options, *resume]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def judge(run: Path, test: nf.ImageSet) -> Figures:
    """Accuracy in percent on ``test`` by 10 neighbours, by one, and of the linear classifier where there is one."""
    model, index = load_run(run)
    z, answers = model.transform(test), test.require_labels()
    found = {f"{k}-NN": 100 * nf.NeighborClassifier(index, k=k).score(z, answers) for k in (10, 1)}
    if model.head_ is not None:
        numbers = np.array([test.classes.index(name) for name in model.head_.classes])
        found["linear"] = 100 * float((numbers[model.head_.predict(z)] == answers).mean())
    return found | {"seconds": json.loads((run / "config.json").read_text())["training"]["seconds"]}


def one_seed(name: str, seed: int, out: Path, test: nf.ImageSet, shares: Sequence[float]) -> dict[str, Figures]:
    """All figures of a seed, by training."""
    one, run = SETS[name], out / f"{name}-{seed}"
    train(one.data, run, seed, "--recipe", one.recipe)
    linear = run.with_name(f"{run.name}-linear")
    train(one.data, linear, seed, "--from", str(run), "--set", *LINEAR)
    rows = {"no labels": judge(run, test), "a linear classifier on it": judge(linear, test)}
    for share in shares:
        epochs = FRACTIONS[share]
        settings = ["--set", *FEW, *one.augment, f"data.fraction={share}", f"train.epochs={epochs}"]
        for start, options in (("on it", ["--from", str(run)]), ("from nothing", ["--recipe", one.recipe])):
            few = run.with_name(f"{run.name}-{share}-{start.replace(' ', '-')}")
            train(one.data, few, seed, *options, *settings)
            rows[f"{100 * share:g} % of the labels, {start}"] = judge(few, test)
    return rows


def without_labels(name: str, lengths: Sequence[float], out: Path, test: nf.ImageSet) -> None:
    """Print figures of ``test`` with its labels and without, for the recipe after ``lengths`` of training and for others."""
    one, bare = SETS[name], dataclasses.replace(test, labels=None, classes=())
    trainings = [(one.recipe, length) for length in lengths] + [(one.supervised, None)]
    print(f"{name}, test images: 10-NN accuracy, 1-NN accuracy, found first by a changed view; percent")

    def row(title: str, *values: float) -> None:
        print(f"  {title:32} {'   '.join(f'{value:6.2f}' for value in values)}", flush=True)

    for recipe, epochs in trainings:
        run = out / f"{name}-{recipe}-{epochs}"
        train(one.data, run, 0, "--recipe", recipe, *([] if epochs is None else ["--epochs", str(epochs)]))
        known, unknown = judge(run, test), figures(judging.judge(run, bare))
        row(f"{recipe}, {epochs or 'its own'} epochs", known["10-NN"], known["1-NN"], 100 * unknown["views"]["recall@1"])
    plain = figures(judging.judge(run, test))["baselines"]
    for baseline in ("pca", "pixels"):
        vote, found = plain[baseline]["classification"], unknown["baselines"][baseline]["views"]
        row(f"{baseline}, of 2,500", *(100 * value for value in (vote["accuracy"], vote["one_nn_accuracy"], found["recall@1"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[*SETS], choices=[*SETS])
    parser.add_argument("--shares", type=float, nargs="*", default=[*FRACTIONS], choices=[*FRACTIONS], help="of the labels")
    parser.add_argument("--lengths", type=float, nargs="*", help="epochs after which to judge with labels and without")
    parser.add_argument("--out", type=Path, default=Path("runs/unlabelled"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print(
        f"nearfar {nf.__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, {platform.system()} {platform.machine()}"
    )
    for name in options.only:
        test = nf.load_images(SETS[name].data, split="test")
        if options.lengths is not None:
            without_labels(name, options.lengths or [0.05, 0.2, 1.0], options.out, test)
            continue
        seeds = [one_seed(name, seed, options.out, test, options.shares) for seed in options.seeds]
        print(f"{name}, {SETS[name].recipe}; median (range) of seeds {', '.join(map(str, options.seeds))}")
        for row in seeds[0]:
            cells = [f"{key} {_middle([seed[row][key] for seed in seeds])}" for key in seeds[0][row]]
            print(f"  {row:32} {'   '.join(cells)}", flush=True)


def _middle(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
