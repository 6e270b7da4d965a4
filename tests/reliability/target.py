"""A file that is changed, and what reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from reliability.mutate import mutate, mutate_json


class Target:
    """One file that is changed, and what reads it.

    Args:
        name: of the target.
        path: of the file.
        seeds: valid contents.
        read: is given the path.
        as_json: change the tree of the JSON in the file rather than its bytes.
        fine: errors besides `InputError` that the reader is to raise.
        after: is called once the file was changed, to make others agree with it.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        seeds: Sequence[bytes],
        read: Callable[[Path], Any],
        *,
        as_json: bool = False,
        fine: tuple[type[Exception], ...] = (),
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.path, self.seeds, self.read = name, path, list(seeds), read
        self.as_json, self.fine, self.after = as_json, fine, after

    def check(self) -> None:
        for seed in self.seeds:
            self.path.write_bytes(seed)
            self.after()
            self.read(self.path)
        self.restore()

    def change(self, dice: Random) -> None:
        seed = dice.choice(self.seeds)
        changed = mutate_json(json.loads(seed), dice) if self.as_json else mutate(seed, dice, self.seeds)
        self.path.write_bytes(changed)
        self.after()

    def use(self) -> None:
        self.read(self.path)

    def restore(self) -> None:
        self.path.write_bytes(self.seeds[0])
        self.after()


class Several:
    """Several targets as one: each input is of one of them."""

    fine: tuple[type[Exception], ...] = ()

    def __init__(self, name: str, targets: Sequence[Target]) -> None:
        self.name, self.targets, self.now = name, list(targets), targets[0]

    def check(self) -> None:
        for target in self.targets:
            target.check()

    def change(self, dice: Random) -> None:
        self.now = dice.choice(self.targets)
        self.fine = self.now.fine
        self.now.change(dice)

    def use(self) -> None:
        self.now.use()

    def restore(self) -> None:
        self.now.restore()
