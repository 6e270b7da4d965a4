"""Choosing a precision: what was measured is remembered, and nothing that lies in the cache can break it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from samples import TINY, shapes

import nearfar
import nearfar.training.precision as precision
from nearfar.encoders import build_encoder
from nearfar.recipe import Recipe
from nearfar.training.loop import fit
from nearfar.training.parts import build_sampler, training_targets
from nearfar.training.precision import choose_precision, step_seconds
from nearfar.training.progress import Silent

IMAGES = torch.randn(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def encoder(dim: int = 4) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_encoder("mlp", channels=1, size=(12, 12), hidden=(8,), dim=dim)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEARFAR_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    return tmp_path / "cache" / "precision.json"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the measurements, each of which finds bfloat16 twice as fast."""
    count: list[int] = []

    def measure(*unused: object) -> dict[str, float]:
        count.append(1)
        return {"float32": 0.2, "bfloat16": 0.1}

    monkeypatch.setattr(precision, "step_seconds", measure)
    return count


def test_what_was_measured_is_remembered_by_encoder_batch_and_version(
    home: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_precision(encoder(), IMAGES) == ("bfloat16", "bfloat16: 2.0 times as fast here as float32")
    assert choose_precision(encoder(), IMAGES)[1].endswith("float32, as measured before")
    assert len(measured) == 1
    choose_precision(encoder(dim=5), IMAGES)
    choose_precision(encoder(), IMAGES[:4])
    assert len(measured) == 3
    assert len(json.loads(home.read_text())) == 3
    monkeypatch.setattr(nearfar, "__version__", "0.0.1")  # whose encoders may have been slower
    choose_precision(encoder(), IMAGES)
    assert len(measured) == 4


@pytest.mark.parametrize("gain", [1.1, 0.4])
def test_bfloat16_must_be_worth_it(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    monkeypatch.setattr(precision, "step_seconds", lambda *unused: {"float32": 0.1 * gain, "bfloat16": 0.1})
    chosen, why = choose_precision(encoder(), IMAGES)
    assert chosen == "float32"
    assert f"{gain:.1f} times as fast here" in why


@pytest.mark.parametrize("text", ["", "[", "[" * 10**5, "[1]", '{"KEY": 3}', '{"KEY": {"float32": NaN, "bfloat16": 1}}'])
def test_a_damaged_memory_is_measured_anew(home: Path, measured: list[int], text: str) -> None:
    choose_precision(encoder(), IMAGES)
    key = next(iter(json.loads(home.read_text())))
    home.write_text(text.replace("KEY", key))
    assert choose_precision(encoder(), IMAGES)[0] == "bfloat16"
    assert len(measured) == 2
    assert json.loads(home.read_text()) == {key: {"float32": 0.2, "bfloat16": 0.1}}


def test_a_processor_without_bfloat16_is_not_measured(home: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    assert choose_precision(encoder(), IMAGES) == ("float32", "float32: this processor does not compute in bfloat16")
    assert not measured
    assert not home.exists()


def test_where_nothing_can_be_written_it_is_measured_every_time(home: Path, measured: list[int]) -> None:
    home.parent.parent.mkdir(exist_ok=True)
    home.parent.write_text("a file, where the folder should be")
    for _ in range(2):
        assert choose_precision(encoder(), IMAGES)[0] == "bfloat16"
    assert len(measured) == 2


def test_measuring_leaves_the_encoder_and_the_random_state_alone() -> None:
    net = encoder()
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    seconds = step_seconds(net, IMAGES)
    assert all(0 < value < 10 for value in seconds.values())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_training_says_what_was_chosen(measured: list[int]) -> None:
    notes: list[str] = []

    class Listener(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    recipe = Recipe.from_dict(TINY).with_changes({"train.precision": "auto", "train.epochs": 1})
    assert fit(recipe, shapes(60), watcher=Listener()).precision == "bfloat16"
    assert notes[0] == "bfloat16: 2.0 times as fast here as float32"


def test_linked_pairs_of_about_as_many_images_are_measured_once(measured: list[int]) -> None:
    changes = {"train.precision": "auto", "train.epochs": 1, "sampling.kind": "pairs", "sampling.linked": 4}
    recipe = Recipe.from_dict(TINY).with_changes(changes | {"loss.kind": "contrastive"})
    train = shapes(60)
    targets = training_targets(recipe, train, seed=0)
    counts = {len(build_sampler(recipe, targets, seed=seed).epoch(0).batch(0).images()) for seed in range(4)}
    assert len(counts) > 1
    for seed in range(4):
        fit(recipe, train, seed=seed)
    assert len(measured) == 1
