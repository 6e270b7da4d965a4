"""What a sampler gives: an epoch of rows, cut into batches and into the parts of several processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from nearfar.errors import InputError
from nearfar.sampling.labels import Flags, Rows


@dataclass(frozen=True)
class Batch:
    """The rows that one process trains on in one step."""

    rows: Rows  # [B]
    partners: Rows | None = None  # [B], pairs only: row partners[i] is compared with row rows[i]
    same: Flags | None = None  # [B], pairs only: the two are of one class
    captions: Rows | None = None  # [B], captions only: the number of the one that row rows[i] has this time
    linked: int = 1  # pairs only: so many one after another may share images, each of which is embedded once

    def images(self) -> Rows:
        """The images to embed [n]: the rows, then the partners, without those that linked pairs have had already."""
        return self.look()[0]

    def sides(self) -> tuple[Rows, Rows]:
        """Pairs only: where the two images of each pair stand among `images`, [B] and [B]."""
        _, first, second = self.look()
        return first, second

    def look(self) -> tuple[Rows, Rows, Rows]:
        """The `images` and both `sides`."""
        size = len(self.rows)
        if self.partners is None:
            return self.rows, np.arange(size), np.empty(0, dtype=np.int64)
        every = np.concatenate([self.rows, self.partners])
        if self.linked == 1:
            return every, np.arange(size), np.arange(size, 2 * size)
        group = np.arange(size) // self.linked
        keys = np.concatenate([group, group]) * (every.max() + 1) + every
        _, begins, which = np.unique(keys, return_index=True, return_inverse=True)
        by_place = np.argsort(begins)
        places = np.empty_like(by_place)
        places[by_place] = np.arange(len(by_place))
        first, second = places[which].reshape(2, size)
        return every[begins[by_place]], first, second


@dataclass(frozen=True)
class Epoch:
    """The rows of a whole epoch in the order in which they are visited, cut into batches on demand."""

    rows: Rows  # [M]
    partners: Rows | None  # [M]
    same: Flags | None  # [M]
    batch_size: int
    captions: Rows | None = None  # [M]
    linked: int = 1  # as `Batch.linked`

    def __len__(self) -> int:
        """The number of batches; the last one may be short."""
        return -(-len(self.rows) // self.batch_size)

    def head(self, batches: int) -> Epoch:
        """The first so many batches of it."""
        cut = slice(batches * self.batch_size)
        return replace(
            self,
            rows=self.rows[cut],
            partners=None if self.partners is None else self.partners[cut],
            same=None if self.same is None else self.same[cut],
            captions=None if self.captions is None else self.captions[cut],
        )

    def batch(self, i: int, rank: int = 0, world: int = 1) -> Batch:
        """Return batch ``i``, or the part of it that belongs to process ``rank`` of ``world``.

        The parts have equal sizes and, joined in the order of ranks, are the batch. A last batch that cannot be divided
        equally is filled up with the first rows of the epoch, so at most ``world - 1`` of them are visited twice.

        Raises:
            InputError: there is no such batch or rank, or ``batch_size`` is not a multiple of ``world``.
        """
        if not 0 <= i < len(self):
            raise InputError(f"batch {i} does not exist: the epoch has batches 0 to {len(self) - 1}")
        if world < 1 or not 0 <= rank < world:
            raise InputError(f"rank {rank} of {world} does not exist: expected 0 <= rank < world")
        if self.batch_size % world:
            raise InputError(
                f"batch_size {self.batch_size} cannot be divided among {world} processes; use a multiple of {world}"
            )
        start = i * self.batch_size
        stop = min(start + self.batch_size, len(self.rows))
        part = -(-(stop - start) // world)
        first, last = start + rank * part, start + (rank + 1) * part
        if last <= len(self.rows):
            cut: slice | Rows = slice(first, last)
        else:
            cut = np.arange(first, last) % len(self.rows)
        return Batch(
            rows=self.rows[cut],
            partners=None if self.partners is None else self.partners[cut],
            same=None if self.same is None else self.same[cut],
            captions=None if self.captions is None else self.captions[cut],
            linked=self.linked,
        )


class Sampler(Protocol):
    """What the training loop asks of a sampler."""

    def __len__(self) -> int:
        """The number of batches in every epoch."""

    def epoch(self, number: int) -> Epoch:
        """Epoch ``number`` (from 0): the same arguments give the same rows, always."""
