"""Accuracy over seconds of training: each recipe at several lengths, and the reference systems epoch by epoch.

    python benchmarks/curves.py [--out FOLDER] [--picture FILE.png]

Accuracy is that of the vote of 10 neighbours among 10,000 training images that were held out, so no test image is looked at.
A recipe whose rate falls to zero at its end is worth nothing before it, and is trained anew for each point; the systems are
measured after every epoch of one run. It is lower than against all training images. Seed 0; finished runs in ``--out`` are
used again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import nearfar as nf
from nearfar.files import write_json
from nearfar.inference import embed
from nearfar.plots import style
from nearfar.recipe import load_recipe
from nearfar.training.loop import fit

HELD = 10_000
LENGTHS: dict[tuple[str, str], tuple[float, ...]] = {
    ("mnist", "mnist-fastest"): (0.1, 0.2, 0.35, 0.7),
    ("mnist", "mnist-fast"): (0.5, 1, 2),
    ("mnist", "mnist-best"): (1, 3, 8),
    ("fashion-mnist", "fashion-fastest"): (0.2, 0.5, 1.5),
    ("fashion-mnist", "fashion-fast"): (0.5, 1.5, 8),
    ("fashion-mnist", "fashion-best"): (1, 3),
}
EPOCHS: dict[tuple[str, str], int] = {  # of the systems, whose rates hardly change
    ("mnist", "cosine-pairs"): 2,
    ("mnist", "margin-plane"): 5,
    ("mnist", "siamese-verification"): 1,
    ("mnist", "decoupled"): 8,
    ("fashion-mnist", "fashion-contrastive"): 3,
    ("fashion-mnist", "fashion-cross-entropy"): 5,
}


def at_the_end(data: str, recipe_name: str, epochs: float, out: Path) -> tuple[float, float]:
    """Seconds and percent of a whole run of so many epochs."""
    path = out / f"{recipe_name}-{epochs:g}-whole.json"
    if not path.exists():
        kept, held = _parts(data)
        recipe = load_recipe(recipe_name, {"train.epochs": epochs})
        fitted = fit(recipe, kept)
        z, labels = embed(fitted.encoder, held, recipe.data), held.require_labels()
        index = nf.NeighborIndex(metric=recipe.evaluate.metric, backend="exact").fit(z)
        _, rows = index.search_rows(z, 10, exclude=np.arange(len(z)))
        votes = np.apply_along_axis(np.bincount, 1, labels[rows], minlength=len(held.classes)).argmax(1)
        write_json(path, [fitted.seconds, 100 * float((votes == labels).mean())])
    seconds, percent = json.loads(path.read_text())
    return seconds, percent


def by_epoch(data: str, recipe_name: str, epochs: int, out: Path) -> list[tuple[float, float]]:
    """Seconds and percent after each epoch of a run; the measuring, a second or two an epoch, is among the seconds."""
    path = out / f"{recipe_name}-{epochs}.json"
    if not path.exists():
        changes: dict[str, Any] = {"train.epochs": epochs, "evaluate.k": 10, "evaluate.vote": "majority"}
        fitted = fit(load_recipe(recipe_name, changes), *_parts(data))
        write_json(path, [(row["seconds"], 100 * row["validation"]["knn_accuracy"]) for row in fitted.history])
    return [(seconds, percent) for seconds, percent in json.loads(path.read_text())]


def _parts(data: str) -> tuple[nf.ImageSet, nf.ImageSet]:
    full = nf.load_images(data, split="train")
    rows = np.random.default_rng(0).permutation(len(full))
    return full.subset(rows[HELD:]), full.subset(rows[:HELD])


def draw(curves: dict[tuple[str, str], list[tuple[float, float]]], picture: Path) -> None:
    """A panel for each data set; both axes spread the small: seconds, and the share that is wrong."""
    sets = list(dict.fromkeys(data for data, _ in curves))
    with style.plot_style():
        figure = style.new_figure(style.WIDTH, 4.2)
        for panel, data in enumerate(sets, start=1):
            axes = figure.add_subplot(1, len(sets), panel)
            own = {recipe: values for (of, recipe), values in curves.items() if of == data}
            for number, (recipe, values) in enumerate(own.items()):
                seconds, percent = zip(*values, strict=True)
                axes.plot(seconds, [100 - value for value in percent], marker=style.MARKERS[number], ms=4, label=recipe)
            axes.set(xscale="log", yscale="log", title=data, xlabel="seconds of training", ylabel="10-NN error (%)")
            for axis, shown in ((axes.xaxis, "25"), (axes.yaxis, "23578")):
                axis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.set_minor_formatter(
                    lambda value, _, shown=shown: f"{value:g}" if f"{value:g}".strip("0.")[0] in shown else ""
                )
            axes.tick_params(axis="both", which="minor", labelsize=style.SMALL)
            axes.grid(True, which="both")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
        figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/curves"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/speed-curves.png"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    curves = {}
    for (data, recipe), lengths in LENGTHS.items():
        curves[data, recipe] = [at_the_end(data, recipe, epochs, options.out) for epochs in lengths]
    for (data, recipe), epochs in EPOCHS.items():
        curves[data, recipe] = by_epoch(data, recipe, epochs, options.out)
    for (data, recipe), values in curves.items():
        print(f"{data:14} {recipe:24}", "  ".join(f"{seconds:.1f} s {percent:.2f} %" for seconds, percent in values))
    draw(curves, options.picture)


if __name__ == "__main__":
    main()
