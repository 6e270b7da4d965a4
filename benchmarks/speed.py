"""Training steps of the reference systems, ours against plain PyTorch programs, in turns in one process.

    python benchmarks/speed.py [--steps 200] [--rounds 5] [--recipes NAME ...] [--set KEY=VALUE ...] [--out FILE.json]

A step is everything from rows to updated weights: reading pixels, making the batch, forward, backward, optimiser. Medians
of the rounds; start-up (choosing the precision, reading the set, drawing fixed pairs) counts for neither side. ``--set``
changes our recipes, as ``sampling.linked=64`` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain import PLAIN, step_seconds
from systems import SYSTEMS

import nearfar as nf
from nearfar.files import write_json
from nearfar.recipe import load_recipe, parse_changes
from nearfar.training.loop import fit


def ours(
    recipe_name: str, train: nf.ImageSet, *, steps: int, seed: int, changes: dict[str, Any] | None = None
) -> tuple[float, str]:
    """Mean seconds of a training step of the recipe, and the precision that it chose."""
    recipe = load_recipe(recipe_name, {"train.epochs": 1, "train.checkpoint_seconds": 1e9, **(changes or {})})
    pairs_an_image = 2 if recipe.sampling.pairing == "both" else 1
    images_a_step = recipe.sampling.batch_size * (2 if recipe.sampling.kind == "pairs" else 1)
    some = train.subset(
        np.random.default_rng(seed).permutation(len(train))[: steps * recipe.sampling.batch_size // pairs_an_image]
    )
    fitted = fit(recipe, some, seed=seed)
    return images_a_step / fitted.images_per_second, fitted.precision


def measure(
    recipes: list[str], *, steps: int, rounds: int, changes: dict[str, Any] | None = None
) -> dict[str, dict[str, float | str]]:
    """By recipe: seconds a step of the plain program and of ours, how many times faster, and our precision."""
    results: dict[str, dict[str, float | str]] = {}
    for system in SYSTEMS:
        if system.recipe not in recipes:
            continue
        train = nf.load_images(system.data, split="train")
        images, labels = np.asarray(train.images), train.require_labels()
        ours(system.recipe, train, steps=10, seed=0, changes=changes)  # what is loaded on first use
        plain_times, own_times, precision = [], [], ""
        for turn in range(rounds):
            plain_times.append(step_seconds(system.recipe, images, labels, steps=steps))
            own, precision = ours(system.recipe, train, steps=steps, seed=turn, changes=changes)
            own_times.append(own)
        plain, own = statistics.median(plain_times), statistics.median(own_times)
        results[system.recipe] = {"plain": plain, "ours": own, "times": plain / own, "precision": precision}
        print(
            f"{system.recipe:24}  plain {1e3 * plain:7.2f} ms  ours {1e3 * own:7.2f} ms  {plain / own:5.1f} times  {precision}",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", default=list(PLAIN), choices=list(PLAIN))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(f"nearfar {nf.__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    results = measure(options.recipes, steps=options.steps, rounds=options.rounds, changes=parse_changes(options.set))
    if options.out:
        write_json(options.out, results)
    else:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
