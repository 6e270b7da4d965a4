"""Small image sets and a recipe that learns them in a second."""

from __future__ import annotations

from typing import Any

import numpy as np

from nearfar.data import ImageSet


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
