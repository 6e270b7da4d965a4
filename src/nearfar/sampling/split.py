"""Which rows are for what: validation rows, unseen classes, stratified subsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from nearfar.errors import InputError
from nearfar.sampling.labels import SPLIT, ByClass, Rows, check_choice, check_integer, check_vector, stream


def split_validation(
    labels: ArrayLike | None,
    n: int,
    *,
    size: float | int,
    how: Literal["random", "stratified", "first", "last"],
    seed: int,
) -> tuple[Rows, Rows]:
    """Divide the rows 0 to n - 1 into rows for training and rows for validation, both ascending.

    Args:
        labels: integers [n], needed by 'stratified' only. Rows without a label (-1) then stay in training, and so
            does one image of every class; a share is of the labelled rows.
        n: the number of rows.
        size: of the validation rows: a float between 0 and 1 is a share, an integer a number.
        how: 'random'; 'stratified' (each class in proportion, to within one image); or the 'first' or 'last' rows.
        seed: not negative.

    Raises:
        InputError: an argument is not usable, or no row would be left on one side.
    """
    n = check_integer("n", n, least=2)
    check_choice("how", how, ("random", "stratified", "first", "last"))
    random = stream(check_integer("seed", seed, least=0), SPLIT)
    if how == "stratified":
        if labels is None:
            raise InputError("how='stratified' needs labels; use how='random'")
        by_class = ByClass(labels)
        if by_class.n != n:
            raise InputError(f"labels has {by_class.n:,} entries, n is {n:,}")
        rows, rank, count, priority = by_class.stratify(random)
        free = rank < count - 1
        chosen = rows[free][np.argsort(priority[free], kind="stable")]
        held = _share(size, len(rows), most=len(chosen), what="size")
        validation = chosen[:held]
    else:
        held = _share(size, n, most=n - 1, what="size")
        if how == "random":
            validation = random.permutation(n)[:held]
        else:
            validation = np.arange(held) if how == "first" else np.arange(n - held, n)
    is_validation = np.zeros(n, dtype=bool)
    is_validation[validation] = True
    return np.flatnonzero(~is_validation), np.flatnonzero(is_validation)


def split_classes(labels: ArrayLike, *, unseen: float | int | Sequence[int], seed: int) -> tuple[Rows, Rows]:
    """Divide rows by class, to test on classes that were never trained on.

    Args:
        labels: integers [N]; rows without a label (-1) are on neither side.
        unseen: the classes that are kept away from training: a float is their share, an integer how many, a list which.
        seed: not negative; draws the classes, unless they are listed.

    Returns:
        Rows of the seen and of the unseen classes, both ascending.

    Raises:
        InputError: a class does not occur, or no class would be left on one side.
    """
    by_class = ByClass(labels)
    numbers = by_class.numbers
    random = stream(check_integer("seed", seed, least=0), SPLIT)
    by_class.require_two("a split into seen and unseen classes", None)
    if isinstance(unseen, int | float | np.integer | np.floating):
        chosen = random.permutation(numbers)[: _share(unseen, len(numbers), most=len(numbers) - 1, what="unseen")]
    else:
        chosen = np.unique(check_vector("unseen", unseen))
        if missing := sorted(set(chosen.tolist()) - set(numbers.tolist())):
            raise InputError(f"unseen names class {missing[0]}, which does not occur in labels")
        if not 0 < len(chosen) < len(numbers):
            raise InputError(f"unseen names {len(chosen)} of {len(numbers)} classes; leave at least one on each side")
    values = np.asarray(labels, dtype=np.int64)
    is_unseen = np.isin(values, chosen)
    return np.flatnonzero(~is_unseen & (values >= 0)), np.flatnonzero(is_unseen)


def subset_stratified(labels: ArrayLike, *, size: float | int, seed: int) -> Rows:
    """Choose rows with each class in proportion, ascending; for accuracy against the number of training images.

    Every class has at least one image as long as there are as many rows as classes. Subsets of one seed are nested: the
    smaller lies within the larger, so that a curve over sizes is not disturbed by another draw.

    Args:
        labels: integers [N]; rows without a label (-1) are never chosen.
        size: a float in (0, 1] is a share of the labelled rows, an integer a number of rows.
        seed: not negative.

    Raises:
        InputError: an argument is not usable.
    """
    rows, rank, _, priority = ByClass(labels).stratify(stream(check_integer("seed", seed, least=0), SPLIT))
    wanted = _share(size, len(rows), most=len(rows), what="size")
    return np.sort(rows[np.lexsort((priority, rank > 0))[:wanted]])


def _share(size: float | int | np.integer | np.floating, total: int, *, most: int, what: str) -> int:
    """The number that ``size`` means: a share of ``total`` (float) or the number itself (int), checked to be 1 to ``most``."""
    if isinstance(size, bool | np.bool_) or not isinstance(size, int | float | np.integer | np.floating):
        raise InputError(f"{what} is {size!r}; expected a share between 0 and 1 or a number")
    if isinstance(size, float | np.floating):
        if not 0 < size <= 1:
            raise InputError(f"{what} is {size}; a share must lie between 0 and 1 (a whole number is a count)")
        number = round(float(size) * total)
    else:
        number = int(size)
    if not 1 <= number <= most:
        raise InputError(f"{what} {size} makes {number:,} of {total:,}; expected 1 to {most:,}")
    return number
