"""What a user did wrong, said in one line. Anything else that is raised is a defect of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The input or the options are wrong; the message names the value, what was expected, and how to mend it.

    The command line prints the message alone and ends with exit code 2.
    """


class ProcessLostError(RuntimeError):
    """Another of the processes that train together no longer answers."""


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the nearest of ``known``, or a list of all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "; known are " + ", ".join(names) if names else ""
