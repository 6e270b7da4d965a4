"""Files of strangers, changed thousands of times: each is read, or refused in one line; in little time and memory, and nothing
outside of its folder is touched, nothing started, nothing connected to, no code of its own run.

NEARFAR_FUZZ says how many inputs of each kind; 10,000 unless set.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from reliability.fuzz import fuzz
from reliability.targets import TARGETS

INPUTS = int(os.environ.get("NEARFAR_FUZZ", "10000"))
PARSERS = ["recipe", "idx", "table", "npz", "onnx", "tensors"]


@pytest.mark.parametrize("name", ["pictures", "table", "idx", "npz", "metadata", "bodies"])
def test_some_changed_inputs_are_read_or_refused(tmp_path: Path, name: str) -> None:
    outcome = fuzz(TARGETS[name], tmp_path, 0, 40)
    assert not outcome.failed
    assert outcome.worked + outcome.refused == 40


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TARGETS))
def test_many_changed_inputs_are_read_or_refused(tmp_path: Path, name: str) -> None:
    outcome = fuzz(TARGETS[name], tmp_path, 1000, INPUTS)
    assert not outcome.failed
    assert outcome.worked + outcome.refused == INPUTS
    assert min(outcome.worked, outcome.refused) > INPUTS // 200, "nearly all went one way"


@pytest.mark.slow
@pytest.mark.parametrize("parser", PARSERS)
def test_inputs_that_reach_every_branch_are_read_or_refused(tmp_path: Path, parser: str) -> None:
    """By Atheris, which keeps what reaches code that nothing reached before, and goes on from there."""
    script = Path(__file__).with_name("coverage_guided.py")
    command = [sys.executable, str(script), parser, str(tmp_path), f"-runs={INPUTS}", "-seed=1", "-max_len=4096", "-timeout=5"]
    places = os.pathsep.join(place for place in sys.path if place)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env={**os.environ, "PYTHONPATH": places})
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert f"Done {INPUTS} runs" in done.stderr
