"""Whether the file of a graph or a forest can be walked: every link leads somewhere, and every walk ends.

The libraries that search such files believe what they read. A file from a stranger could lead them out of its memory, so
all links are looked at before a library sees the file. What the links are worth is not judged:
the index scores whatever is proposed.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

_NODES = 1 << 16
"""Nodes looked at together."""
_HEAD = 64
_SAME_IN_ALL = (slice(0, 8), slice(13, 17), slice(33, 42))
"""Of the head: the name and version of the format; the kinds of metric, number, key and link; dimensions and uniqueness."""
_LEVEL_OF, _COUNT_OF, _LINKS_OF = 8, 10, 14
"""Where in a node of a graph its level, the number of its links and the links stand, behind its key."""


class BrokenStructure(ValueError):
    """A file's links lead astray."""


def check_graph(content: npt.NDArray[np.uint8], empty: bytes, width: int, most: int) -> None:
    """Look at all links of a graph that usearch wrote (format 2: vectors, head, levels, nodes).

    Args:
        content: the file.
        empty: what it would be without vectors.
        width: bytes of a vector.
        most: vectors that it may hold.

    Raises:
        BrokenStructure: a part is missing or too long, or a link leads to no node of its layer.
    """
    rows, columns = _unpack("<II", content, 0)
    head = 8 + rows * columns
    size, links, lowest, top, entry = _unpack("<QQQQQ", content, head + _HEAD)
    if any(bytes(content[head:][part]) != empty[8:][part] for part in _SAME_IN_ALL) or (rows, columns) != (size, width):
        raise BrokenStructure("it does not hold such vectors, or not in the way expected")
    if not (0 < size <= most and entry < size and 0 < links <= lowest <= 1024 and top < 64):
        raise BrokenStructure("its head holds numbers that cannot be")
    start = head + _HEAD + 40
    levels = content[start : start + 2 * size].view("<i2").astype(np.int64)
    if len(levels) != size or levels.min() < 0 or levels.max() > top or levels[entry] < top:
        raise BrokenStructure("it has nodes of impossible layers")
    base, layer = _LINKS_OF + 4 * lowest, 4 + 4 * links
    lengths = base + levels * layer
    nodes = start + 2 * size + np.concatenate([[0], np.cumsum(lengths)])
    if nodes[-1] != len(content):
        raise BrokenStructure("it is shorter or longer than its nodes")
    for at in range(0, size, _NODES):
        part, owned = nodes[:-1][at : at + _NODES], levels[at : at + _NODES]
        if (_gather(content, part + _LEVEL_OF, 2).view("<i2")[:, 0] != owned).any():
            raise BrokenStructure("it has nodes that contradict its list of layers")
        _check_links(_gather(content, part + _COUNT_OF, 4 + 4 * lowest).view("<u4"), levels, 0)
        for level in range(1, int(owned.max()) + 1):
            upper = part[owned >= level] + base + (level - 1) * layer
            _check_links(_gather(content, upper, layer).view("<u4"), levels, level)


def check_forest(path: Path, metric: str, dimensions: int, items: int) -> None:
    """Look at all children in a forest that Annoy wrote.

    Args:
        path: the file.
        metric: "angular", "dot" or "euclidean", which decides how a node is laid out.
        dimensions: of a vector.
        items: vectors that it holds, which are its first nodes.

    Raises:
        BrokenStructure: the file does not consist of nodes, a child is no node or its own ancestor, or a vector or plane is
            not finite.
    """
    before = 2 if metric == "euclidean" else 1  # numbers before the children
    numbers = dimensions + (3 if metric == "angular" else 4)
    content = np.memmap(path, "<i4", mode="r")
    if len(content) % numbers or len(content) // numbers <= items or path.stat().st_size % 4:
        raise BrokenStructure("it does not consist of whole nodes")
    nodes = content.reshape(-1, numbers)
    if (nodes[:items, 0] != 1).any():
        raise BrokenStructure("it has vectors that are no leaves")
    if not all(_finite(nodes[at : min(at + _NODES, items), -dimensions:]) for at in range(0, items, _NODES)):
        raise BrokenStructure("it has vectors that are not finite")
    room = numbers - before
    for at in range(items, len(nodes), _NODES):
        part = nodes[at : at + _NODES]
        below, children = part[:, 0], part[:, before:]
        listed = below <= room
        inside = np.arange(room) < below[:, None]
        if (below < 1).any() or (listed[:, None] & inside & ((children < 0) | (children >= items))).any():
            raise BrokenStructure("it has leaves that hold no vectors")
        # A tree is written from its leaves up: a child stands before its parent, so that no walk goes in circles.
        own = np.arange(at, at + len(part))[:, None]
        if ((children[:, :2] < 0) | (children[:, :2] >= own))[~listed].any():
            raise BrokenStructure("it has children that are no nodes below")
        if not (_finite(part[~listed, -dimensions:]) and (before == 1 or _finite(part[~listed, 1:2]))):
            raise BrokenStructure("it has planes that are not finite")


def _finite(numbers: npt.NDArray[np.int32]) -> bool:
    """Whether all are finite, read as float32."""
    return bool(np.isfinite(np.ascontiguousarray(numbers).view("<f4")).all())


def _unpack(form: str, content: npt.NDArray[np.uint8], at: int) -> tuple[int, ...]:
    part = bytes(content[at : at + struct.calcsize(form)])
    if len(part) < struct.calcsize(form):
        raise BrokenStructure("it ends too early")
    return struct.unpack(form, part)


def _gather(content: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.uint8]:
    """Return ``length`` bytes from each of ``starts`` [n]: [n, length]."""
    windows = np.lib.stride_tricks.sliding_window_view(content, length)
    return np.ascontiguousarray(windows[starts])


def _check_links(lists: npt.NDArray[np.uint32], levels: npt.NDArray[np.int64], level: int) -> None:
    """Refuse lists [n, 1 + links], each a count and then links, that lead to no node or to one without this layer."""
    counts, links = lists[:, 0], lists[:, 1:]
    if not len(lists):
        return
    if counts.max() > links.shape[1]:
        raise BrokenStructure("it has more links at a node than there is room for")
    used = np.arange(links.shape[1]) < counts[:, None]
    targets = links[used]
    if len(targets) and (targets.max() >= len(levels) or (level and levels[targets].min() < level)):
        raise BrokenStructure("it has links that lead to no node")
