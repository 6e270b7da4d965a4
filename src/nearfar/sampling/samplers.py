"""Labels -> epochs: plain shuffling, views, captions, pairs, classes x images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from nearfar.errors import InputError
from nearfar.sampling.epoch import Epoch
from nearfar.sampling.labels import (
    CAPTIONS,
    ORDER,
    PARTNERS,
    ByClass,
    Flags,
    Rows,
    check_choice,
    check_integer,
    check_vector,
    describe_classes,
    stream,
)
from nearfar.sampling.linking import linked_order


class Shuffle:
    """Every row once an epoch, in a new random order."""

    def __init__(self, rows: ArrayLike, *, batch_size: int, seed: int, drop_last: bool = False) -> None:
        """Args:
            rows: integers [N], the rows to visit.
            batch_size: rows in a batch, over all processes.
            seed: not negative.
            drop_last: leave out the last batch of an epoch when it is short (other rows every time).

        Raises:
            InputError: ``rows`` is not a non-empty vector of row numbers, ``batch_size`` or ``seed`` is not usable, or
                ``drop_last`` would leave no batch at all.
        """
        self.rows = check_rows(rows)
        self.batch_size = check_integer("batch_size", batch_size, least=1)
        self.seed = check_integer("seed", seed, least=0)
        self.drop_last = bool(drop_last)
        if self.drop_last and len(self.rows) < self.batch_size:
            raise InputError(
                f"drop_last leaves no batch: {len(self.rows):,} rows are fewer than batch_size {self.batch_size:,}; "
                f"use a batch_size of at most {len(self.rows):,}"
            )

    def __len__(self) -> int:
        if self.drop_last:
            return len(self.rows) // self.batch_size
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, number: int) -> Epoch:
        rows = stream(self.seed, ORDER, check_integer("epoch", number, least=0)).permutation(self.rows)
        if self.drop_last:
            rows = rows[: len(self) * self.batch_size]
        return Epoch(rows=rows, partners=None, same=None, batch_size=self.batch_size)


class Views:
    """Every image once an epoch, in a new random order, several times in its batch: changed at random, these are views of it.

    The views of an image stand together, so that processes that divide a batch hold whole images where the batch size is a
    multiple of their number.
    """

    def __init__(self, rows: ArrayLike, *, batch_size: int, views: int, seed: int, drop_last: bool = False) -> None:
        """Args:
            rows: integers [N], the rows to visit.
            batch_size: different rows in a batch, over all processes.
            views: how often each is in it, at least 2.
            seed: not negative.
            drop_last: leave out the last batch of an epoch when it is short.

        Raises:
            InputError: as `Shuffle`, or there are fewer than two views.
        """
        self.views = check_integer("views", views, least=2)
        self._each = Shuffle(rows, batch_size=batch_size, seed=seed, drop_last=drop_last)
        self.batch_size = self.views * self._each.batch_size

    def __len__(self) -> int:
        return len(self._each)

    def epoch(self, number: int) -> Epoch:
        rows = np.repeat(self._each.epoch(number).rows, self.views)
        return Epoch(rows=rows, partners=None, same=None, batch_size=self.batch_size)


class Captions:
    """Every image that has captions once an epoch, in a new random order, each with one of its captions, drawn anew.

    Images without a caption are left out.
    """

    def __init__(self, numbers: ArrayLike, starts: ArrayLike, *, batch_size: int, seed: int, drop_last: bool = False) -> None:
        """Args:
            numbers: integers [M], the captions of all images one after another; an equal number is an equal caption.
            starts: integers [N + 1]: those of image i are numbers[starts[i] : starts[i + 1]].
            batch_size: images in a batch, over all processes.
            seed: not negative.
            drop_last: leave out the last batch of an epoch when it is short.

        Raises:
            InputError: as `Shuffle`, or no image has a caption.
        """
        self._numbers, starts = check_vector("numbers", numbers), check_vector("starts", starts)
        self._starts, self._counts = starts[:-1], np.diff(starts)
        if not self._counts.any():
            raise InputError("no image has a caption; at least one is needed to learn from")
        self._each = Shuffle(np.flatnonzero(self._counts), batch_size=batch_size, seed=seed, drop_last=drop_last)
        self.batch_size = self._each.batch_size

    def __len__(self) -> int:
        return len(self._each)

    def epoch(self, number: int) -> Epoch:
        rows = self._each.epoch(number).rows
        # Drawn for all images in their order, so that one's caption does not depend on when it is visited.
        drawn = self._starts + _below(stream(self._each.seed, CAPTIONS, number), self._counts)
        return Epoch(rows, None, None, self.batch_size, self._numbers[drawn[rows]])


class Pairs:
    """Pairs of images with the answer to "same class?"; an image is never its own partner.

    A positive partner is uniform over the other images of the class, a negative one over the images of all other classes.
    Rows without a label (-1) are left out.
    """

    def __init__(
        self,
        labels: ArrayLike,
        *,
        batch_size: int,
        seed: int,
        partner: Literal["fixed", "fresh"] = "fresh",
        pairing: Literal["half", "both"] = "half",
        linked: int = 1,
        names: Sequence[str] | None = None,
    ) -> None:
        """Args:
            labels: integers [N], the class number of each row, or -1.
            batch_size: pairs in a batch, over all processes.
            seed: not negative.
            partner: 'fixed' draws partners once, from the seed, and epochs only change the order; 'fresh' draws them
                anew in every epoch.
            pairing: 'half' gives each image one partner, of its own class with probability 1/2: N pairs; 'both' gives
                each image one partner of its class and one of another: 2 N pairs.
            linked: so many pairs one after another, which have images in common as far as that can be had; an image is
                embedded once for all of them (`Batch.images`). The pairs are the same for any number, and each is once in an
                epoch; 1 is a random order. Most is shared where ``batch_size`` is a multiple of it.
            names: names of the classes, for messages.

        Raises:
            InputError: an argument is not usable, there is one class only, or a class has one image, which therefore
                has no positive partner.
        """
        self.batch_size = check_integer("batch_size", batch_size, least=1)
        self.seed = check_integer("seed", seed, least=0)
        self.partner = check_choice("partner", partner, ("fixed", "fresh"))
        self.pairing = check_choice("pairing", pairing, ("half", "both"))
        self.linked = check_integer("linked", linked, least=1)
        self._classes = classes = ByClass(labels)
        classes.require_two("pairs", names)
        if (lonely := np.flatnonzero(classes.counts == 1)).size:
            raise InputError(
                f"{describe_classes(classes.numbers[lonely], names)} one image only, so a pair of the same class cannot "
                "be made; add images, remove the class, or use plain shuffling"
            )
        # Per image, in the order of classes: where its class starts, and how many images that class has.
        self._starts = np.repeat(classes.starts, classes.counts)
        self._counts = np.repeat(classes.counts, classes.counts)

    def __len__(self) -> int:
        pairs = len(self._classes.rows) * (2 if self.pairing == "both" else 1)
        return -(-pairs // self.batch_size)

    def epoch(self, number: int) -> Epoch:
        check_integer("epoch", number, least=0)
        key = (PARTNERS,) if self.partner == "fixed" else (PARTNERS, number)
        rows, partners, same = self._draw(stream(self.seed, *key))
        random = stream(self.seed, ORDER, number)
        order = random.permutation(len(rows)) if self.linked == 1 else linked_order(random, rows, partners, self.linked)
        return Epoch(rows[order], partners[order], same[order], self.batch_size, linked=self.linked)

    def _draw(self, random: np.random.Generator) -> tuple[Rows, Rows, Flags]:
        rows, n = self._classes.rows, len(self._classes.rows)
        places = np.arange(n)
        if self.pairing == "both":
            positive = _draw_same(random, places, self._starts, self._counts)
            negative = _draw_other(random, n, self._starts, self._counts)
            same = np.repeat([True, False], n)
            return np.concatenate([rows, rows]), rows[np.concatenate([positive, negative])], same
        same = random.random(n) < 0.5
        partners = np.empty(n, dtype=np.int64)
        partners[same] = _draw_same(random, places[same], self._starts[same], self._counts[same])
        partners[~same] = _draw_other(random, n, self._starts[~same], self._counts[~same])
        return rows, rows[partners], same


class ClassBatches:
    """P x K: every batch holds ``per_class`` images of each of ``classes`` different classes (Hermans et al. 2017).

    Classes are balanced: in an epoch all are visited equally often, give or take one, however many images they have.
    Within its class every image is visited once before any is visited again. So where the classes are of equal size an
    epoch shows every image about once; where they are not, large classes show a new share of theirs every epoch, and
    small ones repeat. A class with fewer than ``per_class`` images repeats some within the batch: with
    augmentation these are views of one image. Rows without a label (-1) are left out.

    The rows of a batch are ordered by class, so that processes that divide it hold whole classes where
    ``classes`` is a multiple of their number.
    """

    def __init__(
        self,
        labels: ArrayLike,
        *,
        classes: int,
        per_class: int,
        seed: int,
        batches: int | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """Args:
            labels: integers [N], the class number of each row, or -1.
            classes: P, the number of different classes in a batch.
            per_class: K, the number of images of each; at least 2, since positives are made of them.
            seed: not negative.
            batches: batches in an epoch; by default as many as show about N images.
            names: names of the classes, for messages.

        Raises:
            InputError: an argument is not usable, or there are fewer classes than ``classes``.
        """
        self.classes = check_integer("classes", classes, least=2)
        self.per_class = check_integer("per_class", per_class, least=2)
        self.seed = check_integer("seed", seed, least=0)
        self._classes = ByClass(labels)
        self._classes.require_two("batches of several classes", names)
        if self.classes > len(self._classes.numbers):
            known = len(self._classes.numbers)
            raise InputError(f"classes is {self.classes}, but the labels have {known} classes; use at most {known}")
        self.batch_size = self.classes * self.per_class
        fitting = -(-len(self._classes.rows) // self.batch_size)
        self.batches = fitting if batches is None else check_integer("batches", batches, least=1)

    def __len__(self) -> int:
        return self.batches

    def epoch(self, number: int) -> Epoch:
        random = stream(self.seed, ORDER, check_integer("epoch", number, least=0))
        order = _deal(random, len(self._classes.numbers), self.classes, self.batches)  # [batches * P]
        # The v-th visit to a class takes the images v * K to (v + 1) * K - 1 of the class's shuffled list, in a circle.
        places = (_visits(order) * self.per_class)[:, None] + np.arange(self.per_class)
        places %= self._classes.counts[order][:, None]
        places += self._classes.starts[order][:, None]
        rows = self._classes.shuffled(random)[places.ravel()]
        return Epoch(rows=rows, partners=None, same=None, batch_size=self.batch_size)


def _draw_same(random: np.random.Generator, places: Rows, starts: Rows, counts: Rows) -> Rows:
    """For each place a uniform other place of the same class."""
    drawn = starts + _below(random, counts - 1)
    return drawn + (drawn >= places)


def _draw_other(random: np.random.Generator, n: int, starts: Rows, counts: Rows) -> Rows:
    """For each place, given by its class's start and size, a uniform place of another class."""
    drawn = _below(random, n - counts)
    return drawn + counts * (drawn >= starts)


def _below(random: np.random.Generator, limits: Rows) -> Rows:
    """Uniform integers in [0, limit) for each limit; the rounded product stays below any limit under 2**53."""
    return (random.random(len(limits)) * limits).astype(np.int64)


def _deal(random: np.random.Generator, known: int, hand: int, batches: int) -> Rows:
    """Deal classes 0 to known - 1 into batches of ``hand`` different ones, each class equally often to within one.

    Rounds over all classes, each shuffled, are laid end to end. Where a batch straddles two rounds, a class
    that it already has changes places with the next one of the round that it lacks.
    """
    rounds = -(-batches * hand // known)
    order = random.permuted(np.tile(np.arange(known), (rounds, 1)), axis=1)
    if known % hand:
        for r in range(1, rounds):
            taken = (r * known) % hand  # classes of the straddling batch that lie in the round before
            if not taken:
                continue
            head = hand - taken
            had = np.isin(order[r], order[r - 1, known - taken :])
            clash = np.flatnonzero(had[:head])
            if clash.size:
                spare = head + np.flatnonzero(~had[head:])[: clash.size]
                order[r, clash], order[r, spare] = order[r, spare], order[r, clash]
    return order.ravel()[: batches * hand]


def _visits(order: Rows) -> Rows:
    """For each entry, how often its value occurred before it."""
    by_value = np.argsort(order, kind="stable")
    counts = np.bincount(order)
    counts = counts[counts > 0]
    visits = np.empty_like(order)
    visits[by_value] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return visits


def check_rows(rows: ArrayLike) -> Rows:
    values = check_vector("rows", rows)
    if not values.size:
        raise InputError("rows is empty; expected at least one row number")
    if values.min() < 0:
        raise InputError(f"rows holds {values.min()}; row numbers are not negative")
    return values
