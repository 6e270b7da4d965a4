from __future__ import annotations

import copy
import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.data.store import DiskImages, open_images, write_images
from nearfar.errors import InputError

COUNT = 23
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 2, 3, 4), dtype=np.uint8)


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> DiskImages:
    path = tmp_path_factory.mktemp("store") / "some.images"
    with write_images(path, (2, 3, 4), expected=COUNT) as writer:
        for block in (PIXELS[:5], PIXELS[5:6], PIXELS[6:6], PIXELS[6:]):
            writer.append(block)
        writer.note["bad"] = [[3, "torn"]]
    images, note = open_images(path)
    assert note == {"bad": [[3, "torn"]]}
    return images


rows = st.lists(st.integers(-COUNT, COUNT - 1), max_size=40)
limits = st.none() | st.integers(-30, 30)


@given(rows)
@settings(max_examples=80, deadline=None)
def test_rows_come_as_from_an_array(stored, rows):
    np.testing.assert_array_equal(stored[np.array(rows, dtype=np.int64)], PIXELS[np.array(rows, dtype=np.int64)])
    np.testing.assert_array_equal(stored.view(rows)[::-1], PIXELS[np.array(rows, dtype=np.int64)][::-1])


@given(limits, limits, limits.filter(lambda step: step != 0))
@settings(max_examples=80, deadline=None)
def test_slices_come_as_from_an_array(stored, start, stop, step):
    np.testing.assert_array_equal(stored[start:stop:step], PIXELS[start:stop:step])
    np.testing.assert_array_equal(stored.view(np.arange(COUNT))[start:stop:step], PIXELS[start:stop:step])


def test_other_ways_to_ask(stored):
    assert stored.shape == PIXELS.shape
    assert (len(stored), stored.dtype, stored.ndim, stored.nbytes) == (COUNT, np.uint8, 4, PIXELS.nbytes)
    np.testing.assert_array_equal(stored[-2], PIXELS[-2])
    np.testing.assert_array_equal(stored[np.int64(3)], PIXELS[3])
    mask = np.arange(COUNT) % 3 == 1
    np.testing.assert_array_equal(stored[mask], PIXELS[mask])
    np.testing.assert_array_equal(np.asarray(stored), PIXELS)
    np.testing.assert_array_equal(np.asarray(stored, dtype=np.float32), PIXELS.astype(np.float32))
    np.testing.assert_array_equal(stored.view(mask).view([1, 1])[:], PIXELS[mask][[1, 1]])
    assert stored[:0].shape == stored[[]].shape == (0, 2, 3, 4)
    stored[0][:] = 0  # what is given out is the caller's own
    np.testing.assert_array_equal(stored[0], PIXELS[0])


@pytest.mark.parametrize("rows", [COUNT, -COUNT - 1, [0, COUNT], [-COUNT - 1], np.zeros(COUNT + 1, bool), [0.5], [[0]], (0, 0)])
def test_rows_that_are_not_there(stored, rows):
    with pytest.raises(IndexError):
        stored[rows]


def test_threads_share_it_and_a_copy_reads_the_same(stored):
    wanted = [np.random.default_rng(seed).integers(0, COUNT, 15) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for asked, got in zip(wanted, pool.map(stored.__getitem__, wanted), strict=True):
            np.testing.assert_array_equal(got, PIXELS[asked])
    view = copy.deepcopy(stored.view([4, 2]))
    np.testing.assert_array_equal(view[:], PIXELS[[4, 2]])


def test_short_reads_are_continued(stored, monkeypatch):
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda handle, buffers, offset: whole(handle, [buffers[0][:7]], offset))
    np.testing.assert_array_equal(stored[[2, 3, 9]], PIXELS[[2, 3, 9]])


@pytest.mark.parametrize("keep", [0, 10, 300, -1, -9])
def test_a_damaged_file_is_named(stored, tmp_path, keep):
    broken = tmp_path / "broken.images"
    broken.write_bytes(stored.path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"broken\.images is damaged.*remove it and run again"):
        open_images(broken)


def test_a_file_that_shrinks_while_open_is_named(tmp_path):
    path = tmp_path / "x.images"
    with write_images(path, (2, 3, 4)) as writer:
        writer.append(PIXELS)
    images, _ = open_images(path)
    os.truncate(path, 24 * 4)
    np.testing.assert_array_equal(images[:4], PIXELS[:4])
    with pytest.raises(InputError, match=r"x\.images is damaged: it ends at byte 96"):
        images[3:6]


def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "x.images"
    with write_images(path, (2, 3, 4)) as writer:
        writer.append(PIXELS)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill() -> None:
        with write_images(path, (2, 3, 4)) as writer:
            writer.append(PIXELS[:1])
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(InputError, match=r"x\.images: the disk is full"):
        fill()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.images"]


def test_a_set_that_cannot_fit_is_refused_at_once(tmp_path):
    with (
        pytest.raises(InputError, match=r"10,000,000,000,000 images need .* free some space"),
        write_images(tmp_path / "x.images", (3, 100, 100), expected=10**13),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def fail() -> None:
        with write_images(tmp_path / "x.images", (2, 3, 4)) as writer:
            writer.append(PIXELS[:, :1])

    with pytest.raises(ValueError, match="block is uint8"):
        fail()
    assert os.listdir(tmp_path) == []
