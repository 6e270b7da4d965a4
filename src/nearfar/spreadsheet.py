"""Tables as CSV that a spreadsheet may open: a name that others chose is never taken for a formula.

A text that begins like one gets an apostrophe before it, as OWASP advises against "CSV injection"; numbers, also "-1" as the
name of a class, stay as they are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_text(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as CSV with the columns ``names``."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=names)
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def cell(value: Any) -> Any:
    """``value``, with an apostrophe before a text that a spreadsheet would compute."""
    if not isinstance(value, str) or not value.startswith(_FORMULAS) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
