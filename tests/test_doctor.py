from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_work import recipe_of

from nearfar.doctor import examine
from nearfar.doctor.machine import EXTRAS, advice, machine
from nearfar.doctor.proof import prove, trained, trial_recipes
from nearfar.doctor.text import report
from nearfar.errors import InputError
from nearfar.recipe import load_recipe, recipe_names


def test_the_facts_are_those_of_the_machine() -> None:
    found = machine()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert found["extras"]["ann"]
    assert found["memory_free"] > 0
    assert found["instructions"] == torch.backends.cpu.get_cpu_capability()
    json.dumps(found, allow_nan=False)
    text = Path("pyproject.toml").read_text() if Path("pyproject.toml").exists() else ""
    assert all(f"\n{name} = [" in text for name in EXTRAS) or not text


def test_advice_names_what_is_short() -> None:
    fine = {**machine(), "threads": 4, "cores": 4, "gpus": ["one"], "bfloat16": True, "memory_free": 2**35, "disk_free": 2**35}
    assert advice(fine) == []
    short = {**fine, "threads": 1, "gpus": [], "bfloat16": False, "memory_free": 2**20, "disk_free": 2**20}
    said = advice(short)
    assert len(said) == 5
    assert "1 of 4 cores" in said[0]


@pytest.mark.slow
def test_an_averaged_gradient_is_found_out_and_sums_pass() -> None:
    recipe = recipe_of({})
    found = prove(recipe, steps=4, work="distributed_work:averaged_trials")
    assert [row["holds"] for row in found["rows"]] == [True, True, False, True, True]
    assert found["rows"][1]["difference"] < 1e-6
    assert found["limit"] == 1e-5
    assert found["rows"][2]["moved"] > 0.1
    assert not found["holds"]
    assert found["left_out"] == []
    text = report({"machine": machine(), "advice": [], "proof": found})
    assert "2 processes" in text
    assert "TOO FAR" in text
    assert "NOT the same weights" in text


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in ("clip", "siglip")])
def test_every_recipe_has_a_trial(name: str) -> None:
    plain, cached = trial_recipes(load_recipe(name), 3)
    assert plain.train.optimizer == "sgd"
    assert cached.train.chunk


def test_what_cannot_be_proved_is_refused(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    assert cli("doctor", "--processes", 1) == (
        2,
        "",
        "looking at the machine\nnearfar: processes is 1; expected at least 2\n",
    )
    assert cli("doctor", tmp_path / "none")[0] == 2
    with pytest.raises(InputError, match="processes is 7; expected at most 6"):
        prove(recipe_of({}), processes=7)
    with pytest.raises(InputError, match="needs a run to begin with"):
        prove(recipe_of({}).with_changes({"train.mode": "linear"}))


def test_facts_alone_as_text_and_as_json(cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = cli("doctor", "--processes", 0)
    assert code == 0
    assert f"torch {torch.__version__}" in out
    assert err == "looking at the machine\n"
    code, out, _ = cli("doctor", "--processes", 0, "--json")
    assert code == 0
    assert json.loads(out)["proof"] is None


def test_the_yardstick_begins_so_far_apart_and_no_further() -> None:
    plain, _ = trial_recipes(load_recipe("cosine-pairs"), 1)
    still, shaken = trained(plain.with_changes({"train.learning_rate": 1e-9})), trained(plain, shake=1e-3)
    shaken_still = trained(plain.with_changes({"train.learning_rate": 1e-9}), shake=1e-3)
    assert 1e-4 < float((shaken_still - still).norm() / still.norm()) < 2e-3
    assert not torch.equal(shaken, shaken_still)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist-fast", "simclr", "cosine-pairs", "decoupled", "fashion-fast"])
def test_recipes_are_proved(name: str) -> None:
    proof: dict[str, Any] = examine(recipe=name, steps=5)["proof"]
    assert proof["holds"], proof
    assert torch.isfinite(trained(trial_recipes(load_recipe(name), 1)[0])).all()
