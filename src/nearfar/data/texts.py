"""Captions as data sets bring them: none, one or several for each image. Knows texts alone, no pixels and no networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nearfar.errors import InputError


class Texts(tuple[tuple[str, ...], ...]):
    """The captions of each image, in form; () for an image that has none. Made by `as_texts` and cut by `take` alone."""

    __slots__ = ()

    def take(self, rows: Iterable[int]) -> Texts:
        """The captions of the images ``rows``."""
        return Texts(self[row] for row in rows)


COLUMNS = ("text", "texts", "caption", "captions")
"""What a column of captions is called."""

_EXAMPLES = 3


def as_texts(values: Iterable[Any], count: int, what: str = "texts") -> Texts:
    """Captions as given, without blanks at their ends and without empty ones.

    Args:
        values: for each image a text, several of them, or None.
        count: how many images there are.
        what: how messages call them.

    Raises:
        InputError: something is no text, or the number is another.
    """
    if isinstance(values, Texts) and len(values) == count:
        return values
    if isinstance(values, str | Mapping):
        raise InputError(f"{what} is a {type(values).__name__}; expected the captions of each image, one text or several")
    found = Texts(_of_one(value, row, what) for row, value in enumerate(values))
    if len(found) != count:
        raise InputError(f"{what} has {len(found):,} entries, images has {count:,}; there must be one for each image")
    return found


def texts_of_classes(
    classes: Sequence[str], labels: Sequence[int], captions: Mapping[str, str | Sequence[str]]
) -> tuple[str | Sequence[str], ...]:
    """The captions of each image by the name of its class.

    Args:
        classes: names of the classes.
        labels: the class of each image, [N].
        captions: for each class that occurs, one caption or several.

    Raises:
        InputError: a class that occurs has no captions, or captions are given for a class that there is not.
    """
    for name in captions:
        if name not in classes:
            raise InputError(f"captions are given for {name!r}, which is no class; classes are {', '.join(classes[:10])}")
    missing = sorted({classes[label] for label in labels} - set(captions))
    if missing:
        raise InputError(f"the class {missing[0]!r} has no captions; give them for every class that has images")
    return tuple(captions[classes[label]] for label in labels)


def without(texts: Texts, ids: Sequence[str]) -> tuple[list[str], str]:
    """The ids of the images that have no caption, and a few of them for a message."""
    names = [name for name, captions in zip(ids, texts, strict=True) if not captions]
    return names, ", ".join(names[:_EXAMPLES]) + (f" and {len(names) - _EXAMPLES:,} more" if len(names) > _EXAMPLES else "")


def _of_one(value: Any, row: int, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    given = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    for one in given:
        if one is not None and not isinstance(one, str):
            raise InputError(f"{what}: row {row} (from 0) holds {one!r}; expected one text or several")
    return tuple(text for one in given if one is not None and (text := one.strip()))
