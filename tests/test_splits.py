"""Class-disjoint splits: what training never sees, how it is named, and what is measured of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import TINY, shapes
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from nearfar import show, verbs
from nearfar.cli import main
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.measuring.judging import judge
from nearfar.recipe import DataSection, Recipe
from nearfar.splits import cut, load_for, parse_unseen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3", 0.3),
        (" .5 ", 0.5),
        ("7,8,9", ("7", "8", "9")),
        ("7", ("7",)),
        ("0", ("0",)),  # the digit, not a share
        ("1", ("1",)),
        ("1.5", ("1.5",)),
        ("T-shirt, ankle boot ,", ("T-shirt", "ankle boot")),
        ("nan", ("nan",)),
    ],
)
def test_unseen_classes_are_a_share_or_names(text: str, expected: Any) -> None:
    assert parse_unseen(text) == expected


@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_unseen_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected names of classes"):
        parse_unseen(text)


def test_unseen_classes_are_on_no_other_side() -> None:
    train, test = shapes(100, classes=5), shapes(40, classes=5, seed=1)
    splits = cut({"train": train, "test": test}, DataSection(unseen=("b", "e"), validation=0.2), seed=0)
    apart = {train.classes.index(name) for name in "be"}
    assert splits.unseen is not None
    assert set(splits.unseen.require_labels().tolist()) == apart
    assert len(splits.unseen) == sum(int(np.isin(part.labels, list(apart)).sum()) for part in (train, test))
    for name, part in splits.parts().items():
        if name != "unseen":
            assert not apart & set(part.require_labels().tolist())


@pytest.mark.parametrize(
    ("unseen", "words"),
    [
        (("a", "bb"), "'bb', which the data lacks; did you mean 'b'"),
        (("a", "b"), "leaves only 'c' to train on"),
        (("a", "b", "c", "a"), "leaves no class to train on"),
        (0.01, "unseen 0.01 makes 0 of 3"),
    ],
)
def test_classes_that_cannot_be_kept_apart_are_refused(unseen: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        cut({"train": shapes(30)}, DataSection(unseen=unseen), seed=0)


def train(folder: Path, data: ImageSet, **more: Any) -> Path:
    verbs.train(data, recipe=Recipe.from_dict(TINY), out=folder, **more)
    return folder


def test_unseen_classes_are_measured_among_themselves_and_among_all(tmp_path: Path) -> None:
    data = shapes(150, classes=5)
    run = train(tmp_path / "run", data, unseen="b,d")
    tree = verbs.evaluate(run, data)
    judged = judge(run, data)
    splits = load_for(data, judged.model.recipe_.data, seed=0)
    assert splits.unseen is not None
    z, labels = judged.model.transform(splits.unseen), splits.unseen.require_labels()
    seen, known = np.asarray(judged.index.vectors), splits.train.require_labels()
    assert not set(known.tolist()) & set(labels.tolist())
    for place, there, codes in (
        (tree["unseen"], z, labels),
        (tree["unseen"]["with_seen"], np.concatenate([z, seen]), np.concatenate([labels, known])),
    ):
        order = NearestNeighbors(n_neighbors=len(there), metric="cosine", algorithm="brute").fit(there)
        rows = order.kneighbors(z, return_distance=False)
        rows = np.array([[at for at in row if at != own] for own, row in enumerate(rows)])
        right = codes[rows] == labels[:, None]
        for k in (1, 5, 10):
            assert place["retrieval"][f"recall@{k}"] == pytest.approx(right[:, :k].any(axis=1).mean())
        precision = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)
        average = np.array([(p * r)[: r.sum()].sum() / r.sum() for p, r in zip(precision, right, strict=True)])
        assert place["retrieval"]["map@r"] == pytest.approx(average.mean())
        for name in "bd":
            own = place["retrieval"]["per_class"][name]["map@r"]
            assert own == pytest.approx(average[labels == data.classes.index(name)].mean())
        assert place["classification"]["one_nn_accuracy"] == pytest.approx(right[:, 0].mean())
        assert place["data"]["gallery"] == len(there)
        assert place["data"]["queries"] == len(z)
        assert place["baselines"]["pixels"]["queries"] == len(z)
        assert place["leaks"]["figures"]["all"]["map@r"] == pytest.approx(average.mean())
    # More to be found cannot make finding easier.
    assert tree["unseen"]["with_seen"]["retrieval"]["map@r"] <= tree["unseen"]["retrieval"]["map@r"]
    text = show.figures(tree)
    row = next(line for line in text.split("never trained on")[1].splitlines() if "MAP@R" in line)
    for place in (tree["unseen"], tree["unseen"]["with_seen"], tree, tree["unseen"]["baselines"]["pixels"]):
        assert f"{place['retrieval']['map@r']:.4f}" in row


def test_baselines_and_copies_stand_beside_the_figures(tmp_path: Path) -> None:
    data = shapes(120)
    run = train(tmp_path / "run", data)
    tree = verbs.evaluate(run, data)
    splits = load_for(data, Recipe.from_dict(TINY).data, seed=0)
    assert splits.test is not None
    x, q = (np.asarray(part.images).reshape(len(part), -1).astype(np.float64) for part in (splits.train, splits.test))
    known, truth = splits.train.require_labels(), splits.test.require_labels()
    one = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(x, known)
    pixels = tree["baselines"]["pixels"]["classification"]
    assert pixels["one_nn_accuracy"] == pytest.approx(accuracy_score(truth, one.predict(q)))
    assert pixels["k"] == tree["classification"]["k"]
    assert tree["baselines"]["pca"]["dimensions"] == 8
    assert tree["baselines"]["pixels"]["size"] == [12, 12]
    assert (tree["leaks"]["exact"], tree["leaks"]["near"]) == (0, 0)
    assert "left_out" not in tree
    assert f"{pixels['one_nn_accuracy']:.4f}" in show.figures(tree)


def test_images_searched_among_themselves_are_compared_there(tmp_path: Path) -> None:
    data, other = shapes(90), shapes(80, classes=4, seed=2)
    run = train(tmp_path / "run", data)
    twice = np.array(other.images)
    one, copy = np.flatnonzero(other.require_labels() == 2)[:2]  # of one class, so that it does not matter which is found
    twice[copy] = twice[one]
    others = ImageSet(images=twice, labels=other.labels, classes=("a", "b", "c", "new"), name="others")
    tree = verbs.evaluate(run, others)
    assert tree["data"]["same_set"]
    assert tree["leaks"]["exact"] == 2
    assert tree["leaks"]["figures"]["without"]["queries"] == 78
    x = np.asarray(others.images).reshape(80, -1).astype(np.float64)
    rows = NearestNeighbors(n_neighbors=2, metric="cosine", algorithm="brute").fit(x).kneighbors(x, return_distance=False)
    first = np.where(rows[:, 0] == np.arange(80), rows[:, 1], rows[:, 0])
    right = others.require_labels()[first] == others.require_labels()
    assert tree["baselines"]["pixels"]["classification"]["one_nn_accuracy"] == pytest.approx(right.mean())


def test_without_the_training_images_there_is_a_reason(tmp_path: Path) -> None:
    data = shapes(90)
    run = train(tmp_path / "run", data)
    other = shapes(30, seed=4, name="other")
    tree = verbs.evaluate(run, other)  # an ImageSet's name leads nowhere, so the training images cannot be read again
    assert not {"leaks", "baselines"} & set(tree)
    assert {"baselines", "leaks"} <= set(tree["left_out"])
    assert "without copies and baselines: the images that it was trained on are not to be had" in show.figures(tree)


def test_the_command_line_keeps_classes_apart(
    folder_of_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('[encoder]\nkind = "mlp"\ndim = 8\n[loss]\nkind = "supcon"\n[data]\nsize = 12\n[train]\nepochs = 1\n')

    def run(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(one) for one in arguments])
        return int(ended.value.code or 0), *capsys.readouterr()

    common = ["train", folder_of_images, "--recipe", recipe, "--out", tmp_path / "run"]
    code, out, err = run(*common, "--unseen", "d")
    assert (code, out) == (2, "")
    assert "data.unseen names the class 'd'" in err
    assert not (tmp_path / "run").exists()
    assert run(*common, "--unseen", ",")[0] == 2
    assert run(*common, "--unseen", "b")[0] == 0
    code, out, err = run("evaluate", tmp_path / "run")
    assert code == 0, err
    assert "28 images of 1 classes never trained on" in out
    assert "among themselves, and among all 68 images" in out
