"""Search: the nearest of many vectors. It never sees images."""

from __future__ import annotations

from nearfar.search.exact import nearest
from nearfar.search.index import NeighborIndex

__all__ = ["NeighborIndex", "nearest"]
