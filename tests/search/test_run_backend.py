"""The index of a run is searched by what its recipe names; figures are computed exactly whatever that is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from samples import TINY, shapes

from nearfar.errors import InputError
from nearfar.recipe import Recipe
from nearfar.runs.opening import load_run
from nearfar.search import NeighborIndex
from nearfar.verbs import train


def test_a_recipe_names_the_backend(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(TINY | {"evaluate": {"k": 5, "bootstrap": 50, "backend": "hnsw"}})
    train(shapes(600), recipe=recipe, out=tmp_path / "run", epochs=1)
    model, index = load_run(tmp_path / "run")
    assert index.built["backend"] == "hnsw"
    assert json.loads((tmp_path / "run" / "index" / "index.json").read_text())["engine"]["name"] == "hnsw"
    assert index.built["recall@10"] > 0.9
    z = model.transform(shapes(20, seed=3))
    exact = NeighborIndex.load(tmp_path / "run" / "index", backend="exact")
    scores, _ = index.search(z, 5)
    assert (scores >= exact.search(z, 5)[0][:, -1:]).mean() > 0.9


def test_without_a_name_a_small_run_is_exact(tmp_path: Path) -> None:
    train(shapes(60), recipe=Recipe.from_dict(TINY), out=tmp_path / "run", epochs=1)
    _, index = load_run(tmp_path / "run")
    assert index.built == {
        "backend": "exact",
        "reason": f"up to 200,000 vectors exact search is fast, and there are {len(index)}",
    }
    assert index.backend == "auto"
    np.testing.assert_array_equal(index.search(index.vectors[:3], 1)[0] > 0.999, True)


def test_an_unknown_backend_in_a_recipe_is_refused() -> None:
    with pytest.raises(InputError, match="backend"):
        Recipe.from_dict(TINY | {"evaluate": {"backend": "hnws"}})
