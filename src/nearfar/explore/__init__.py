"""Look at an embedding: a map of it that is made once, and a page to walk about on it.

The order of the house: ``make`` brings points, positions and verdicts together, with ``layout`` for the positions and ``store``
for the file; ``positions`` gives them to others; ``pictures`` has the images of the points; ``app`` answers the page in
``static``, and ``serve`` runs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "explore": "nearfar.explore.serve",
    "make_map": "nearfar.explore.make",
    "open_positions": "nearfar.explore.positions",
}

__all__ = ["explore", "make_map", "open_positions"]

if TYPE_CHECKING:
    from nearfar.explore.make import make_map
    from nearfar.explore.positions import open_positions
    from nearfar.explore.serve import explore


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nearfar.explore' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
