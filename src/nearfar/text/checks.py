"""The checks that a text tower makes of texts and of its arguments."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from nearfar.errors import InputError


def check_texts(texts: Sequence[str], name: str = "texts") -> list[str]:
    """``texts`` as a list.

    Raises:
        InputError: it is one string, an entry is no text, or is blank, or cannot be written as UTF-8; which one is named.
    """
    if isinstance(texts, str):
        raise InputError(f"{name} is one string, {_short(texts)}; give a list of strings")
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise InputError(f"{name}[{number}] is {_short(text)}, a {type(text).__name__}; every text must be a string")
        if not text.strip():
            raise InputError(f"{name}[{number}] is {_short(text)}, an empty text; leave it out or write what it should say")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{name}[{number}] is {_short(text)}, which is not valid Unicode; read its file as UTF-8"
            ) from None
    return found


def check_number(name: str, value: float, *, least: float, most: float, whole: bool = True) -> float:
    """``value``, which must be a number (a ``whole`` one) in a range."""
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        word = "a whole number" if whole else "a number"
        raise InputError(f"text.{name} is {value!r}; expected {word} from {least:g} to {most:,g}")
    return value


def need(module: str, extra: str, why: str) -> None:
    """Refuse in one line where a package of an extra is not installed."""
    if importlib.util.find_spec(module) is None:
        package = module.replace("_", "-")
        raise InputError(f"{package} is not installed, which {why} needs; run: pip install 'nearfar[{extra}]'")


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:50]}..."
