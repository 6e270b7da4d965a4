from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import TINY

from nearfar.errors import InputError
from nearfar.recipe import Recipe, load_recipe, parse_changes, recipe_names, recipe_text

REFERENCE = {
    "cosine-pairs",
    "margin-plane",
    "siamese-verification",
    "fashion-contrastive",
    "fashion-cross-entropy",
    "decoupled",
}


def test_every_recipe_reads_and_survives_a_round_trip() -> None:
    ours = {"mnist-fastest", "mnist-fast", "mnist-best", "fashion-fastest", "fashion-fast", "fashion-best", "images"}
    views = {"simclr", "dcl", "vicreg", "barlow-twins", "fashion-views"}
    assert set(recipe_names()) == REFERENCE | ours | views | {"clip", "siglip"}
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("recipe", "numbers"),
    [
        ("cosine-pairs", "5x5 32, 64 512 0.3 64 1e-7 1e-3 64 7 0.3 50 42000 1000"),
        ("margin-plane", "256, 128, 32 2 100 5 1.0 0.5"),
        ("siamese-verification", "128, 128, 64 0.4 128 64 5 0.2 1.0 0.5"),
        ("fashion-contrastive", "2.5 128 5 1e-3 0.05 8, 16 10"),
        ("fashion-cross-entropy", "128 5 1e-3 0.05 8, 16 10"),
        ("decoupled", "0.1307 0.3081 50 256 4 0.1 128 0.07 3e-4 1e-2 0.5 10"),
    ],
)
def test_the_file_shows_every_number_of_the_reference_system(recipe: str, numbers: str) -> None:
    text = recipe_text(recipe)
    for number in numbers.replace(", ", ",").split():
        assert re.search(rf"(?<![\d.]){re.escape(number.replace(',', ', '))}(?![\d.])", text), number


def test_changes_replace_values_and_leave_the_rest() -> None:
    recipe = Recipe.from_dict(TINY)
    changed = recipe.with_changes(parse_changes(["loss.temperature=0.5", "train.optimizer=sgd", "data.size=16"]))
    assert changed.loss.params == {"temperature": 0.5}
    assert changed.train == dataclasses.replace(recipe.train, optimizer="sgd")
    assert changed.data.size == (16, 16)
    assert changed.encoder == recipe.encoder


def test_another_loss_drops_the_arguments_of_the_first() -> None:
    recipe = Recipe.from_dict(TINY)
    assert recipe.with_changes({"loss.kind": "contrastive"}).loss.params == {}
    changed = recipe.with_changes({"loss.kind": "contrastive", "loss.margin": 2.0})
    assert changed.loss.params == {"margin": 2.0}


def test_bare_words_lists_and_numbers_are_told_apart() -> None:
    assert parse_changes(["a.b=sgd", "a.c=[1, 2]", 'a.d="x y"', "a.e=1e-3", "a.f=true"]) == {
        "a.b": "sgd",
        "a.c": [1, 2],
        "a.d": "x y",
        "a.e": 1e-3,
        "a.f": True,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train.epoch": 3}, ["train.epoch", "epochs"]),
        ({"train.epochs": 0}, ["train.epochs", "0", "positive"]),
        ({"train.epochs": "two"}, ["train.epochs", "two", "a number"]),
        ({"train.epochs": True}, ["train.epochs", "True"]),
        ({"train.optimizer": "adan"}, ["train.optimizer", "adan", "adamw"]),
        ({"train.learning_rate": float("nan")}, ["train.learning_rate", "finite"]),
        ({"data.size": [1, 2, 3]}, ["data.size", "[1, 2, 3]"]),
        ({"data.channels": 4}, ["data.channels", "4", "colour"]),
        ({"data.mean": [0.1, 0.2]}, ["data.mean", "1 or 3"]),
        ({"data.validation": 1.5}, ["data.validation", "1.5"]),
        ({"data.unseen": 1.0}, ["data.unseen"]),
        ({"evaluate.k": 0}, ["evaluate.k"]),
        ({"sampling.partner": "new"}, ["sampling.partner", "'fixed'", "'fresh'"]),
        ({"trane.epochs": 1}, ["trane.epochs", "train"]),
        ({"epochs": 1}, ["epochs", "section.key=value"]),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        Recipe.from_dict(TINY).with_changes(change)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_unknown_recipes_and_sections_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mnist-fats.*mnist-fast"):
        load_recipe("mnist-fats")
    with pytest.raises(InputError, match="does not exist"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"'los'.*'loss'"):
        Recipe.from_dict({**TINY, "los": {}})
    without = copy.deepcopy(TINY)
    del without["loss"]
    with pytest.raises(InputError, match=r"lacks the section \[loss\]"):
        Recipe.from_dict(without)
    (tmp_path / "bad.toml").write_text("[train\nepochs = 1")
    with pytest.raises(InputError, match="not valid TOML"):
        load_recipe(tmp_path / "bad.toml")
    with pytest.raises(InputError, match=r"section.key=value"):
        parse_changes(["epochs"])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
@settings(max_examples=100, deadline=None)
def test_no_value_whatever_gets_past_the_check_or_raises_anything_else(value: Any) -> None:
    for key in ("train", "encoder", "augment", "name", "data"):
        try:
            recipe = Recipe.from_dict({**TINY, key: value})
        except InputError:
            continue
        assert Recipe.from_dict(recipe.to_dict()) == recipe
