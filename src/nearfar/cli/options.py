"""What several verbs take, with its help text; a verb says in its docstring what only it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Run = Annotated[Path, Parameter(help="A run folder.")]
Images = Annotated[tuple[str, ...], Parameter(negative="")]
Device = Annotated[Literal["auto", "cpu", "cuda"], Parameter(help="Where to compute.")]
Switch = Annotated[bool, Parameter(negative="")]
SkipBad = Annotated[
    bool, Parameter(negative="", help="Leave out images that cannot be read, and count them, instead of refusing.")
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON.")]
Settings = Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative="", show_default=False)]
Neighbors = Annotated[int, Parameter(name=("-k", "--k"), help="How many neighbours for each.")]
