"""Images of any number to a folder of embeddings, in memory that does not grow with them.

One shard after another is read, decoded by several threads, embedded in batches and written in parts. What is held at a time:
some pieces of encoded and decoded images (16 MiB and 4 MiB each, three for each decoding thread), a batch, and the vectors and
names of one part. Order and batches do not depend on what was done before, so that a stream that was broken off ends in the
same parts.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar import runs
from nearfar.data import ImageSet
from nearfar.data.decode import BadImage, decode, open_image, quiet_pillow
from nearfar.data.pipeline import decoding_threads, in_order
from nearfar.data.pixels import Form, convert_block
from nearfar.data.sources import CHUNK_PIXELS
from nearfar.embedding.output import NAMES, Embeddings, Part, Writer, begun_with, claim, write_part
from nearfar.embedding.reading import Piece, read_shard
from nearfar.embedding.shards import ROWS, Plan, check_same, make_plan
from nearfar.errors import InputError
from nearfar.files import only_writer
from nearfar.runs.opening import ONNX, Model, open_model, shape_of

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

_LOG = logging.getLogger("nearfar")
_BATCH, _BATCH_BYTES = 512, 32 << 20
"""Images embedded at once, and their pixels at most."""
_TELL_SECONDS = 5.0
_NAMED = 20
"""Images that could not be read which a result names; the folder names all."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to embed shards.

    Attributes:
        folder: where parts go.
        plan: of the data.
        rows: of a part.
        dim: D, the length of a vector.
        skip_bad: leave out images that cannot be read.
        data: the data itself where it has no name.
        threads: that decode; None: as many as pay on this machine.
    """

    folder: Path
    plan: Plan
    rows: int
    dim: int
    skip_bad: bool
    data: Any = None
    threads: int | None = None


def embed_stream(
    run: str | Path,
    data: str | Path | ImageSet,
    *,
    out: str | Path,
    device: str = "auto",
    skip_bad: bool = False,
    ray: str | None = None,
    rows: int = ROWS,
) -> dict[str, Any]:
    """Embed all images of ``data`` into a folder of Parquet parts; one that was broken off is gone on with.

    Columns of a part: id; label and text (captions, a line each), null where there is none; embedding, a list of D float32.

    Args:
        run: a run folder, or an ONNX file that `nearfar.verbs.export` made.
        data: a folder of images, a Parquet file or a folder of them, a tar file or a folder of them, or anything else that
            `nearfar.load_images` takes.
        out: the folder. One that was begun with the same model and data is gone on with; a finished one is left as it is.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read, instead of ending with an error.
        ray: compute on a Ray cluster: "auto" (one that runs here), "local" (start one for this) or "host:port"; None: in this
            process.
        rows: images of a part.

    Returns:
        ``out``, ``images``, ``dim``, ``parts``, ``computed`` (images embedded this time), ``skipped`` (lines for the first
        images that could not be read) and ``skipped_images`` (how many there are; ``skipped.txt`` in the folder names all).

    Raises:
        InputError: the run or the data cannot be used, ``out`` holds something else, or was begun with another model or data,
            which the message names.
    """
    folder = Path(out)
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise InputError(f"rows is {rows!r}, expected a whole number of images of a part")
    model = open_model(Path(run), device=device)
    about = describe(Path(run), model)
    claim(folder)
    with only_writer(folder):
        plan = _plan(folder, data, about, rows)
        writer = Writer(folder, about, plan, rows=rows)
        before = sum(part.rows for part in writer.done.values())
        if not writer.finished:
            job = Job(folder, plan, rows, about["dim"], skip_bad, data if isinstance(data, ImageSet) else None)
            parts = _here(job, model, writer) if ray is None else _on_ray(job, run, device, about, writer, ray)
            _follow(parts, writer)
            writer.finish()
    done = Embeddings(folder)
    skipped = sum(part.read - part.rows for part in done.parts)
    lines = [line for line, _ in zip(done.skipped(), range(_NAMED), strict=False)]
    if not done.rows:
        raise InputError(f"{plan.source}: none of its images can be read" + (f"; the first: {lines[0]}" if lines else ""))
    return {
        "out": str(folder),
        "images": done.rows,
        "dim": done.dim,
        "parts": len(done.parts),
        "computed": done.rows - before,
        "skipped": lines,
        "skipped_images": skipped,
    }


def describe(run: Path, model: Model) -> dict[str, Any]:
    """What embeddings must share to belong together: the weights, what computes them, and how images are read for it."""
    onnx = run.suffix == ONNX
    pixels = np.zeros((1, model.channels_, *model.size_), dtype=np.uint8)
    section = model.recipe_.data
    return {
        "sha256": str(getattr(model, "model_hash_", "")) if onnx else str(runs.read_finished(run)["model"]["sha256"]),
        "engine": "onnx" if onnx else "torch",
        "quantize": getattr(model, "quantize_", None),
        "dim": model.embed_block(pixels).shape[1],
        "metric": model.recipe_.evaluate.metric,
        "channels": model.channels_,
        "size": list(model.size_),
        "background": _plain(section.background),
        "mean": _plain(section.mean),
        "std": _plain(section.std),
    }


def embed_shard(job: Job, model: Model, number: int, *, blocks: int = 0, skip: int = 0) -> Iterator[Part]:
    """Embed a shard and write its parts, but for those that are done.

    Args:
        job: what is to be done.
        model: that embeds.
        number: of the shard.
        blocks, skip: how many parts of it are done, and the rows that they cover.

    Yields:
        Each `Part` once it is written.

    Raises:
        InputError: an image cannot be read (and ``skip_bad`` is off), a file has changed, or the disk is full.
    """
    shard, form = job.plan.shards[number], Form.of(**shape_of(model))
    target = (model.channels_, *model.size_)
    most = max(1, min(_BATCH, _BATCH_BYTES // math.prod(target)))

    def work(piece: Piece) -> _Decoded:
        return _decode(piece, form, target, job.skip_bad, shard.name)

    given = read_shard(job.plan, shard, job.folder / NAMES, skip=skip, data=job.data)
    block = _Block(most)
    with quiet_pillow():
        first = next(given, None)
        pieces = _cut(itertools.chain([] if first is None else [first], given), job.rows, most, math.prod(target))
        threads = job.threads or decoding_threads(max(_pixels_of(first), target[1] * target[2]))
        results = in_order(work, pieces, threads)
    with quiet_pillow(), contextlib.closing(results):
        for decoded in results:
            block.add(decoded, model)
            if block.read == job.rows:
                yield block.write(job, number, blocks, model)
                block, blocks = _Block(most), blocks + 1
        if block.read or not blocks:
            yield block.write(job, number, blocks, model)


def _plan(folder: Path, data: str | Path | ImageSet, about: dict[str, Any], rows: int) -> Plan:
    """The plan of the data, which must be that of the folder, where it was begun."""
    earlier, names = begun_with(folder, about, rows), folder / NAMES
    if earlier is None:
        return make_plan(data, names, rows=rows)
    beside = folder / f"{NAMES}.now"
    try:
        now = make_plan(data, beside, rows=rows)
        check_same(earlier, now, names, beside)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
    return now


def _here(job: Job, model: Model, writer: Writer) -> Iterator[Part]:
    for number, blocks, skip in left_to_do(job.plan, writer):
        yield from embed_shard(job, model, number, blocks=blocks, skip=skip)


def left_to_do(plan: Plan, writer: Writer) -> Iterator[tuple[int, int, int]]:
    """(number, blocks done, rows done) of each shard that is not done."""
    for number, shard in enumerate(plan.shards):
        blocks, skip = writer.rows_done(number)
        if blocks and (skip == shard.rows or (shard.rows is None and skip % writer.rows)):
            continue
        yield number, blocks, skip


def _on_ray(job: Job, run: str | Path, device: str, about: dict[str, Any], writer: Writer, address: str) -> Iterator[Part]:
    from nearfar.embedding.ray_engine import embed_on_ray

    return embed_on_ray(job, run, device, about, list(left_to_do(job.plan, writer)), address)


def _follow(parts: Iterator[Part], writer: Writer) -> None:
    """Note parts as they are done, and say now and then how far it is."""
    whole = writer.plan.rows
    start = told = time.monotonic()
    count, earlier = 0, sum(part.read for part in writer.done.values())
    for part in parts:
        writer.note(part)
        count += part.read
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            of = "" if whole is None else f" of {whole:,}"
            _LOG.info("embedded %s%s images, %.0f a second", f"{earlier + count:,}", of, count / (told - start))


@dataclass(frozen=True)
class _Decoded:
    """Pixels [n, C, H, W] of the rows that could be read, with what is known of them; a line for each of the rest."""

    read: int
    pixels: Pixels
    ids: list[str]
    labels: list[str | None]
    texts: list[str | None]
    skipped: list[str]


def _decode(piece: Piece, form: Form, target: tuple[int, int, int], skip_bad: bool, where: str) -> _Decoded:
    if isinstance(piece.images, np.ndarray):
        pixels = convert_block(piece.images, form, target, where)
        return _Decoded(len(piece), pixels, piece.ids, piece.labels, piece.texts, [])
    pixels = np.empty((len(piece), *target), dtype=np.uint8)
    good: list[int] = []
    skipped = []
    for row, (name, content) in enumerate(piece.images):
        try:
            pixels[len(good)] = decode(content, name, form)  # grey among colour spreads over the three channels
        except BadImage as fault:
            if not skip_bad:
                raise
            skipped.append(f"{fault.name}: {fault.reason}")
            continue
        good.append(row)
    labels, texts = ([column[row] for row in good] for column in (piece.labels, piece.texts))
    return _Decoded(len(piece), pixels[: len(good)], [piece.ids[row] for row in good], labels, texts, skipped)


def _pixels_of(piece: Piece | None) -> int:
    """Pixels of the first image of a piece, 0 where that cannot be told: how many threads pay."""
    if piece is None or isinstance(piece.images, np.ndarray) or not piece.images:
        return 0
    with contextlib.suppress(BadImage), open_image(piece.images[0][1], piece.images[0][0]) as image:
        return image.width * image.height
    return 0


def _cut(pieces: Iterable[Piece], rows: int, batch: int, pixels: int) -> Iterator[Piece]:
    """Cut pieces so that none reaches over the end of a block of ``rows``, or holds too many pixels once it is decoded."""
    most, left = max(1, min(batch, CHUNK_PIXELS // pixels)), rows
    for piece in pieces:
        start = 0
        while start < len(piece):
            end = min(len(piece), start + most, start + left)
            yield piece.between(start, end)
            left, start = left - (end - start) or rows, end


@dataclass
class _Block:
    """Rows of a part under way: those that are embedded, and pixels that wait until they make up a batch."""

    most: int
    read: int = 0
    vectors: list[Floats] = field(default_factory=list)
    waiting: list[Pixels] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, more: _Decoded, model: Model) -> None:
        self.read += more.read
        self.ids += more.ids
        self.labels += more.labels
        self.texts += more.texts
        self.skipped += more.skipped
        self.waiting.append(more.pixels)
        while sum(map(len, self.waiting)) >= self.most:
            pixels = np.concatenate(self.waiting)
            self.vectors.append(model.embed_block(pixels[: self.most]))
            self.waiting = [pixels[self.most :]]

    def write(self, job: Job, shard: int, block: int, model: Model) -> Part:
        if sum(map(len, self.waiting)):
            self.vectors.append(model.embed_block(np.concatenate(self.waiting)))
        z = np.concatenate(self.vectors) if self.vectors else np.empty((0, job.dim), dtype=np.float32)
        return write_part(job.folder, shard, block, self.read, z, self.ids, self.labels, self.texts, self.skipped)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
