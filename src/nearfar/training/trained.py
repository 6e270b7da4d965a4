"""What is trained in a run folder: the weights of the encoder, head and text tower, written at the end and loaded again.

``config.json`` comes last and names the hash of ``model.safetensors``; a folder whose parts do not belong together is
refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nearfar
from nearfar.encoders import build_encoder, channels_last
from nearfar.errors import InputError
from nearfar.files import hash_file, sweep, write_json
from nearfar.heads import Head, save_head
from nearfar.recipe import Recipe
from nearfar.runs import CHECKPOINT, CONFIG, FORMAT, HEAD, MODEL, TEXT, read_finished, write_history
from nearfar.text import TextTower
from nearfar.training.checkpoint import load_tensors, load_weights, save_tensors
from nearfar.training.parts import explain_size


def write_model(
    folder: Path,
    encoder: nn.Module,
    history: Sequence[Mapping[str, Any]],
    head: Head | None = None,
    text: TextTower | None = None,
    temperature: float | None = None,
) -> dict[str, Any]:
    """Write the weights and the history into ``folder``; returns what the config of a finished run says of them."""
    write_history(folder, history)
    save_tensors(folder / MODEL, encoder.state_dict())
    parts: dict[str, Any] = {"model": {"file": MODEL, "sha256": hash_file(folder / MODEL)}}
    if head is not None:
        parts["head"] = {"file": HEAD, "sha256": save_head(folder / HEAD, head)}
    if text is not None:
        parts["text"] = {"file": TEXT, "sha256": text.save(folder), "temperature": temperature}
    return parts


def finish(folder: Path, config: Mapping[str, Any]) -> None:
    """Declare the run finished, once all that belongs to it is in ``folder``; ``config`` has what `write_model` returned.

    The checkpoint goes last, so a crash before leaves a run that can be resumed.
    """
    write_json(folder / CONFIG, {"format": FORMAT, "nearfar": nearfar.__version__, "state": "finished", **config})
    (folder / CHECKPOINT).unlink(missing_ok=True)
    sweep((folder / CHECKPOINT).parent)
    with contextlib.suppress(OSError):  # it is not there, or holds what is not ours
        (folder / CHECKPOINT).parent.rmdir()


def load(folder: Path) -> tuple[Recipe, nn.Module, dict[str, Any]]:
    """The recipe, the encoder in eval mode, and the config of a finished run.

    Raises:
        InputError: a part is missing or damaged, parts do not belong together, or the run is not finished.
    """
    config = read_finished(folder)
    recipe = Recipe.from_dict(config["recipe"])
    path = folder / MODEL
    if not path.exists():
        raise InputError(f"{path} is missing; copy the run folder again, or train again")
    if hash_file(path) != config["model"].get("sha256"):
        raise InputError(f"{path} does not belong to {folder / CONFIG}: its hash differs; copy the run folder again")
    size, channels = config["input"]["size"], config["input"]["channels"]
    weights, _ = load_tensors(path)

    def built() -> nn.Module:
        return build_encoder(recipe.encoder.kind, channels=channels, size=(size[0], size[1]), **recipe.encoder.params)

    with explain_size(str(folder / CONFIG)), torch.device("meta"):  # memory is taken for weights that are there, not on a word
        encoder = built()
    load_weights(encoder, weights, path)
    if any(one.is_meta for one in encoder.buffers()):  # what a layer works out when it is built, and keeps out of files
        with torch.random.fork_rng(devices=[]):
            encoder = built()
        load_weights(encoder, weights, path)
    return recipe, channels_last(encoder).eval(), config


def text_entry(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ``config.json`` says of the run's text tower, whose file was compared with it; None where it has none.

    Raises:
        InputError: the entry is damaged, or the file is missing or of another run.
    """
    entry = config.get("text")
    if entry is None:
        return None
    temperature = entry.get("temperature") if isinstance(entry, dict) else None
    if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise InputError(f"{folder / CONFIG} is damaged: 'text' is not the entry of a text tower")
    path = folder / TEXT
    if not path.exists():
        raise InputError(f"{path} is missing; copy the run folder again, or train again")
    if hash_file(path) != entry.get("sha256"):
        raise InputError(f"{path} does not belong to {folder / CONFIG}: its hash differs; copy the run folder again")
    return dict(entry)


def recipe_to_continue(folder: Path) -> Recipe:
    """The recipe of a finished run, for images that are brought to the size and channels which its encoder takes.

    Raises:
        InputError: there is no finished run in ``folder``.
    """
    recipe, _, config = load(folder)
    return recipe.with_changes({"data.size": config["input"]["size"], "data.channels": config["input"]["channels"]})


def load_start(folder: Path, recipe: Recipe) -> tuple[nn.Module, dict[str, str]]:
    """The encoder of a finished run, for the training of ``recipe`` to begin with, and which one it is.

    Raises:
        InputError: there is no finished run, or its encoder or its preprocessing is not that of ``recipe``.
    """
    earlier, encoder, config = load(folder)
    same = {"encoder.kind": (earlier.encoder.kind, recipe.encoder.kind)}
    same |= {f"data.{key}": (getattr(earlier.data, key), getattr(recipe.data, key)) for key in ("mean", "std")}
    for key, (there, here) in same.items():
        if there != here:
            raise InputError(
                f"cannot start from {folder}: its {key} is {there!r}, the recipe's is {here!r}; "
                "leave out --recipe, and the run's own is taken"
            )
    return encoder, {"run": str(folder), "sha256": config["model"]["sha256"]}
