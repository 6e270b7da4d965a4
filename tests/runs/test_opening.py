"""A run opened: with PyTorch and without, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from samples import TINY, shapes

import nearfar as nf
from nearfar import runs, verbs
from nearfar.answers import answer as ask
from nearfar.answers import current_calibration, gallery_of
from nearfar.errors import InputError
from nearfar.recipe import Recipe
from nearfar.runs.opening import labels_in, load_index, load_model, load_run, open_model

WITHOUT_TORCH = """
import json, sys
from pathlib import Path
import numpy as np
import nearfar as nf
from nearfar import answers, calibrate, classify, data, recipe, runs, search, verbs
from nearfar.runs import indexing, opening
from nearfar.measuring import judging
folder, queries = Path(sys.argv[1]), np.load(sys.argv[2])
config = runs.read_finished(folder)
index = opening.load_index(folder, config, config["classes"])
scores, ids = index.search(queries, k=5)
many, _ = index.search(np.tile(queries, (10, 1)), k=5)
gallery = answers.gallery_of(index, recipe.Recipe.from_dict(config["recipe"]).evaluate, 60)
said = answers.answer(gallery, queries, answers.current_calibration(folder, gallery), 0.9)
voted = nf.NeighborClassifier(index, k=3).predict(queries)
assert "torch" not in sys.modules, "PyTorch was imported"
print(json.dumps({"scores": scores.tolist(), "ids": ids.tolist(), "voted": voted.tolist(), "labels": said.labels.tolist(),
                  "probability": said.probability.tolist(), "same": bool((many[: len(scores)] == scores).all())}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    verbs.train(shapes(60), recipe=Recipe.from_dict(TINY), out=folder)
    return folder


def test_a_run_is_searched_and_answers_without_pytorch(run: Path, tmp_path: Path) -> None:
    """In a process of its own, and as in this one."""
    model, index = load_run(run)
    z = model.transform(shapes(20, seed=3))
    np.save(tmp_path / "z.npy", z)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(run), str(tmp_path / "z.npy")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    scores, ids = index.search(z, k=5)
    gallery = gallery_of(index, model.recipe_.evaluate, 60)
    said = ask(gallery, z, current_calibration(run, gallery), 0.9)
    np.testing.assert_array_equal(np.array(found["scores"], dtype=np.float32), scores)
    assert found["ids"] == ids.tolist()
    assert found["voted"] == nf.NeighborClassifier(index, k=3).predict(z).tolist()
    assert found["labels"] == said.labels.tolist()
    np.testing.assert_allclose(found["probability"], said.probability, rtol=1e-12)
    assert found["same"]


def test_a_block_is_embedded_as_images_are(run: Path) -> None:
    model, images = load_model(run), shapes(20, seed=3)
    np.testing.assert_array_equal(model.embed_block(images.images), model.transform(images))
    one = np.concatenate([model.embed_block(images.images[at : at + 1]) for at in range(20)])
    np.testing.assert_allclose(one, model.transform(images), atol=1e-6)


def test_a_block_is_embedded_by_the_weights_of_the_last_training() -> None:
    images = shapes(60)
    model = nf.Embedder(recipe=Recipe.from_dict(TINY)).fit(images)
    before = model.embed_block(images.images)
    model.set_params(seed=5).fit(images)
    np.testing.assert_array_equal(model.embed_block(images.images), model.transform(images))
    assert np.abs(model.embed_block(images.images) - before).max() > 1e-3


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((0, 1, 12, 12), np.uint8),
        np.zeros((2, 3, 12, 12), np.uint8),
        np.zeros((2, 12, 12), np.uint8),
        np.zeros((2, 1, 12, 12)),
    ],
)
def test_another_block_is_refused(run: Path, pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \[N, 1, 12, 12\]"):
        load_model(run).embed_block(pixels)


def test_vectors_that_are_read_do_not_follow_their_file(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    config = runs.read_config(folder)
    mapped, read = (load_index(folder, config, config["classes"], mapped=mapped) for mapped in (True, False))
    expected = np.array(read.vectors)
    (path,) = (folder / runs.INDEX).glob("vectors-*.npy")
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(9.0).tobytes())
    assert mapped.vectors[-1, -1] == 9.0
    np.testing.assert_array_equal(read.vectors, expected)


def test_an_index_of_another_model_or_with_foreign_classes_is_refused(run: Path, tmp_path: Path) -> None:
    config = runs.read_config(run)
    with pytest.raises(InputError, match="not by the model"):
        load_index(run, {**config, "model": {"sha256": "0" * 64}}, config["classes"])
    with pytest.raises(InputError, match="has classes that the run lacks"):
        load_index(run, config, config["classes"][:1])
    with pytest.raises(InputError, match="there is no run folder"):
        open_model(tmp_path / "nothing")


def test_labels_count_on_behind_the_known_classes() -> None:
    images = shapes(12)
    known = [images.classes[1], "other"]
    numbers = labels_in(images, known)
    names = [*known, images.classes[0], *images.classes[2:]]
    assert [names[number] for number in numbers] == [images.classes[label] for label in images.require_labels()]
