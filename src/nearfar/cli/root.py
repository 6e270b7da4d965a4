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
from nearfar.errors import InputError, ProcessLostError
from nearfar.terminal import plain, visible

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
    words = sys.argv[1:] if arguments is None else arguments
    rank, world = _process()
    if world > 1 and words[:1] != ["train"]:
        said = f"only train runs in several processes; start nearfar {words[0] if words else ''}".rstrip() + " without torchrun"
        _fail(said if rank == 0 else "", 2)
    if not logger.handlers and rank == 0:  # long fetching and decoding say how far they are
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    try:
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except (InputError, CycloptsError) as error:
        _fail(one_line(error), 2)
    except ProcessLostError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        resumable = words[:1] in (["train"], ["compare"])
        _fail("interrupted" + ("; go on with the same command, --out and --resume" if resumable else ""), 130)
    except BrokenPipeError:
        # Whoever read our output has left, `head` say; Python must not complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(0)


def show_result(result: Any, as_json: bool, form: Callable[[Any], str]) -> None:
    """Print a result to stdout: as JSON, or as text that ``form`` makes of it; nothing in it moves the terminal's cursor."""
    if as_json:
        text = json.dumps(result, ensure_ascii=False, allow_nan=False)
        print("".join(letter if visible(letter) else json.dumps(letter)[1:-1] for letter in text))
    else:
        print("\n".join(plain(line) for line in form(result).split("\n")))


def one_line(error: Exception) -> str:
    """What an error says, in one line of at most 1,000 characters."""
    said = plain(" ".join(str(error).split()))
    return said if len(said) <= 1000 else f"{said[:700]} ... {said[-295:]}"


def _fail(message: str, code: int) -> None:
    if message:
        print(f"nearfar: {message}", file=sys.stderr)
    sys.exit(code)


def _process() -> tuple[int, int]:
    """Which of how many processes this is, where torchrun started it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
