"""The application itself: how it starts, prints a result and ends.

Exit codes: 0 done; 2 the input or the options are wrong, said in one line; 130 interrupted; 1 a defect of nearfar.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from cyclopts import App, CycloptsError

from nearfar import __version__
from nearfar.errors import InputError

app = App(
    name="nearfar",
    version=__version__,
    help="Teach a network what is near and what is far: from images to an embedding that you can search, classify with, "
    "measure, look at and ship.",
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    logger = logging.getLogger("nearfar")
    if not logger.handlers:  # long fetching and decoding say how far they are
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    try:
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except (InputError, CycloptsError) as error:
        _fail(" ".join(str(error).split()), 2)
    except KeyboardInterrupt:
        resumable = (sys.argv[1:] if arguments is None else arguments)[:1] in (["train"], ["compare"])
        _fail("interrupted" + ("; go on with the same command, --out and --resume" if resumable else ""), 130)
    except BrokenPipeError:
        # Whoever read our output has left, `head` say; Python must not complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(0)


def show_result(result: Any, as_json: bool, form: Callable[[Any], str]) -> None:
    """Print a result to stdout: as JSON, or as text that ``form`` makes of it."""
    print(json.dumps(result, ensure_ascii=False, allow_nan=False) if as_json else form(result))


def _fail(message: str, code: int) -> None:
    print(f"nearfar: {message}", file=sys.stderr)
    sys.exit(code)
