"""Which rows of a batch a process takes, and in what pieces they pass through the encoder. Pure functions on row numbers.

The batch is that of all processes, so neither a sampler nor a checkpoint knows how many there are. Every process takes a
contiguous part of each piece, parts differ by a row at most, and a piece of the batch is the same rows for any number of
processes: what is computed over a piece, as the statistics of batch norm are, is so too.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """What one process does of a batch, whose images are `Batch.images`."""

    batch: Batch  # the rows that this process takes, and their partners
    images: Rows  # row numbers of the images that it embeds, in the order in which it does [n]
    places: Rows  # their places among the images of the batch [n]
    sides: tuple[Rows, Rows]  # pairs: where the two images of each of its pairs stand among those that it embeds
    pieces: tuple[Piece, ...]  # what passes through the encoder at once; the images of this process, one piece after another
    everyone: Rows  # places in the batch of the rows of all processes, in the order of processes [B]
    counts: tuple[int, ...]  # rows of each process
    embedded: tuple[int, ...]  # images of each process
    rank: int
    alone: bool  # this process takes the whole batch: there are no others, or too few rows for all, and each takes all

    @property
    def offset(self) -> int:
        """Where the rows of this process stand in ``everyone``."""
        return 0 if self.alone else sum(self.counts[: self.rank])


def part_of(batch: Batch, *, rank: int = 0, world: int = 1, chunk: int = 0) -> Part:
    """The part of ``batch`` that process ``rank`` of ``world`` takes.

    Linked pairs stay together.

    Args:
        batch: of all processes.
        rank: from 0.
        world: how many processes there are.
        chunk: images that pass through the encoders of all processes at once, at most; 0: all.
    """
    every, first, second = batch.look()
    pieces = _pieces(batch, chunk)
    if world == len(pieces) == 1:  # nothing is divided: nearly every training, in every step of it
        places = np.arange(len(every))
        return Part(
            batch=batch,
            images=every,
            places=places,
            sides=(first, second),
            pieces=(Piece(places, len(places)),),
            everyone=pieces[0],
            counts=(len(batch.rows),),
            embedded=(len(every),),
            rank=rank,
            alone=True,
        )
    alone = world == 1 or min(_units(len(piece), batch.linked) for piece in pieces) < world
    shares = [pieces] if alone else [*zip(*(_split(piece, world, batch.linked) for piece in pieces), strict=True)]
    paired = batch.partners is not None

    def embedded(rows: Rows) -> Rows:
        """The places of the images of some rows among those of the batch, in their order there."""
        return np.unique(np.concatenate([first[rows], second[rows]])) if paired else rows

    looks = [[embedded(part) for part in share] for share in shares]
    own, mine = shares[0 if alone else rank], looks[0 if alone else rank]
    rows, places = np.concatenate(own), np.concatenate(mine)
    where = np.empty(len(every), dtype=np.int64)
    where[places] = np.arange(len(places))
    together = [embedded(piece) for piece in pieces]
    return Part(
        batch=Batch(
            rows=batch.rows[rows],
            partners=None if batch.partners is None else batch.partners[rows],
            same=None if batch.same is None else batch.same[rows],
            captions=None if batch.captions is None else batch.captions[rows],
            linked=batch.linked,
        ),
        images=every[places],
        places=places,
        sides=(where[first[rows]], where[second[rows]] if paired else second),
        pieces=tuple(Piece(np.searchsorted(whole, one), len(whole)) for one, whole in zip(mine, together, strict=True)),
        everyone=np.concatenate([part for share in shares for part in share]),
        counts=_by_process(shares, world),
        embedded=_by_process(looks, world),
        rank=rank,
        alone=alone,
    )


def check_shares(batch_size: int, chunk: int, world: int, *, paired: bool, linked: int = 1) -> None:
    """Refuse batches and chunks that leave a process without a row, and chunks that cannot hold linked pairs.

    Raises:
        InputError: there are more processes than rows in a batch, or in a chunk of it, or a chunk is too small.
    """
    unit = (2 if paired else 1) * linked
    if linked > 1 and 0 < chunk < unit:
        raise InputError(
            f"train.chunk is {chunk}, but {linked} linked pairs can have {unit} images; set at least train.chunk={unit}, or a "
            "smaller sampling.linked"
        )
    if world == 1:
        return
    if _units(batch_size, linked) < world:
        what = "images" if not paired else "pairs" if linked == 1 else f"pairs, {linked} of them linked"
        raise InputError(f"a batch has {batch_size} {what}, fewer than the {world} processes; set a larger sampling.batch_size")
    whole = Batch(np.arange(batch_size), np.arange(batch_size) if paired else None, linked=linked)
    if min(_units(len(piece), linked) for piece in _pieces(whole, chunk)) < world:
        least = 2 * world * unit
        raise InputError(f"train.chunk is {chunk}, too few images for {world} processes; set at least train.chunk={least}")


def _pieces(batch: Batch, chunk: int) -> list[Rows]:
    """The places of the rows of each piece: as few pieces as hold no more images than ``chunk``, of nearly equal sizes."""
    size = len(batch.rows)
    units = max(1, chunk // ((1 if batch.partners is None else 2) * batch.linked))
    count = 1 if chunk == 0 else -(-_units(size, batch.linked) // units)
    return _split(np.arange(size), count, batch.linked)


def _split(places: Rows, count: int, linked: int) -> list[Rows]:
    """So many parts of nearly equal sizes, each of whole groups of linked pairs."""
    begins = np.array_split(np.arange(0, len(places), linked), count)
    return np.split(places, [part[0] for part in begins[1:]])


def _units(rows: int, linked: int) -> int:
    """How many groups of linked pairs so many rows are."""
    return -(-rows // linked)


def _by_process(shares: Sequence[Sequence[Rows]], world: int) -> tuple[int, ...]:
    """How many there are in the parts of each process; every one has all where there is one share only."""
    return tuple(sum(map(len, share)) for share in shares) * (world if len(shares) == 1 else 1)
