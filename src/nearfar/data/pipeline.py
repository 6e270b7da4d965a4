"""A source to an ImageSet: decoded by several threads, into memory, or once into a file where it would not fit."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from nearfar.cores import cores
from nearfar.data.cache import alone, cache_folder
from nearfar.data.decode import BadImage, decode, quiet_pillow
from nearfar.data.imageset import Images, ImageSet
from nearfar.data.pixels import Block, Form, NeedsColour, check_fit, convert_block, flatten
from nearfar.data.sources import CHUNK_PIXELS, Chunk, Encoded, Rows, Source
from nearfar.data.store import open_images, write_images
from nearfar.errors import InputError

_LOG = logging.getLogger(__name__)

IN_MEMORY_BYTES = 1 << 30

# Part of the key of what is kept on disk: raise it when the same options give other pixels.
_VERSION = 1

# Below this many pixels an image costs more in Python than in Pillow, which alone runs beside other threads: two threads
# took 1.6 times as long as one for 28 x 28, and 0.7 times as long for 64 x 64.
_PIXELS_WORTH_A_THREAD = 2500
_MOST_THREADS = 8

# How often a decoding that takes long says how far it is.
_TELL_SECONDS = 5.0

Given = TypeVar("Given")
Made = TypeVar("Made")
# (row of the source, what is wrong with it)
Bad = list[tuple[int, str]]
# (C, H, W)
Target = tuple[int, int, int]


class _Sink(Protocol):
    def append(self, block: Block) -> None: ...


class _Memory:
    """Rows gathered in one array of the full size; what is not filled was never touched, and costs nothing."""

    def __init__(self, count: int, target: Target) -> None:
        self._images = np.empty((count, *target), dtype=np.uint8)
        self._count = 0

    def append(self, block: Block) -> None:
        self._images[self._count : self._count + len(block)] = block
        self._count += len(block)

    def images(self) -> Block:
        return self._images[: self._count]


def build(
    source: Source,
    form: Form,
    *,
    skip_bad: bool = False,
    cache: Path | str | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> ImageSet:
    """Decode all of a source.

    Args:
        form: size, channels and background asked for.
        skip_bad: leave out files that cannot be read, and note them in ``skipped``.
        cache: folder for what is decoded to disk (default: ``$NEARFAR_DATA`` or ``~/.cache/nearfar``).
        in_memory_bytes: larger sets are decoded to disk, once, and read from there by rows.

    Raises:
        InputError: there are no images, one cannot be read (and ``skip_bad`` is off), sizes differ and none was asked for,
            or the disk is full.
    """
    rows = source.rows
    if not len(rows):
        raise InputError(f"{source.name} holds no images")
    with quiet_pillow():
        native = _first_shape(source, form, skip_bad)
        target = (form.channels or native[0], *(form.size or native[1:]))
        try:
            images, bad = _decoded(source, form, target, native, skip_bad, cache, in_memory_bytes)
        except NeedsColour:
            images, bad = _decoded(source, form, (3, *target[1:]), native, skip_bad, cache, in_memory_bytes)
    if bad:
        rows = _without(rows, [row for row, _ in bad])
    if len(images) != len(rows):
        raise InputError(f"{source.name} has {len(rows):,} rows, but {len(images):,} images; it changed while it was read")
    return ImageSet(images, rows.labels, rows.classes, rows.ids, source.name, tuple(reason for _, reason in bad), rows.texts)


def in_order(work: Callable[[Given], Made], items: Iterable[Given], threads: int) -> Generator[Made, None, None]:
    """``map`` by threads, with results in order and only a few items under way."""
    with ThreadPoolExecutor(threads, thread_name_prefix="nearfar-decode") as pool:
        under_way: collections.deque[Future[Made]] = collections.deque()
        try:
            for item in items:
                under_way.append(pool.submit(work, item))
                if len(under_way) > 2 * threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def decoding_threads(pixels: int = _PIXELS_WORTH_A_THREAD) -> int:
    """How many threads decode images of so many pixels best on this machine."""
    if pixels < _PIXELS_WORTH_A_THREAD:
        return 1
    return min(cores(), _MOST_THREADS)


def numbered_pieces(chunks: Iterable[Chunk], most: int) -> Iterator[tuple[int, Chunk]]:
    """Cut chunks to at most ``most`` rows, each with the number of its first row."""
    first = 0
    for chunk in chunks:
        for start in range(0, len(chunk), most):
            yield first + start, chunk[start : start + most]
        first += len(chunk)


def _first_shape(source: Source, form: Form, skip_bad: bool) -> Target:
    """[C, H, W] of the first image that can be read, alpha laid on the background, not yet resized."""
    as_it_is = replace(form, size=None, channels=None)
    first_fault: BadImage | None = None
    for chunk in source.chunks():
        if isinstance(chunk, np.ndarray):
            block = chunk[:1] if chunk.shape[1] in (1, 3) else flatten(chunk[:1], as_it_is)
            return _target(block.shape[1:])
        for name, content in chunk:
            try:
                return _target(decode(content, name, as_it_is).shape)
            except BadImage as fault:
                if not skip_bad:
                    raise
                first_fault = first_fault or fault
    if first_fault is None:
        raise InputError(f"{source.name} holds no images")
    raise InputError(f"{source.name}: none of its images can be read; the first: {first_fault.name}: {first_fault.reason}")


def _target(shape: tuple[int, ...]) -> Target:
    channels, height, width = shape
    return channels, height, width


def _decoded(
    source: Source,
    form: Form,
    target: Target,
    native: Target,
    skip_bad: bool,
    cache: Path | str | None,
    in_memory_bytes: int,
) -> tuple[Images, Bad]:
    count = len(source.rows)
    needed = count * math.prod(target)
    threads = decoding_threads(max(native[1] * native[2], target[1] * target[2]))
    if needed <= in_memory_bytes:
        memory = _Memory(count, target)
        bad = _fill(memory, source, form, target, skip_bad, threads)
        return memory.images(), bad
    folder = cache_folder(cache) / "decoded"
    path = folder / f"{_key(source, form, skip_bad)}.images"
    with alone(path.with_suffix(".lock")) as held:
        if not path.exists():
            if held:
                # What a process that was killed left behind.
                for stale in folder.glob(f".{path.name}.*.part"):
                    stale.unlink()
            _LOG.info("%s: decoding %s images once, %.1f GB to %s", source.name, f"{count:,}", needed / 1e9, folder)
            with write_images(path, target, expected=count) as writer:
                writer.note["bad"] = _fill(writer, source, form, target, skip_bad, threads)
    images, note = open_images(path)
    return images, [(int(row), str(reason)) for row, reason in note["bad"]]


def _fill(sink: _Sink, source: Source, form: Form, target: Target, skip_bad: bool, threads: int) -> Bad:
    def work(piece: tuple[int, Chunk]) -> tuple[Block, Bad]:
        first, chunk = piece
        if isinstance(chunk, np.ndarray):
            return convert_block(chunk, form, target, f"{source.name}, row {first} (from 0)"), []
        return _decode_chunk(chunk, first, form, target, skip_bad)

    bad: Bad = []
    pieces = numbered_pieces(source.chunks(), max(1, CHUNK_PIXELS // math.prod(target)))
    with contextlib.closing(in_order(work, pieces, threads)) as results:
        done, told = 0, time.monotonic()
        for block, faults in results:
            sink.append(block)
            bad += faults
            done += len(block) + len(faults)
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                _LOG.info("%s: decoded %s of %s images", source.name, f"{done:,}", f"{len(source.rows):,}")
    return bad


def _decode_chunk(chunk: list[Encoded], first: int, form: Form, target: Target, skip_bad: bool) -> tuple[Block, Bad]:
    block = np.empty((len(chunk), *target), dtype=np.uint8)
    good, bad = 0, []
    for row, (name, content) in enumerate(chunk, start=first):
        try:
            image = decode(content, name, form)
        except BadImage as fault:
            if not skip_bad:
                raise
            bad.append((row, f"{fault.name}: {fault.reason}"))
            continue
        check_fit(image.shape, form, target, name)
        # Grey among colour images spreads over the three channels.
        block[good] = image
        good += 1
    return block[:good], bad


def _without(rows: Rows, bad: list[int]) -> Rows:
    keep = np.ones(len(rows), dtype=bool)
    keep[bad] = False
    return replace(
        rows,
        ids=rows.ids[keep],
        labels=None if rows.labels is None else rows.labels[keep],
        texts=None if rows.texts is None else rows.texts.take(np.flatnonzero(keep).tolist()),
    )


def _key(source: Source, form: Form, skip_bad: bool) -> str:
    """A name for the decoded pixels: another one once the files, their times of change, or the options are others."""
    digest = hashlib.sha256(json.dumps([_VERSION, form.size, form.channels, form.background, skip_bad]).encode())
    for line in source.stamp():
        digest.update(line.encode(errors="surrogateescape"))
        digest.update(b"\n")
    return digest.hexdigest()[:40]
