"""Which images are one picture: against a slow loop over the pixels themselves."""

from __future__ import annotations

import numpy as np
import pytest
from samples import shapes

from nearfar.data import ImageSet
from nearfar.data.duplicates import digest, digests, number_pictures, same_picture


def few_pictures(count: int, seed: int) -> ImageSet:
    """Images of 2 x 2 pixels of two values: 16 pictures at most."""
    pixels = np.random.default_rng(seed).integers(0, 2, size=(count, 1, 2, 2)).astype(np.uint8)
    return ImageSet(images=pixels)


@pytest.mark.parametrize("seed", range(5))
def test_the_first_copy_is_that_of_a_slow_loop(seed: int) -> None:
    gallery, queries = few_pictures(20, seed), few_pictures(30, seed + 100)
    found = same_picture(digests(queries), digests(gallery))
    for row, image in enumerate(np.asarray(queries.images)):
        copies = [at for at, other in enumerate(np.asarray(gallery.images)) if np.array_equal(image, other)]
        assert found[row] == (copies[0] if copies else -1)


@pytest.mark.parametrize("seed", range(5))
def test_an_image_is_no_copy_of_itself(seed: int) -> None:
    images = few_pictures(25, seed)
    found = same_picture(digests(images), digests(images), np.arange(25))
    for row, image in enumerate(np.asarray(images.images)):
        others = [at for at, other in enumerate(np.asarray(images.images)) if at != row and np.array_equal(image, other)]
        assert found[row] == (others[0] if others else -1)


def test_the_shape_belongs_to_the_picture() -> None:
    pixels = np.arange(6, dtype=np.uint8)
    assert digest(pixels.reshape(1, 2, 3)) != digest(pixels.reshape(1, 3, 2))
    assert digest(pixels.reshape(1, 2, 3)) == digest(np.asfortranarray(pixels.reshape(1, 2, 3)))


def test_pictures_are_numbered_alike_where_they_are_alike() -> None:
    numbers = number_pictures(digests(few_pictures(40, 0)))
    pixels = np.asarray(few_pictures(40, 0).images).reshape(40, -1)
    same = (pixels[:, None] == pixels[None]).all(axis=2)
    assert np.array_equal(numbers[:, None] == numbers[None], same)
    assert len(digests(shapes(5))) == 5
