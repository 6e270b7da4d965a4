"""The same training in one process, in several, and by cached gradients, on made-up images: how far the weights end apart.

Plain SGD takes the place of the recipe's optimiser: Adam would hide a gradient of the wrong size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nearfar.data import ImageSet
from nearfar.distributed import ALONE, Group
from nearfar.distributed.launch import launch
from nearfar.encoders.dropout import Dropout
from nearfar.errors import InputError
from nearfar.recipe import Recipe
from nearfar.training.loop import fit
from nearfar.training.progress import Mute

LIMIT = 1e-5
"""Relative difference of the weights up to which they are the same: that of float32."""
MOVED = 1e-2
"""The same, relative to how far training has moved them."""
_SHAKE = 1e-7
"""Relative size of a change of the first weights, about that of rounding: what comes of it is what rounding may make."""
_ROOM = 10.0
"""How many times that may be the difference where it is larger than ``LIMIT``: a maximum of equals, a steep loss."""
_BATCH, _CLASSES, _RATE = 24, 4, 0.01
_WORK = "nearfar.doctor.proof:trials"


def prove(
    recipe: Recipe, *, processes: int = 2, steps: int = 10, note: Callable[[str], None] = lambda line: None, work: str = _WORK
) -> dict[str, Any]:
    """Train by ``recipe`` on made-up images in several ways and compare the weights.

    Args:
        recipe: what to train; its batches are cut to a few images.
        processes: how many are started.
        steps: of each training.
        note: is told what is being done.
        work: what the processes do; for tests.

    Returns:
        recipe, steps, processes, limit; rows, each with ``name``, ``difference`` (relative to the weights), ``moved``
        (relative to how far training moved them) and ``holds``; ``holds``, whether all do; ``left_out``, why a row is missing.
        The row of the first weights changed by 1e-7 is the yardstick: ``limit`` is ten times its difference, at least 1e-5.

    Raises:
        InputError: the recipe does not fit made-up images, or a number is not usable.
        ProcessLostError: a process failed.
    """
    for name, value, least in (("processes", processes, 2), ("steps", steps, 1)):
        if value < least:
            raise InputError(f"{name} is {value}; expected at least {least}")
    if recipe.train.mode != "embedding":
        raise InputError(f"train.mode is {recipe.train.mode!r}, which needs a run to begin with; examine another recipe")
    if processes > _BATCH // 4:
        raise InputError(f"processes is {processes}; expected at most {_BATCH // 4}")
    plain, cached = trial_recipes(recipe, steps)
    note("training in one process")
    start, one, again, shaken = untrained(plain), trained(plain), trained(plain), trained(plain, shake=_SHAKE)
    one_cached = trained(cached)
    note(f"training in {processes} processes")
    asked = {"recipes": [plain.to_dict(), cached.to_dict()]}
    several, several_cached = (
        torch.tensor(found, dtype=torch.float64) for found in launch(work, asked, processes=processes)[0]
    )
    pairs = [("one process, once more", again, one), (f"{processes} processes", several, one)]
    left_out = []
    if reason := _by_piece(plain):
        left_out.append(f"cached gradients against whole batches: {reason}")
    else:
        pairs.append(("cached gradients (train.chunk)", one_cached, one))
    pairs.append((f"cached gradients, {processes} processes", several_cached, one_cached))
    yardstick = _row(f"one process, begun {_SHAKE:g} apart", shaken, one, start, limit=float("inf"))
    limit = max(LIMIT, _ROOM * yardstick["difference"])
    rows = [_row(name, found, wanted, start, limit=limit) for name, found, wanted in pairs]
    rows.insert(1, yardstick)
    return {
        "recipe": recipe.name,
        "steps": steps,
        "processes": processes,
        "limit": limit,
        "rows": rows,
        "holds": all(row["holds"] for row in rows),
        "left_out": left_out,
    }


def trial_recipes(recipe: Recipe, steps: int) -> tuple[Recipe, Recipe]:
    """The recipe in small, by plain SGD: with whole batches, and with cached gradients."""
    changes: dict[str, Any] = {
        "train.optimizer": "sgd",
        "train.learning_rate": _RATE,
        "train.momentum": 0.0,
        "train.schedule": "constant",
        "train.weight_decay": 0.0,
        "train.clip": 0.0,
        "train.average": 0.0,
        "train.precision": "float32",
        "train.chunk": 0,
        "train.epochs": steps / 5,
        "data.labelled": 1.0,
        "sampling.batch_size": _BATCH,
        "sampling.classes": _CLASSES,
        "sampling.per_class": _BATCH // _CLASSES,
        "sampling.pairing": "half",
        "sampling.linked": min(recipe.sampling.linked, 2),
    }
    if recipe.sampling.kind == "views":
        changes["sampling.batch_size"] = _BATCH // recipe.sampling.views
    small = recipe.with_changes(changes)
    chunk = _BATCH // 2 * (2 if recipe.sampling.kind == "pairs" else 1)
    return small, small.with_changes({"train.chunk": chunk})


def made_up(recipe: Recipe) -> ImageSet:
    """Random images of the recipe's shape, five batches of them; each class somewhat lighter than the one before."""
    random = np.random.default_rng(0)
    height, width = recipe.data.size or (28, 28)
    count = 5 * recipe.sampling.batch_size
    labels = np.arange(count) % _CLASSES
    pixels = random.integers(0, 120, (count, recipe.data.channels or 1, height, width)) + 30 * labels[:, None, None, None]
    images = ImageSet(
        images=pixels.astype(np.uint8), labels=labels, classes=tuple("abcdefgh"[:_CLASSES]), name="made-up images"
    )
    if recipe.sampling.kind != "captions":
        return images
    return images.with_texts([(f"a picture of {images.classes[label]}",) for label in labels])


def trained(recipe: Recipe, *, shake: float = 0.0) -> torch.Tensor:
    """All numbers that training by ``recipe`` leaves in the encoder, float64; ``shake`` changes the first weights so much."""
    start = None
    if shake:
        start, generator = _begun(recipe), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weights in start.parameters():
                weights.mul_(1 + shake * torch.randn(weights.shape, generator=generator))
    fitted = fit(recipe, made_up(recipe), start=start, seed=0, watcher=Mute())
    return _numbers(fitted.encoder)


def untrained(recipe: Recipe) -> torch.Tensor:
    """The numbers that training by ``recipe`` begins with."""
    return _numbers(_begun(recipe))


def _begun(recipe: Recipe) -> nn.Module:
    from nearfar.training.parts import begin_encoder
    from nearfar.training.seeds import mix

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(0, 0))
        return begin_encoder(recipe, made_up(recipe), None)


def trials(asked: dict[str, Any], group: Group) -> list[list[float]]:
    """What each of several processes does."""
    assert group is not ALONE
    return [trained(Recipe.from_dict(tree)).tolist() for tree in asked["recipes"]]


def _numbers(encoder: nn.Module) -> torch.Tensor:
    floats = [value.detach().reshape(-1).double() for value in encoder.state_dict().values() if value.is_floating_point()]
    return torch.cat(floats)


def _row(name: str, found: torch.Tensor, wanted: torch.Tensor, start: torch.Tensor, *, limit: float) -> dict[str, Any]:
    apart, size, moved = (float(one.norm()) for one in (found - wanted, wanted, wanted - start))
    difference, of_way = apart / size, apart / max(moved, 1e-30)
    return {"name": name, "difference": difference, "moved": of_way, "holds": difference <= limit and of_way <= MOVED}


def _by_piece(recipe: Recipe) -> str:
    """Why pieces of a batch do not give what the whole does, if anything in the net makes it so."""
    from nearfar.training.parts import begin_encoder, build_projector

    images = made_up(recipe)
    with torch.random.fork_rng(devices=[]):
        encoder = begin_encoder(recipe, images, None)
        layers = [*encoder.modules(), *build_projector(recipe, encoder, images).modules()]
    if any(isinstance(layer, _BatchNorm) for layer in layers):
        return "batch norm takes its statistics over each piece, so that both are right and differ"
    if any(isinstance(layer, Dropout) and layer.p for layer in layers):
        return "dropout draws for each piece, so that both are right and differ"
    return ""
