"""Small image sets and a recipe that learns them in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearfar.data import ImageSet
from nearfar.pictures import as_png


def shapes(count: int, *, size: int = 12, classes: int = 3, channels: int = 1, seed: int = 0, name: str = "shapes") -> ImageSet:
    """Bars whose direction is the class, at random places, with noise: easy to learn, not trivial in pixels."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = random.integers(0, 60, (count, channels, size, size))
    for row, label in enumerate(labels):
        angle = np.pi * label / classes
        y, x = np.mgrid[:size, :size] - size / 2 + random.uniform(-2, 2, (2, 1, 1))
        images[row, :, np.abs(x * np.sin(angle) - y * np.cos(angle)) < 1.2] += 180
    order = random.permutation(count)
    return ImageSet(images=images[order].astype(np.uint8), labels=labels[order], classes=tuple("abcdefgh"[:classes]), name=name)


TINY: dict[str, Any] = {
    "name": "tiny",
    "description": "learns the shapes of the tests in a second",
    "data": {"size": [12, 12], "channels": 1},
    "encoder": {"kind": "mlp", "hidden": [32], "dim": 8, "normalize": True},
    "loss": {"kind": "supcon", "temperature": 0.2},
    "sampling": {"kind": "shuffle", "batch_size": 30},
    "train": {"epochs": 3, "learning_rate": 0.01},
    "evaluate": {"k": 5, "bootstrap": 50},
}


SQUARES = ("bright left", "bright right", "dim left", "dim right")
PHRASES = (
    "a {tone} square on the {side}",
    "{tone}, to the {side}",
    "the square on the {side} is {tone}",
    "on the {side} a {tone} square",
    "{tone} {side}",
)


def squares(count: int, *, seed: int = 0, name: str = "squares", phrases: tuple[str, ...] = PHRASES) -> ImageSet:
    """A bright or a dim square on the left or on the right, with noise; each with two of the phrases as captions."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % len(SQUARES))
    images = random.integers(0, 40, (count, 1, 12, 12))
    texts = []
    for row, label in enumerate(labels):
        tone, side = SQUARES[label].split()
        top, left = random.integers(1, 6), random.integers(0, 2) + (0 if side == "left" else 6)
        images[row, 0, top : top + 5, left : left + 4] += 200 if tone == "bright" else 90
        chosen = random.choice(len(phrases), 2, replace=False)
        texts.append([phrases[number].format(tone=tone, side=side) for number in chosen])
    return ImageSet(images.astype(np.uint8), labels, SQUARES, name=name, texts=texts)  # type: ignore[arg-type]  # put into form there


CLIP: dict[str, Any] = {
    "name": "tiny-clip",
    "description": "learns the squares of the tests and their captions in a second",
    "data": {"size": [12, 12], "channels": 1, "mean": [0.15], "std": [0.2]},
    "encoder": {"kind": "mlp", "hidden": [32], "dim": 8, "normalize": True},
    "loss": {"kind": "clip"},
    "sampling": {"kind": "captions", "batch_size": 40},
    "text": {"width": 16, "layers": 1, "heads": 2, "length": 12, "vocabulary": 400, "dropout": 0.05},
    "train": {"epochs": 40, "learning_rate": 0.005},
    "evaluate": {"k": 5, "bootstrap": 50, "templates": ["a {} square"]},
}


def write_parquet(images: ImageSet, path: Path) -> None:
    """A set as one Parquet file of PNGs, with labels and captions where it has any."""
    columns: dict[str, Any] = {"image": [{"bytes": as_png(image), "path": None} for image in images.images]}
    if images.labels is not None:
        columns["label"] = [images.classes[label] for label in images.labels]
    if images.texts is not None:
        columns["text"] = [list(texts) for texts in images.texts]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
