"""Classes from prompts, against plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nearfar.errors import InputError
from nearfar.text import class_vectors, prompts_of, zero_shot


def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit rows that depend on the text alone."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=5) for text in texts]
    return np.array([row / np.linalg.norm(row) for row in rows], dtype=np.float32)


def test_prompts_are_names_in_templates() -> None:
    assert prompts_of(["boot", "T-shirt {}"], ["a {}.", "{}"]) == {
        "boot": ["a boot.", "boot"],
        "T-shirt {}": ["a T-shirt {}.", "T-shirt {}"],
    }
    assert prompts_of(["boot"]) == {"boot": ["a photo of a boot."]}


def test_class_vectors_are_means_made_unit() -> None:
    prompts = {"boot": ["a boot", "boots"], "bag": ["a bag"], "coat": ["a coat", "coats", "one coat"]}
    found = class_vectors(embed, prompts)
    assert found.dtype == np.float32
    for row, own in zip(found, prompts.values(), strict=True):
        total = sum(embed([text])[0].astype(np.float64) for text in own)
        assert np.allclose(row, total / math.sqrt(float(total @ total)), atol=1e-6)


def test_the_nearest_class_and_a_softmax() -> None:
    z, vectors = embed([str(number) for number in range(20)]), embed(["a", "b", "c"])
    labels, probabilities = zero_shot(z, vectors, 0.05)
    for row, label, chances in zip(z, labels, probabilities, strict=True):
        scores = [sum(float(a) * float(b) for a, b in zip(row, vector, strict=True)) for vector in vectors]
        powers = [math.exp(score / 0.05) for score in scores]
        assert label == scores.index(max(scores))
        assert np.allclose(chances, [power / sum(powers) for power in powers], atol=1e-6)
    assert np.isfinite(zero_shot(z, vectors, 1e-9)[1]).all()
    assert zero_shot(z, vectors[[0, 0]])[0].tolist() == [0] * 20
    assert len(zero_shot(z[:0], vectors)[0]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prompts_of(["boot"], ["a boot"]), r"the template 'a boot' has no \{\}; write where the name goes"),
        (lambda: prompts_of(["boot"], []), "there are no templates"),
        (lambda: prompts_of([]), "there are no classes"),
        (lambda: prompts_of(["boot", "bag", "boot"]), "the class 'boot' is named twice"),
        (lambda: prompts_of(["boot", " "]), r"classes\[1\] is ' ', an empty text"),
        (lambda: class_vectors(embed, {}), "there are no classes"),
        (lambda: class_vectors(embed, {"boot": ["a"], "bag": []}), "the class 'bag' has no prompts"),
        (lambda: class_vectors(embed, {"boot": "a boot"}), "the prompts of 'boot' is one string"),
        (lambda: class_vectors(embed, {"a": ["x", "y"], "b": ["Y", " x"]}), "the classes 'a' and 'b' have the same prompts"),
        (lambda: class_vectors(lambda texts: np.array([[1.0, 0], [-1, 0]]), {"a": ["x", "y"]}), "'a' have no mean direction"),
        (lambda: zero_shot(np.ones((2, 3)), np.ones((2, 4))), r"z has shape \[2, 3\], vectors \[2, 4\]"),
        (lambda: zero_shot(np.ones((2, 3)), np.ones((2, 3)), 0.0), "temperature is 0.0; expected a positive number"),
        (lambda: zero_shot(np.full((2, 3), np.nan), np.ones((2, 3))), "have NaN or infinity"),
    ],
)
def test_wrong_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_more_prompts_than_classes_are_fine() -> None:
    assert class_vectors(embed, {"boot": [f"boot {number}" for number in range(50)]}).shape == (1, 5)
