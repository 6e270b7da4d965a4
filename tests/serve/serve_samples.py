"""A small run in service: trained once on the digits 0 to 7, so that 8 and 9 are classes to add."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nearfar import verbs
from nearfar.data import ImageSet, load_any
from nearfar.recipe import Recipe

DIGITS: dict[str, Any] = {
    "name": "tiny",
    "description": "learns the digits of the tests in a second",
    "data": {"size": [8, 8], "channels": 1, "unseen": ["8", "9"]},
    "encoder": {"kind": "mlp", "hidden": [64], "dim": 16, "normalize": True},
    "loss": {"kind": "supcon", "temperature": 0.2},
    "sampling": {"kind": "shuffle", "batch_size": 30},
    "train": {"epochs": 5, "learning_rate": 0.003},
    "evaluate": {"k": 10, "bootstrap": 20},
}


def train_digits(folder: Path) -> Path:
    verbs.train("digits", recipe=Recipe.from_dict(DIGITS), out=folder)
    return folder


def train_bare(images: ImageSet, folder: Path) -> Path:
    """A run on 160 of the images, of which no label is known."""
    bare = dataclasses.replace(images.subset(np.arange(200)), labels=None, classes=())
    views = {**DIGITS, "data": {"size": [8, 8], "channels": 1}, "loss": {"kind": "nt-xent"}, "augment": {"shift": 1}}
    views |= {"sampling": {"kind": "views", "batch_size": 50}, "train": {"epochs": 1}}
    verbs.train(bare, recipe=Recipe.from_dict(views), out=folder)
    return folder


def digits() -> ImageSet:
    return load_any(["digits"], size=8, channels=1)


def of_class(images: ImageSet, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(images.images)[images.require_labels() == images.classes.index(name)]


def png(image: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[0]).save(buffer, format="PNG")
    return buffer.getvalue()


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()
