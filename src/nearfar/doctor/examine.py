"""`examine`: what `nearfar doctor` returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nearfar import runs
from nearfar.doctor.machine import advice, machine
from nearfar.recipe import Recipe, load_recipe


def examine(
    run: str | Path | None = None,
    *,
    recipe: str | Path | Recipe | None = None,
    processes: int = 2,
    steps: int = 10,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Look at this machine, and prove that training by a recipe does the same in one process and in several.

    Args:
        run: a run folder, whose recipe is examined.
        recipe: a name, a TOML file or a `Recipe`, instead; by default "mnist-fast".
        processes: how many are started; 0: nothing is proved.
        steps: of each training of the proof.
        note: is told what is being done.

    Returns:
        ``machine``, facts; ``advice``, sentences; ``proof``, as `nearfar.doctor.proof.prove` returns it, or None.

    Raises:
        InputError: there is no such run or recipe, or a number is not usable.
    """
    if run is not None and recipe is None:
        chosen = Recipe.from_dict(runs.read_config(Path(run))["recipe"])
    else:
        chosen = load_recipe("mnist-fast" if recipe is None else recipe)
    note("looking at the machine")
    found = machine()
    proof = None
    if processes:
        from nearfar.doctor.proof import prove

        proof = prove(chosen, processes=processes, steps=steps, note=note)
    return {"machine": found, "advice": advice(found), "proof": proof}
