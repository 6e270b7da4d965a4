"""nearfar teaches a network what is near and what is far.

The public names are loaded when they are first used, so that ``import nearfar`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Embedder": "nearfar.embedder",
    "ImageSet": "nearfar.data",
    "InputError": "nearfar.errors",
    "NeighborClassifier": "nearfar.classify",
    "NeighborIndex": "nearfar.search",
    "Recipe": "nearfar.recipe",
    "evaluate": "nearfar.evaluation",
    "load_images": "nearfar.data",
    "load_recipe": "nearfar.recipe",
    "load_splits": "nearfar.data",
    "losses": "",
}

__all__ = [
    "Embedder",
    "ImageSet",
    "InputError",
    "NeighborClassifier",
    "NeighborIndex",
    "Recipe",
    "__version__",
    "evaluate",
    "load_images",
    "load_recipe",
    "load_splits",
    "losses",
]

if TYPE_CHECKING:
    from nearfar import losses
    from nearfar.classify import NeighborClassifier
    from nearfar.data import ImageSet, load_images, load_splits
    from nearfar.embedder import Embedder
    from nearfar.errors import InputError
    from nearfar.evaluation import evaluate
    from nearfar.recipe import Recipe, load_recipe
    from nearfar.search import NeighborIndex


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nearfar' has no attribute {name!r}")
    if not _HOME[name]:
        return importlib.import_module(f"nearfar.{name}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
