"""What a recipe's changes make of a user's images, as a picture to look at before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nearfar import plots
from nearfar.augment import Augment
from nearfar.errors import InputError
from nearfar.files import write_bytes, write_text
from nearfar.measuring.judging import Source
from nearfar.recipe import Recipe, load_recipe
from nearfar.splits import load_for
from nearfar.training.parts import build

IMAGES, VIEWS = 6, 6
"""In the picture: rows, and views in each."""


def draw_views(
    recipe: str | Path | Recipe,
    data: Source,
    *,
    out: str | Path = "views.png",
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Draw some training images, each beside six views of it, as the recipe's ``[augment]`` section changes them.

    Args:
        recipe: name, TOML file or `Recipe`.
        data: name, path or `ImageSet`; of its training images six are drawn.
        out: a .png or .svg file.
        seed: of the choice of images, and of the changes.
        changes: values by dotted key that replace the recipe's.
        skip_bad: leave out images that cannot be read instead of refusing.

    Returns:
        ``out``, ``recipe``, ``images`` (the ids of those shown) and ``views`` (how many of each).

    Raises:
        InputError: the recipe or the data cannot be used, the recipe changes nothing, or ``out`` ends otherwise.
    """
    out = Path(out)
    if out.suffix not in (".png", ".svg"):
        raise InputError(f"cannot draw views to {out}; its name must end in .png or .svg")
    chosen = load_recipe(recipe, changes)
    augment = build("augment", Augment, chosen.augment)
    if not augment:
        raise InputError(
            f"the recipe {chosen.name!r} changes no image: it has no [augment] section; --set augment.flip=true, say"
        )
    train = load_for(data, chosen.data, seed=seed, skip_bad=skip_bad).train
    rows = np.sort(np.random.default_rng(seed).permutation(len(train))[:IMAGES])
    images = np.ascontiguousarray(train.images[rows])
    generator = torch.Generator().manual_seed(seed)
    changed = augment(torch.from_numpy(np.repeat(images, VIEWS, axis=0)), generator)
    views = changed.float().round().clamp(0, 255).to(torch.uint8).numpy()
    plot = plots.view_grid(images, views.reshape(len(rows), VIEWS, *views.shape[1:]), limit=IMAGES)
    if out.suffix == ".svg":
        write_text(out, plot.svg_text())
    else:
        write_bytes(out, plot.png_bytes())
    return {"out": str(out), "recipe": chosen.name, "images": train.ids[rows].tolist(), "views": VIEWS}
