"""Which images are one picture? Pure functions on pixels, the same for `nearfar data check` and for figures.

Knows no files and no splits: a picture is its shape and its decoded pixels, whatever file they came from.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from nearfar.data.imageset import ImageSet

Digests = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

_BLOCK = 4096


def digest(image: npt.NDArray[np.uint8]) -> bytes:
    """16 bytes of hash of the shape and the pixels of one image [C, H, W]."""
    hashed = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    hashed.update(np.ascontiguousarray(image).data)
    return hashed.digest()


def digests(images: ImageSet) -> Digests:
    """The hash of every image of a set, [N, 2]."""
    found = np.empty((len(images), 2), dtype=np.uint64)
    for start in range(0, len(images), _BLOCK):
        block = images.images[start : start + _BLOCK]
        found[start : start + _BLOCK] = np.frombuffer(b"".join(map(digest, block)), dtype=np.uint64).reshape(-1, 2)
    return found


def number_pictures(digests: Digests) -> Ints:
    """Number the different pictures: rows with the same digest [n, 2] get the same number [n]."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ranked = digests[order]
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(fresh) - 1
    return numbers


def same_picture(queries: Digests, gallery: Digests, exclude: Ints | None = None) -> Ints:
    """For each of the ``queries`` [N, 2] the first row of the ``gallery`` [M, 2] with the same digest, or -1.

    Args:
        queries: of the images that are asked about.
        gallery: of the images among which copies are looked for.
        exclude: a row of the gallery for each query that does not count, its own [N]; -1 leaves out nothing.
    """
    numbers = number_pictures(np.concatenate([gallery, queries]))
    known, asked = numbers[: len(gallery)], numbers[len(gallery) :]
    order = np.argsort(known, kind="stable")
    ranked = np.append(known[order], [-1, -1])  # two places beyond the end, which are no picture
    place = np.searchsorted(known[order], asked)
    rows = np.append(order, [-1, -1])
    if exclude is not None:
        place = place + ((ranked[place] == asked) & (rows[place] == exclude))
    return np.where(ranked[place] == asked, rows[place], -1)
