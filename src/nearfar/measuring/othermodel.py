"""Another model to stand beside a run in its figures: another run, or a model of timm as it is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nearfar import runs
from nearfar.data import ImageSet
from nearfar.embedder import Embedder
from nearfar.encoders.timm_model import TimmModel
from nearfar.errors import InputError
from nearfar.recipe import Recipe

Floats = npt.NDArray[np.float32]

_AT_ONCE = 2048
"""Images that are brought to the other model's size at a time: small ones may become large."""


def other_model(name: str, *, device: str = "auto") -> Callable[[ImageSet], Floats]:
    """What turns images into the other model's embeddings, float32 [N, D].

    Args:
        name: a run folder, or the name of a model of timm, whose published weights are taken.
        device: where it computes.

    Raises:
        InputError: it is neither, or cannot be loaded.
    """
    try:
        model = Embedder.load(name, device=device) if (Path(name) / runs.CONFIG).exists() else _published(name, device)
    except InputError as reason:
        raise InputError(f"the baseline is {name!r}, neither a run folder nor a model that timm can load: {reason}") from None

    def embed(images: ImageSet) -> Floats:
        starts = range(0, len(images), _AT_ONCE)
        return np.concatenate([model.transform(images.subset(np.arange(at, min(at + _AT_ONCE, len(images))))) for at in starts])

    return embed


def _published(name: str, device: str) -> Embedder:
    """The frozen model in the size, and with the pixels, that its weights were made for."""
    wanted = TimmModel.published(name)
    recipe = Recipe.from_dict(
        {
            "name": "published",
            "data": {"size": list(wanted.size), "channels": 3, "mean": list(wanted.mean), "std": list(wanted.std)},
            "encoder": {"kind": "timm", "model": name, "frozen": True},
            "loss": {"kind": "supcon"},
        }
    )
    blank = ImageSet(images=np.zeros((1, 3, *wanted.size), dtype=np.uint8), name="blank")  # nothing is learned from it
    return Embedder(recipe, device=device).fit_parts(blank, None)
