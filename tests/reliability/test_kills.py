"""Whatever is killed, and whenever: the work goes on, or the last whole state is there, byte for byte.

Killed is at every call that changes a folder, before it and in its midst, and at moments drawn evenly from the time that a job
takes. NEARFAR_KILLS says how many of the latter; 200 unless set.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from reliability.ground import CASES, Ground

KILLS = int(os.environ.get("NEARFAR_KILLS", "200"))
SHARES = {"train": 30, "often": 30, "finetune": 10, "npz": 16, "parquet": 14, "add": 40, "remove": 24, "save": 20, "serve": 8}
SHARES |= {"evaluate": 4, "report": 2, "export": 1, "explore": 1}  # of 200


@pytest.mark.parametrize(("name", "stride"), [("save", 9), ("add", 25), ("train", 60)])
def test_what_is_killed_between_two_steps_is_whole_or_goes_on(ground: Ground, name: str, stride: int) -> None:
    calls = ground.undisturbed(name)[1].calls
    for at in range(1 + stride // 2, calls + 1, stride):
        ground.disturb(name, at=at, what="half" if at % 2 else "kill")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("often", "report", "export", "explore")])
def test_killed_at_every_call_nothing_is_lost(ground: Ground, name: str) -> None:
    calls = ground.undisturbed(name)[1].calls
    assert calls > 5
    assert {ground.disturb(name, at=at, what="half").code for at in range(1, calls + 1)} == {-9}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stride"), [("often", 11), ("report", 16), ("export", 2), ("explore", 11)])
def test_killed_at_some_calls_what_takes_long_loses_nothing(ground: Ground, name: str, stride: int) -> None:
    for number, at in enumerate(range(1, ground.undisturbed(name)[1].calls + 1, stride)):
        ground.disturb(name, at=at, what="half" if number % 2 else "kill")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_killed_at_any_moment_nothing_is_lost(ground: Ground, name: str) -> None:
    seconds = ground.undisturbed(name)[1].seconds
    random = np.random.default_rng(list(CASES).index(name))
    for moment in random.uniform(0, seconds, max(1, round(KILLS * SHARES[name] / 200))):
        ground.disturb(name, kill_after=moment)
