"""The verb that looks at the machine."""

from __future__ import annotations

import sys

from nearfar.cli.options import AsJson, Run
from nearfar.cli.root import app, show_result


@app.command
def doctor(
    run: Run | None = None,
    /,
    *,
    recipe: str | None = None,
    processes: int = 2,
    steps: int = 10,
    as_json: AsJson = False,
) -> None:
    """Say what this machine has, and prove that training does the same in one process and in several.

    Ends with exit code 1 where it does not.

    Parameters
    ----------
    recipe
        A recipe's name or .toml file to examine; by default that of RUN, whose images are not needed, or else mnist-fast.
    processes
        How many processes the proof starts, 2 to 6; 0 leaves it out.
    steps
        How many steps each training of the proof has.
    """
    from nearfar.doctor import examine
    from nearfar.doctor.text import report
    from nearfar.training.progress import ProgressLine

    found = examine(run, recipe=recipe, processes=processes, steps=steps, note=ProgressLine().note)
    show_result(found, as_json, report)
    if found["proof"] is not None and not found["proof"]["holds"]:
        sys.stdout.flush()
        sys.exit(1)
