from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import TINY, shapes
from sklearn.base import clone

import nearfar as nf
from nearfar import runs
from nearfar.data import ImageSet
from nearfar.recipe import Recipe

RECIPE = Recipe.from_dict(TINY)


@pytest.fixture(scope="module")
def model() -> nf.Embedder:
    return nf.Embedder(recipe=RECIPE, seed=1).fit(shapes(120))


def test_vectors_are_unit_rows_that_bring_classes_together(model: nf.Embedder) -> None:
    test = shapes(60, seed=9)
    z = model.transform(test)
    assert z.shape == (60, 8)
    assert z.dtype == np.float32
    assert np.linalg.norm(z, axis=1) == pytest.approx(np.ones(60), rel=1e-5)
    index = nf.NeighborIndex(metric="cosine", backend="exact").fit(model.transform(shapes(120)), shapes(120).labels)
    assert nf.NeighborClassifier(index, k=5).score(z, test.labels) > 0.9


def test_vectors_are_those_of_the_encoder_itself(model: nf.Embedder) -> None:
    test = shapes(20, seed=9)
    pixels = (torch.from_numpy(np.asarray(test.images)).double() / 255 - 0.5) / 0.5
    with torch.no_grad():
        expected = model.encoder_.double()(pixels).numpy()
    model.encoder_.float()
    assert model.transform(test) == pytest.approx(expected, abs=1e-5)


def test_arrays_do_as_well_as_image_sets(model: nf.Embedder) -> None:
    images = shapes(120)
    names = np.array(images.classes)[images.require_labels()]
    again = nf.Embedder(recipe=RECIPE, seed=1).fit(np.asarray(images.images)[:, 0], names)
    assert np.array_equal(again.transform(images), model.transform(images))
    assert again.classes_ == ("a", "b", "c")
    with pytest.raises(nf.InputError, match="y was given beside"):
        nf.Embedder(recipe=RECIPE).fit(images, names)
    with pytest.raises(nf.InputError, match=r"119.*120"):
        nf.Embedder(recipe=RECIPE).fit(np.asarray(images.images), names[:119])


def test_other_sizes_and_colours_are_brought_to_the_model(model: nf.Embedder) -> None:
    assert model.transform(shapes(5, size=20, channels=3)).shape == (5, 8)
    with pytest.raises(nf.InputError, match="channel"):
        model.transform(np.zeros((3, 5, 12, 12), dtype=np.uint8))


def test_parameters_clone_and_change_as_scikit_learn_expects() -> None:
    model = nf.Embedder(recipe="mnist-fast", seed=3, changes={"loss.temperature": 0.2})
    copied = clone(model)
    assert copied is not model
    assert copied.get_params() == model.get_params()
    assert copied.set_params(seed=4).seed == 4
    assert copied.resolve().loss.params["temperature"] == 0.2
    assert repr(model) == "Embedder(seed=3, changes={'loss.temperature': 0.2})"  # what differs from the defaults
    with pytest.raises(nf.InputError, match=r"sed.*seed"):
        copied.set_params(sed=4)
    with pytest.raises(nf.InputError, match="no model yet"):
        copied.transform(shapes(3))


def test_a_saved_model_loads_to_the_same_vectors_without_pickle(model: nf.Embedder, tmp_path: Path) -> None:
    folder = model.save(tmp_path / "run")
    loaded = nf.Embedder.load(folder)
    test = shapes(20, seed=9)
    assert np.array_equal(loaded.transform(test), model.transform(test))
    assert loaded.classes_ == model.classes_
    assert loaded.recipe_ == model.recipe_
    assert loaded.history_ == model.history_
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "history.jsonl", "model.safetensors"]
    assert not any(path.read_bytes().startswith((b"\x80", b"PK")) for path in folder.iterdir())


def test_saving_never_overwrites_unless_told_to(model: nf.Embedder, tmp_path: Path) -> None:
    folder = model.save(tmp_path / "run")
    with pytest.raises(nf.InputError, match="holds a finished run"):
        model.save(folder)
    (folder / "index").mkdir()
    model.save(folder, overwrite=True)
    assert not (folder / "index").exists()  # it belonged to the earlier model
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(nf.InputError, match="something else"):
            model.save(tmp_path / "notes", overwrite=overwrite)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("part", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_run_with_a_missing_or_damaged_part_is_refused(model: nf.Embedder, tmp_path: Path, part: str, damage: str) -> None:
    folder = model.save(tmp_path / "run")
    path = folder / part
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        other = nf.Embedder(recipe=RECIPE, seed=2).fit(shapes(60)).save(tmp_path / "other")
        path.write_bytes((other / part).read_bytes())
    with pytest.raises(nf.InputError) as caught:
        nf.Embedder.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"format": "1"},
        {"recipe": []},
        {"input": {"size": [12], "channels": 1}},
        {"input": {"size": [12, 12], "channels": "1"}},
        {"input": {"size": [10**6, 10**6], "channels": 1}},
        {"state": "training"},
        {"classes": None},
        {"model": {"sha256": "0"}},
    ],
)
def test_a_config_that_says_nonsense_is_refused(model: nf.Embedder, tmp_path: Path, change: dict[str, object]) -> None:
    folder = model.save(tmp_path / "run")
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**tree, **change}))
    with pytest.raises(nf.InputError) as caught:
        nf.Embedder.load(folder)
    assert "\n" not in str(caught.value)


def test_validation_rows_are_cut_as_the_recipe_says() -> None:
    recipe = RECIPE.with_changes({"data.validation": 30})
    model = nf.Embedder(recipe=recipe).fit(shapes(120))
    assert all(0 <= row["validation"]["knn_accuracy"] <= 1 for row in model.history_)
    given = nf.Embedder(recipe=RECIPE).fit(shapes(120), validation=shapes(30, seed=4))
    assert "validation" in given.history_[0]
    assert "validation" not in nf.Embedder(recipe=RECIPE).fit(shapes(120)).history_[0]


def test_the_untrained_encoder_is_where_training_began(model: nf.Embedder) -> None:
    still = nf.Embedder(recipe=RECIPE.with_changes({"train.learning_rate": 1e-20}), seed=1)
    with pytest.warns(UserWarning, match="the loss is not falling"):
        still.fit(shapes(120))
    for name, value in model.untrained().state_dict().items():
        assert torch.equal(value, still.encoder_.state_dict()[name])
        assert not torch.equal(value, model.encoder_.state_dict()[name])


def test_a_broken_model_is_said(model: nf.Embedder) -> None:
    broken = nf.Embedder(recipe=RECIPE, seed=1).fit(shapes(60))
    with torch.no_grad():
        next(broken.encoder_.parameters()).fill_(float("nan"))
    with pytest.raises(nf.InputError, match="not finite"):
        broken.transform(shapes(3))


def test_history_is_one_json_object_a_line(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    runs.write_history(tmp_path, rows)
    assert runs.read_history(tmp_path) == rows
    (tmp_path / "history.jsonl").write_text("{")
    with pytest.raises(nf.InputError, match="damaged"):
        runs.read_history(tmp_path)


def test_an_unlabelled_set_cannot_be_learned_from() -> None:
    with pytest.raises(nf.InputError, match="no labels"):
        nf.Embedder(recipe=RECIPE).fit(ImageSet(images=shapes(10).images))
