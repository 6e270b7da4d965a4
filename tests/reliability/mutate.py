"""Bytes and JSON trees, changed as an enemy or a bad disk would: what comes out is a function of the random numbers given."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

_WHOLE = [0, 1, -1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
_WORDS = ["", " ", "nan", "../../x", "/etc/passwd", "a\x00b", "\x1b[31m", "<script>alert(1)</script>", "=cmd|'/c calc'!A0"]
_WORDS += ["os.system", "__class__", "http://127.0.0.1:9/x", "\ud800", "\u202e", "a" * 100_000, "1e999", "milvus", "cosine"]
_LEAVES: list[Any] = [None, True, False, 0, -1, 1, 3, 10**9, 10**12, 2**63, 10**40, 0.5, -0.5, 1e308, 1e-320]
_LEAVES += [float("nan"), float("inf"), float("-inf"), [], {}, [[]], [{}], [None], *_WORDS]

Random = random.Random


def mutate(content: bytes, dice: Random, others: Sequence[bytes] = ()) -> bytes:
    """``content`` after one to four changes."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        dice.choice(_CHANGES)(changed, dice, others)
    return bytes(changed)


def _flip(content: bytearray, dice: Random, others: Sequence[bytes]) -> None:
    for _ in range(dice.choice((1, 1, 4, 16))):
        if content:
            content[_place(content, dice)] ^= 1 << dice.randrange(8)


def _overwrite(content: bytearray, dice: Random, others: Sequence[bytes]) -> None:
    at, size = _place(content, dice), dice.choice((1, 2, 4, 8))
    value = dice.choice([*_WHOLE, len(content), len(content) + 1, dice.getrandbits(64)]) % (1 << 8 * size)
    content[at : at + size] = value.to_bytes(size, dice.choice(("little", "big")))


def _cut(content: bytearray, dice: Random, others: Sequence[bytes]) -> None:
    del content[dice.randint(0, len(content)) :]


def _take_out(content: bytearray, dice: Random, others: Sequence[bytes]) -> None:
    at = _place(content, dice)
    del content[at : at + dice.choice((1, 2, 7, 64, 1000))]


def _repeat(content: bytearray, dice: Random, others: Sequence[bytes]) -> None:
    at = _place(content, dice)
    part = content[at : at + dice.choice((1, 8, 64, 1000))]
    content[at:at] = part * dice.choice((1, 2, 50))


def _splice(content: bytearray, dice: Random, others: Sequence[bytes]) -> None:
    other = dice.choice(others) if others else bytes(content)
    content[_place(content, dice) :] = other[dice.randint(0, len(other)) :]


def _number(content: bytearray, dice: Random, others: Sequence[bytes]) -> None:
    """Another number where one is written in digits."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", bytes(content[: 1 << 16])))
    if found:
        match = dice.choice(found)
        content[match.start() : match.end()] = dice.choice(
            (b"", b"0", b"-1", b"1e999", b"nan", b"999999999", b"9" * 40, b"0x1")
        )


def _word(content: bytearray, dice: Random, others: Sequence[bytes]) -> None:
    at = _place(content, dice)
    content[at:at] = dice.choice(_WORDS).encode("utf-8", "surrogatepass")


_CHANGES: list[Callable[[bytearray, Random, Sequence[bytes]], None]] = [
    *(_flip, _flip, _overwrite, _overwrite, _cut, _take_out, _repeat, _splice, _number, _word)
]


def mutate_json(tree: Any, dice: Random) -> bytes:
    """The JSON text of a tree in which one to four things have changed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        holders = [holder for holder in _holders(tree) if holder]
        if not holders:
            break
        holder = dice.choice(holders)
        key = dice.choice(list(holder)) if isinstance(holder, dict) else dice.randrange(len(holder))
        what = dice.randrange(8)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[dice.choice(_WORDS)] = holder.pop(key)
        elif what == 2 and isinstance(holder, dict):
            holder[dice.choice(_WORDS)] = copy.deepcopy(dice.choice(_LEAVES))
        elif what == 3 and isinstance(holder, list):
            holder += holder[: dice.randint(1, 3)]
        elif what == 4:
            inner = dice.choice(holders)
            holder[key] = json.loads(json.dumps(inner)) if len(json.dumps(inner)) < 10_000 else []
        else:
            holder[key] = copy.deepcopy(dice.choice(_LEAVES))
    text = json.dumps(tree)
    if dice.random() < 0.02:
        text = text.replace("0", "9" * 5000, 1)  # more digits than Python makes a number of
    if dice.random() < 0.03:
        deep = dice.choice((100, 2000, 100_000))
        text = text.replace("0", "[" * deep + "]" * deep, 1)
    content = text.encode("utf-8", "surrogatepass")
    return mutate(content, dice) if dice.random() < 0.1 else content


def _holders(tree: Any) -> list[Any]:
    """All objects and lists of a tree."""
    found, waiting = [], [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            found.append(one)
            waiting += one.values() if isinstance(one, dict) else one[:50]
    return found


def _place(content: bytearray, dice: Random) -> int:
    """Anywhere; often near the beginning, where headers are, or the end."""
    if not content:
        return 0
    if (where := dice.random()) < 0.5:
        return dice.randrange(len(content))
    return dice.randrange(min(len(content), 128)) if where < 0.85 else len(content) - 1 - dice.randrange(min(len(content), 128))
