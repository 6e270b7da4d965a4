"""Disks that are full, and folders that may only be read: one line that says so, and what was there before is whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from reliability import children, jobs
from reliability.ground import CASES, Ground


def refused(ended: children.Ended, *words: str) -> None:
    assert ended.code == 2, ended.said
    assert "\n" not in ended.said
    assert any(word in ended.said for word in words), ended.said


def fill(ground: Ground, name: str, **how: Any) -> children.Ended:
    """Do a job on a disk that has no room, look at what it leaves, and do it again with room."""
    case, home, (whole, _) = CASES[name], ground.copy(), ground.undisturbed(name)
    after = jobs.contents(whole)
    ended = children.run(case.job, *case.arguments(home), **how)
    if ended.code == 0:  # the map is shown all the same; and a run that may only be read is judged, but for what it keeps
        assert name == "explore" or jobs.contents(home) == after
    else:
        refused(ended, "disk is full", "larger than files may be")
    assert not jobs.left_overs(home)
    if not case.steps:
        for file, found in jobs.contents(home).items():
            assert found in (ground.before.get(file), after.get(file)), file
        assert case.known(home) in (case.known(whole), case.known(ground.home / "start"))
    again = children.run(case.job, *case.arguments(home))
    assert again.code == 0, again.said
    assert jobs.contents(home) == after
    shutil.rmtree(home)
    return ended


@pytest.mark.parametrize(("name", "stride"), [("save", 13), ("add", 30)])
def test_a_disk_that_fills_up_is_one_line_and_loses_nothing(ground: Ground, name: str, stride: int) -> None:
    for at in range(1 + stride // 2, ground.undisturbed(name)[1].calls + 1, stride):
        fill(ground, name, at=at, what="full")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "often"])
def test_a_disk_that_fills_up_at_any_call_loses_nothing(ground: Ground, name: str) -> None:
    calls = ground.undisturbed(name)[1].calls
    stride = {"report": 16, "export": 2, "explore": 11}.get(name, 1)
    codes = [fill(ground, name, at=at, what="full").code for at in range(1, calls + 1, stride)]
    assert name == "explore" or codes.count(2) > 0.5 * len(codes)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("often", "report", "export", "explore")])
def test_a_system_that_refuses_large_files_loses_nothing(ground: Ground, name: str) -> None:
    for size in (0, 1, 100, 1000, 3000):
        fill(ground, name, largest_file=size)


def close(home: Path, mode: int) -> None:
    for path in [home, *home.rglob("*")]:
        if path.is_dir():
            path.chmod(mode)


@pytest.mark.parametrize("name", ["train", "add", "serve"])
def test_a_folder_that_may_only_be_read_is_one_line(ground: Ground, name: str) -> None:
    look_only(ground, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["npz", "remove", "save", "evaluate", "report", "export", "explore"])
def test_a_folder_that_may_only_be_read_is_one_line_from_what_takes_long_too(ground: Ground, name: str) -> None:
    look_only(ground, name)


def look_only(ground: Ground, name: str) -> None:
    case, home = CASES[name], ground.copy()
    close(home, 0o555)
    try:
        ended = children.run(case.job, *case.arguments(home), powerless=True)
        if name == "explore":
            assert ended.code == 0, ended.said  # the map is made, and not kept
        else:
            refused(ended, "permission denied")
        assert jobs.contents(home) == ground.before
    finally:
        close(home, 0o755)
        shutil.rmtree(home)
