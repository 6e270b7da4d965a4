"""Text that others chose, names of files and classes say, made safe for a terminal: it moves no cursor and turns no line."""

from __future__ import annotations

import unicodedata

_TURNS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they turn the direction of what follows


def visible(letter: str) -> bool:
    """Whether a letter only shows itself: no control character, no end of a line, no turn, no half of a letter."""
    return letter.isprintable() or (unicodedata.category(letter) in ("Cf", "Zs") and letter not in _TURNS)


def plain(text: str) -> str:
    """``text`` with every letter that is not `visible` written as Python would write it: ``\\x1b`` for the escape character."""
    if text.isprintable():
        return text
    return "".join(one if visible(one) else one.encode("unicode_escape").decode() for one in text)
