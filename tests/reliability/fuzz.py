"""Many changed inputs for one target, in a child that is watched: it works, or refuses in one line."""

from __future__ import annotations

import mmap
import os
import random
import struct
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability import children
from reliability.guard import Crossed, Guard


@dataclass(frozen=True)
class Outcome:
    """What became of the inputs of a target: how many worked and how many were refused; and of the others number and reason."""

    worked: int
    refused: int
    failed: list[tuple[int, str]]


def fuzz(target: Callable[[Path], Any], home: Path, first: int, count: int, most: int = 5) -> Outcome:
    """Try inputs ``first`` to ``first + count - 1`` of a target of `reliability.targets`; a crash is a failure too."""
    home.mkdir(parents=True, exist_ok=True)
    worked = refused = 0
    failed: list[tuple[int, str]] = []
    end = first + count
    while first < end and len(failed) < most:
        (home / "at").write_bytes(struct.pack("<q", first - 1))
        ended = children.run(_try, target, home, first, end, most - len(failed))
        if ended.code == 0:
            more, no, wrong, first = ended.said
            worked, refused, failed = worked + more, refused + no, failed + wrong
            continue
        at = struct.unpack("<q", (home / "at").read_bytes())[0]
        failed.append((at, f"the process ended with {ended.code}: {str(ended.said)[-2000:]}"))
        first = max(at, first) + 1
    return Outcome(worked, refused, failed)


def _try(
    make: Callable[[Path], Any], home: Path, first: int, end: int, most: int
) -> tuple[int, int, list[tuple[int, str]], int]:
    from nearfar.cli.root import one_line
    from nearfar.errors import InputError

    guard, target = Guard(home), make(home)
    target.check()  # what is not changed works; and what is imported late is imported now
    with open(home / "at", "r+b") as file:
        place = mmap.mmap(file.fileno(), 8)
    guard.limit_memory()
    worked = refused = 0
    failed: list[tuple[int, str]] = []
    warnings.simplefilter("error")  # a warning is a line that nobody asked for
    for number in range(first, end):
        struct.pack_into("<q", place, 0, number)
        dice = random.Random(f"{target.name} {number}")
        target.change(dice)
        try:
            with guard.on():
                target.use()
            worked += 1
        except InputError as error:
            refused += 1
            if len(line := one_line(error)) > 2000 or not line.isprintable():
                failed.append((number, f"that is no line for a terminal: {line[:200]!r}"))
        except target.fine:
            refused += 1
        except (Exception, Crossed) as error:
            failed.append((number, _told(error)))
        finally:
            target.restore()
        if len(failed) >= most:
            return worked, refused, failed, number + 1
    return worked, refused, failed, end


def _told(error: BaseException) -> str:
    """The error, and where nearfar was when it came."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/nearfar/" in frame.filename]
    where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


def counted(variable: str, usual: int) -> int:
    return int(os.environ.get(variable, usual))
