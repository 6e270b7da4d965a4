from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.pictures import class_folder, colour, encoded, grey, save

from nearfar.data import DiskImages, load_images
from nearfar.data.pipeline import in_order, numbered_pieces
from nearfar.data.store import DiskWriter
from nearfar.errors import InputError


def decoded_files(cache: Path) -> list[Path]:
    return sorted((cache / "decoded").glob("*.images"))


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def pets(tmp_path) -> Path:
    class_folder(tmp_path / "pets", {"cat": 150, "dog": 160})
    return tmp_path / "pets"


def test_a_large_set_is_decoded_once_to_disk(pets, cache, monkeypatch):
    small = load_images(pets, cache=cache)
    assert isinstance(small.images, np.ndarray)
    assert not cache.exists()
    large = load_images(pets, cache=cache, in_memory_bytes=1000)
    assert isinstance(large.images, DiskImages)
    np.testing.assert_array_equal(large.images[:], small.images)
    assert large.fingerprint() == small.fingerprint()
    assert large.ids.tolist() == small.ids.tolist()
    # The second time only the first image is decoded, to know the size.
    monkeypatch.setattr("nearfar.data.pipeline._decode_chunk", None)
    again = load_images(pets, cache=cache, in_memory_bytes=1000)
    np.testing.assert_array_equal(again.images[:], small.images)
    assert len(decoded_files(cache)) == 1


def test_other_options_and_changed_files_are_decoded_anew(pets, cache):
    def load(**options):
        return load_images(pets, cache=cache, in_memory_bytes=1000, **options).images[:]

    load()
    load(channels=3)
    load(size=5)
    load(background=0)
    load(skip_bad=True)
    assert len(decoded_files(cache)) == 5
    changed = grey(6, 6, seed=999)
    save(pets / "cat" / "7.png", changed)
    os.utime(pets / "cat" / "7.png", ns=(1, 1))
    row = load_images(pets).ids.tolist().index("cat/7.png")
    np.testing.assert_array_equal(load()[row, 0], changed)
    save(pets / "dog" / "more.png", changed)
    assert len(load()) == 311


def test_the_same_names_in_another_folder_are_another_set(tmp_path, cache):
    for seed, name in enumerate(("one", "two")):
        # Same size in bytes and same time of change: only the folder tells them apart.
        save(tmp_path / name / "x.bmp", grey(seed=seed), "BMP")
        os.utime(tmp_path / name / "x.bmp", ns=(1, 1))
    for seed, name in enumerate(("one", "two")):
        np.testing.assert_array_equal(
            load_images(tmp_path / name, cache=cache, in_memory_bytes=1).images[0][0], grey(seed=seed)
        )


def test_skipped_files_are_remembered_with_the_pixels(pets, cache):
    (pets / "cat" / "3.png").write_text("torn")
    first = load_images(pets, cache=cache, in_memory_bytes=1000, skip_bad=True)
    second = load_images(pets, cache=cache, in_memory_bytes=1000, skip_bad=True)
    assert len(first) == len(second) == 309
    assert first.skipped == second.skipped
    assert "cat/3.png" in first.skipped[0]
    assert "cat/3.png" not in second.ids
    np.testing.assert_array_equal(second.images[:], load_images(pets, skip_bad=True).images)
    with pytest.raises(InputError, match=r"cat/3\.png: not an image"):
        load_images(pets, cache=cache, in_memory_bytes=1000)


def test_colour_found_late_on_disk(pets, cache):
    save(pets / "dog" / "zz.png", colour(6, 6))
    for _ in range(2):
        found = load_images(pets, cache=cache, in_memory_bytes=1000)
        np.testing.assert_array_equal(found.images[-1], colour(6, 6).transpose(2, 0, 1))
        np.testing.assert_array_equal(found.images[:], load_images(pets).images)
    assert len(decoded_files(cache)) == 1


def test_two_processes_at_once_end_with_one_whole_file(pets, cache):
    code = (
        "import sys, nearfar.data as d;print(d.load_images(sys.argv[1], cache=sys.argv[2], in_memory_bytes=1000).fingerprint())"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(pets), str(cache)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate()[0].strip() for process in running}
    assert said == {load_images(pets).fingerprint()}
    assert len(decoded_files(cache)) == 1
    assert [path.suffix for path in (cache / "decoded").iterdir() if path.name.startswith(".")] == []


def test_a_full_disk_leaves_nothing_half_done(pets, cache, monkeypatch):
    written = []

    def append(self, block):
        written.append(len(block))
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nearfar.data.pipeline.CHUNK_PIXELS", 3600)
    monkeypatch.setattr(DiskWriter, "append", append)
    with pytest.raises(InputError, match=r"the disk is full; free some space"):
        load_images(pets, cache=cache, in_memory_bytes=1000)
    assert len(written) == 2
    assert [path.suffix for path in (cache / "decoded").iterdir()] == [".lock"]
    monkeypatch.undo()
    assert len(load_images(pets, cache=cache, in_memory_bytes=1000)) == 310


def test_what_a_killed_process_left_is_removed(pets, cache):
    load_images(pets, cache=cache, in_memory_bytes=1000)
    (made,) = decoded_files(cache)
    made.rename(made.with_name(f".{made.name}.abc.part"))
    other = made.with_name(".other.images.abc.part")
    other.write_text("under way")
    load_images(pets, cache=cache, in_memory_bytes=1000)
    assert sorted(path.name for path in made.parent.iterdir()) == sorted(
        [other.name, made.name, made.with_suffix(".lock").name]
    )


def test_a_long_decoding_says_how_far_it_is(pets, caplog, monkeypatch):
    monkeypatch.setattr("nearfar.data.pipeline._TELL_SECONDS", 0)
    with caplog.at_level("INFO", "nearfar.data"):
        load_images(pets)
    assert "pets: decoded 310 of 310 images" in caplog.text


def test_a_cache_that_cannot_be_written_is_named(pets, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*a part of that path is a file"):
        load_images(pets, cache=tmp_path / "file" / "cache", in_memory_bytes=1000)


@pytest.mark.parametrize("kind", ["csv", "npz", "idx"])
def test_arrays_go_to_disk_too(tmp_path, cache, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 6, 6), dtype=np.uint8)
    if kind == "csv":
        path = tmp_path / "x.csv"
        path.write_text("\n".join(",".join(map(str, [row % 3, *image.reshape(-1)])) for row, image in enumerate(pixels)))
    elif kind == "npz":
        path = tmp_path / "x.npz"
        np.savez(path, x=pixels, y=np.arange(50) % 3)
    else:
        path = tmp_path / "train-images-idx3-ubyte"
        path.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 50, 0, 0, 0, 6, 0, 0, 0, 6]) + pixels.tobytes())
        labels = (np.arange(50) % 3).astype(np.uint8).tobytes()
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 50]) + labels)
    for _ in range(2):
        found = load_images(path, cache=cache, in_memory_bytes=1000)
        assert isinstance(found.images, DiskImages)
        np.testing.assert_array_equal(found.images[:][:, 0], pixels)
        assert found.labels.tolist() == [row % 3 for row in range(50)]


def test_in_order_keeps_order_and_few_items_under_way():
    running, most, lock = 0, 0, threading.Lock()
    taken = []

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.001 * (item % 3))
        with lock:
            running -= 1
        return item * 2

    def items():
        for item in range(60):
            taken.append(item)
            yield item

    got = []
    for made in in_order(work, items(), 4):
        got.append(made)
        assert len(taken) <= len(got) + 2 * 4 + 1
    assert got == [item * 2 for item in range(60)]
    assert 1 < most <= 4


def test_in_order_raises_the_first_fault_and_stops():
    done = []

    def work(item: int) -> int:
        if item in (5, 7):
            raise InputError(f"item {item}")
        done.append(item)
        return item

    with pytest.raises(InputError, match="item 5"):
        list(in_order(work, range(1000), 3))
    assert max(done) < 30
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nearfar-decode")]


def test_pieces_know_their_first_row():
    chunks = [np.arange(5), np.arange(5, 6), np.arange(6, 13)]
    pieces = list(numbered_pieces(chunks, 3))
    assert [(first, piece.tolist()) for first, piece in pieces] == [
        (0, [0, 1, 2]),
        (3, [3, 4]),
        (5, [5]),
        (6, [6, 7, 8]),
        (9, [9, 10, 11]),
        (12, [12]),
    ]


@pytest.mark.slow
def test_a_million_small_images_need_less_than_two_gigabytes(tmp_path):
    """Peak memory of a process that decodes n images to disk grows by less than 1 kB an image, from a small start."""
    content = [encoded(grey(8, 8, seed)) for seed in range(50)]
    for count in (8_000, 38_000):
        rows = [{"bytes": content[row % 50], "path": f"images/of/some/kind/{row:09d}.png"} for row in range(count)]
        pq.write_table(pa.table({"image": rows, "label": np.arange(count) % 100}), tmp_path / f"{count}.parquet")
    code = (
        "import sys, resource, pathlib, nearfar.data as d;"
        "found = d.load_images(sys.argv[1], cache=sys.argv[2], in_memory_bytes=0);"
        "found.images[:100], found.fingerprint();"
        "status = pathlib.Path('/proc/self/status');"
        # The peak of this process alone; what getrusage says can come from the one that started it.
        "print(int(status.read_text().split('VmHWM:')[1].split()[0]) if status.exists()"
        " else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks = []
    for count in (8_000, 38_000):
        command = [sys.executable, "-c", code, str(tmp_path / f"{count}.parquet"), str(tmp_path / "cache")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    per_image = (peaks[1] - peaks[0]) / 30_000
    assert per_image < 1.0
    assert peaks[0] + 1_000_000 * per_image < 2 * 1024 * 1024
