"""Which rows of a batch a process takes, and in what pieces they pass through the encoder. Pure functions on row numbers.

The batch is that of all processes, so neither a sampler nor a checkpoint knows how many there are. Every process takes a
contiguous part of each piece, parts differ by a row at most, and a piece of the batch is the same rows for any number of
processes: what is computed over a piece, as the statistics of batch norm are, is so too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nearfar.errors import InputError
from nearfar.sampling import Batch
from nearfar.sampling.labels import Rows


@dataclass(frozen=True)
class Piece:
    """The images that this process embeds, of those that all embed at the same time."""

    places: Rows  # which they are [n]
    count: int  # how many there are in all


@dataclass(frozen=True)
class Part:
    """What one process does of a batch. The images of a batch are its rows, and after them their partners where it has some."""

    batch: Batch  # the rows that this process takes, and their partners
    images: Rows  # row numbers of the images that it embeds, in the order in which it does [n]
    places: Rows  # their places among the images of the batch [n]
    pieces: tuple[Piece, ...]  # what passes through the encoder at once; the images of this process, one piece after another
    everyone: Rows  # places in the batch of the rows of all processes, in the order of processes [B]
    counts: tuple[int, ...]  # rows of each process
    rank: int
    alone: bool  # this process takes the whole batch: there are no others, or too few rows for all, and each takes all

    @property
    def offset(self) -> int:
        """Where the rows of this process stand in ``everyone``."""
        return 0 if self.alone else sum(self.counts[: self.rank])

    def halves(self) -> tuple[Rows, Rows]:
        """Where the rows and where their partners stand among the images that this process embeds."""
        size = len(self.everyone)
        return np.flatnonzero(self.places < size), np.flatnonzero(self.places >= size)


def part_of(batch: Batch, *, rank: int = 0, world: int = 1, chunk: int = 0) -> Part:
    """The part of ``batch`` that process ``rank`` of ``world`` takes.

    Args:
        batch: of all processes.
        rank: from 0.
        world: how many processes there are.
        chunk: images that pass through the encoders of all processes at once, at most; 0: all.
    """
    size = len(batch.rows)
    pieces = _pieces(batch, chunk)
    alone = world == 1 or min(len(piece) for piece in pieces) < world
    if alone:
        shares = [pieces]
    else:
        split = [np.array_split(piece, world) for piece in pieces]
        shares = [[parts[number] for parts in split] for number in range(world)]
    own = shares[0 if alone else rank]
    rows = np.concatenate(own)
    paired = batch.partners is not None
    places = np.concatenate([_with_partners(part, size) for part in own]) if paired else rows
    at_once = [
        _with_partners(part - piece[0], len(piece)) if paired else part - piece[0]
        for part, piece in zip(own, pieces, strict=True)
    ]
    every = batch.rows if batch.partners is None else np.concatenate([batch.rows, batch.partners])
    return Part(
        batch=Batch(
            rows=batch.rows[rows],
            partners=None if batch.partners is None else batch.partners[rows],
            same=None if batch.same is None else batch.same[rows],
            captions=None if batch.captions is None else batch.captions[rows],
        ),
        images=every[places],
        places=places,
        pieces=tuple(Piece(where, len(piece) * (2 if paired else 1)) for where, piece in zip(at_once, pieces, strict=True)),
        everyone=np.concatenate([part for share in shares for part in share]),
        counts=tuple(sum(map(len, share)) for share in shares) if not alone else (size,) * world,
        rank=rank,
        alone=alone,
    )


def check_shares(batch_size: int, chunk: int, world: int, *, paired: bool) -> None:
    """Refuse batches and chunks that leave a process without a row.

    Raises:
        InputError: there are more processes than rows in a batch, or in a chunk of it.
    """
    if world == 1:
        return
    if batch_size < world:
        what = "pairs" if paired else "images"
        raise InputError(f"a batch has {batch_size} {what}, fewer than the {world} processes; set a larger sampling.batch_size")
    whole = Batch(np.arange(batch_size), np.arange(batch_size) if paired else None)
    if min(len(piece) for piece in _pieces(whole, chunk)) < world:
        least = 2 * world * (2 if paired else 1)
        raise InputError(f"train.chunk is {chunk}, too few images for {world} processes; set at least train.chunk={least}")


def _pieces(batch: Batch, chunk: int) -> list[Rows]:
    """The places of the rows of each piece: as few pieces as hold no more images than ``chunk``, of nearly equal sizes."""
    size = len(batch.rows)
    rows = max(1, chunk // (1 if batch.partners is None else 2))
    count = 1 if chunk == 0 else -(-size // rows)
    return np.array_split(np.arange(size), count)


def _with_partners(rows: Rows, size: int) -> Rows:
    """Places of rows, and those of their partners, which stand ``size`` further on."""
    return np.concatenate([rows, size + rows])
