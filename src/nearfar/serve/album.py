"""Pictures of the gallery: training images from where these are, added ones from the run folder.

Reading training images may take long, so that it is done beside; until then, and where they have gone or changed, there are
no pictures of them, and that is all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nearfar import pictures
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.recipe import Recipe
from nearfar.splits import load_for

_LOG = logging.getLogger("nearfar")
_SAMPLE = 256


class Album:
    """The pictures of a run's gallery, by id."""

    def __init__(self, folder: Path, config: Mapping[str, Any], recipe: Recipe, trained: int) -> None:
        """Args:
        folder: the run folder.
        config: of the run.
        recipe: of the run.
        trained: ids below this are rows of the training images.
        """
        self._folder, self._config, self._recipe, self._trained = folder, config, recipe, trained
        self._images: ImageSet | None = None
        self.ink: Literal["light", "dark"] | None = None if config["input"]["channels"] != 1 else "light"
        """How strokes stand out from the ground in grey images, guessed until the training images are there."""

    def load(self) -> None:
        """Read the training images; where that cannot be, one line in the log says why."""
        data = self._config["data"]
        noted = data.get("train", {}).get("sha256")
        try:
            if data.get("source") is None:
                raise InputError("the run does not say what it was trained on")
            images = load_for(data["source"], self._recipe.data, seed=self._config["seed"]).train
            if len(images) != self._trained or images.fingerprint() != noted:
                raise InputError("they have changed since the run was made")
        except (InputError, OSError) as error:
            _LOG.warning("no pictures of the training images: %s", error)
            return
        self._images = images
        if images.channels == 1:
            some = np.asarray(images.images[:_SAMPLE])
            rim = np.concatenate([some[..., 0, :], some[..., -1, :], some[..., :, 0], some[..., :, -1]], axis=-1)
            self.ink = "light" if np.median(rim) < 128 else "dark"

    def png(self, number: int) -> bytes | None:
        """The picture of the image with this id, None where there is none."""
        if number >= self._trained:
            return pictures.read(self._folder, number)
        if self._images is None or number < 0:
            return None
        return pictures.as_png(np.asarray(self._images.images[number : number + 1])[0])
