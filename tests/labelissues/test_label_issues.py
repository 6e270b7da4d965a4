"""The verb from end to end: labels flipped on purpose are found, the table and the gallery say so, bad input is refused."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import TINY, shapes
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from nearfar import files, show, verbs
from nearfar.cli import main
from nearfar.data import ImageSet
from nearfar.embedder import Embedder
from nearfar.errors import InputError
from nearfar.labelissues import gallery, label_issues
from nearfar.labelissues.copies import conflicting_copies
from nearfar.recipe import Recipe

RECIPE = Recipe.from_dict(TINY)
DIGITS = RECIPE.with_changes({"data.size": [8, 8], "encoder.hidden": [64], "encoder.dim": 16, "train.epochs": 6})


def flip(images: ImageSet, share: float, seed: int = 0) -> tuple[ImageSet, np.ndarray]:
    """A share of the labels moved to another class at random, and which."""
    random = np.random.default_rng(seed)
    labels = images.require_labels().copy()
    wrong = random.permutation(len(labels))[: round(share * len(labels))]
    labels[wrong] = (labels[wrong] + random.integers(1, len(images.classes), len(wrong))) % len(images.classes)
    return ImageSet(images.images, labels, images.classes, images.ids, images.name), np.isin(np.arange(len(labels)), wrong)


def digits() -> ImageSet:
    bunch = load_digits()
    return ImageSet.from_arrays(bunch.images / 16.0, bunch.target, name="digits-flipped")


def rows_of(result: dict[str, Any]) -> list[dict[str, str]]:
    with open(result["table"], newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def average_precision(result: dict[str, Any], images: ImageSet, wrong: np.ndarray) -> float:
    """Of the ranking that the table holds; what it does not list counts as surely right."""
    scores = {row["image"]: float(row["score"]) for row in rows_of(result)}
    return float(average_precision_score(wrong, [-scores.get(name, 1.0) for name in images.ids.tolist()]))


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageSet, np.ndarray]:
    images, wrong = flip(digits(), 0.03)
    folder = tmp_path_factory.mktemp("runs") / "digits"
    verbs.train(images, recipe=DIGITS, out=folder)
    return folder, images, wrong


@pytest.fixture(scope="module")
def result(flipped: tuple[Path, ImageSet, np.ndarray]) -> dict[str, Any]:
    folder, images, _ = flipped
    return label_issues(folder, images)


def test_flipped_labels_of_digits_are_found(result: dict[str, Any], flipped: tuple[Path, ImageSet, np.ndarray]) -> None:
    folder, images, wrong = flipped
    assert average_precision(result, images, wrong) > 0.9
    names = set(images.ids[wrong].tolist())
    right = sum(issue["image"] in names for issue in result["issues"])
    assert right / len(result["issues"]) > 0.8
    assert right / len(names) > 0.9
    truth = digits().require_labels()
    place = {name: row for row, name in enumerate(images.ids.tolist())}
    mended = [issue["suggested"] == str(truth[place[issue["image"]]]) for issue in result["issues"] if issue["image"] in names]
    assert np.mean(mended) > 0.9
    assert result["table"] == str(folder / "label-issues" / "issues.csv")


def test_the_table_lists_the_worst_first_with_the_votes_and_the_nearest(
    result: dict[str, Any], flipped: tuple[Path, ImageSet, np.ndarray]
) -> None:
    folder, images, _ = flipped
    rows = rows_of(result)
    assert len(rows) == result["listed"]
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores)
    assert [row["image"] for row in rows if row["likely"] == "yes"] == [issue["image"] for issue in result["issues"]]
    z = Embedder.load(folder).transform(images).astype(np.float64)
    place = {name: row for row, name in enumerate(images.ids.tolist())}
    for row in rows[:20]:
        own = place[row["image"]]
        cosine = z @ z[own]
        cosine[own] = -np.inf
        near = np.argsort(-cosine, kind="stable")[: result["k"]]
        assert json.loads(row["nearest"]) == images.ids[near[:5]].tolist()
        found = [images.classes[number] for number in images.require_labels()[near]]
        assert json.loads(row["votes"]) == {name: found.count(name) for name in found}
        assert row["given"] == images.classes[images.require_labels()[own]]
        assert row["suggested"] in found
        assert row["suggested"] != row["given"]


def test_the_result_is_json_and_reads_well(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    text = show.label_issues(result)
    worst = result["issues"][0]
    assert f"{result['likely']:,} labels are likely wrong" in text
    assert re.search(rf"{worst['image']} +{worst['given']} +{worst['suggested']}", text)
    assert result["gallery"] in text


def test_folds_judge_an_image_in_an_embedding_that_never_saw_it(
    flipped: tuple[Path, ImageSet, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, images, wrong = flipped
    taught: list[set[str]] = []
    fit = Embedder.fit_parts

    def spy(self: Embedder, train: ImageSet, *args: Any, **named: Any) -> Embedder:
        taught.append(set(train.ids.tolist()))
        return fit(self, train, *args, **named)

    monkeypatch.setattr(Embedder, "fit_parts", spy)
    found = label_issues(folder, images, folds=3, out=tmp_path / "out")
    everything = set(images.ids.tolist())
    held = [everything - seen for seen in taught]
    assert len(held) == 3
    assert sum(map(len, held)) == len(everything) == len(set.union(*held))
    for row in rows_of(found)[:100]:
        own = next(number for number, names in enumerate(held) if row["image"] in names)
        assert set(json.loads(row["nearest"])) <= taught[own]
    assert average_precision(found, images, wrong) > 0.9
    assert found["folds"] == 3
    assert Path(found["gallery"]).parent == tmp_path / "out"


def test_copies_with_different_labels_are_found_exact_ones_and_near_ones(tmp_path: Path) -> None:
    images = shapes(60)
    pixels, labels = images.images.copy(), images.require_labels().copy()
    pixels[1], labels[1] = pixels[0], (labels[0] + 1) % 3
    pixels[3], labels[3] = pixels[2], labels[2]  # copies that agree
    pixels[5] = np.clip(pixels[4].astype(int) + np.random.default_rng(0).integers(-3, 4, pixels[4].shape), 0, 255)
    labels[5] = (labels[4] + 2) % 3
    odd = ImageSet(pixels, labels, images.classes, name="copies")
    conflicts, sought = conflicting_copies(odd, labels)
    assert sought
    assert [conflict.rows for conflict in conflicts] == [(0, 1), (4, 5)]
    oracle = np.corrcoef(pixels[4].ravel(), pixels[5].ravel())[0, 1]
    assert [conflict.likeness for conflict in conflicts] == pytest.approx([1.0, oracle], abs=1e-4)
    verbs.train(odd, recipe=RECIPE, out=tmp_path / "run")
    found = label_issues(tmp_path / "run", odd)
    assert [[one["image"] for one in group["images"]] for group in found["conflicts"]] == [["0", "1"], ["4", "5"]]
    listed = {row["image"]: json.loads(row["copies"]) for row in rows_of(found)}
    assert listed["0"] == ["1"]
    assert listed["5"] == ["4"]
    assert "0 (" in show.label_issues(found)
    assert "Copies with different labels" in Path(found["gallery"]).read_text()


class _Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_gallery_shows_names_as_text_and_loads_nothing(tmp_path: Path) -> None:
    images, _ = flip(shapes(90), 0.1)
    evil = ("<script>alert(1)</script>", '"><img src=x onerror=y>', "\N{RIGHT-TO-LEFT OVERRIDE}c")
    named = ImageSet(images.images, images.labels, evil, [f"<b>{row}</b>&" for row in range(90)], name="<i>evil</i>")
    verbs.train(named, recipe=RECIPE, out=tmp_path / "run")
    found = label_issues(tmp_path / "run", named)
    assert found["likely"] > 0
    page = _Page()
    page.feed(Path(found["gallery"]).read_text())
    known = ["html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ol", "li", "div", "span", "small", "bdi"]
    assert {tag for tag, _ in page.tags} <= {*known, "figure", "figcaption", "img"}
    assert all(str(attributes["src"]).startswith("data:image/png;base64,") for tag, attributes in page.tags if tag == "img")
    assert sum(tag == "img" for tag, _ in page.tags) >= 6 * found["shown"]
    assert "<script>alert(1)</script>" in page.text
    assert found["issues"][0]["image"] in page.text
    raw = Path(found["gallery"]).read_text()
    assert "<bdi>\N{RIGHT-TO-LEFT OVERRIDE}c</bdi>" in raw  # so that it turns nothing around it
    assert rows_of(found)[0]["given"] in evil


def test_the_gallery_stays_small_and_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 96, 96)).astype(np.uint8)
    card = gallery.Card(noise, "a", "b", "c", 0.1, {"c": 5}, [(noise, "d", "c")] * 5)
    page, shown = gallery.render([card] * 300, [], likely=300, images=1000, source="s", how="h")
    assert 5 < shown < 200
    assert len(page.encode()) < gallery.LIMIT
    assert f"the {shown} most suspicious" in page
    small = gallery.Card(noise[:1, :8, :8], "a", "b", "c", 0.1, {"c": 5}, [])
    _, shown = gallery.render([small] * 300, [], likely=300, images=1000, source="s", how="h")
    assert shown == gallery.MOST
    page, shown = gallery.render([], [], likely=0, images=1000, source="s", how="h")
    assert shown == 0
    assert "None: no label is contradicted" in page


def test_a_class_that_the_run_does_not_know_and_one_of_a_single_image_are_counted(tmp_path: Path) -> None:
    verbs.train(shapes(60), recipe=RECIPE, out=tmp_path / "run")
    four = shapes(80, classes=4)
    labels = np.append(four.require_labels(), 4)
    images = ImageSet(np.concatenate([four.images, four.images[:1] // 2]), labels, (*four.classes, "lonely"), name="more")
    found = label_issues(tmp_path / "run", images)
    assert (found["new_classes"], found["alone"], found["classes"]) == (2, 1, 5)
    assert "1 images are the only one of their class" in show.label_issues(found)


def test_without_data_the_images_that_the_run_was_trained_on_are_judged(tmp_path: Path) -> None:
    images, _ = flip(shapes(120), 0.1)
    np.savez(tmp_path / "bars.npz", images=images.images[:, 0], labels=images.require_labels())
    verbs.train(str(tmp_path / "bars.npz"), recipe=RECIPE.with_changes({"data.test": 0.25}), out=tmp_path / "run")
    assert label_issues(tmp_path / "run")["images"] == 90
    assert label_issues(tmp_path / "run", tmp_path / "bars.npz")["images"] == 120


def test_splits_without_labels_are_left_out_and_said(tmp_path: Path) -> None:
    images = shapes(60)
    verbs.train(images, recipe=RECIPE, out=tmp_path / "run")
    pixels = images.images[:, 0].reshape(60, -1)
    (tmp_path / "csv").mkdir()
    for name, rows, labelled in (("train", slice(0, 40), True), ("test", slice(40, 60), False)):
        head = ["label"] * labelled + [f"pixel{number}" for number in range(144)]
        lines = [([images.classes[images.require_labels()[row]]] * labelled) + pixels[row].tolist() for row in range(60)[rows]]
        with open(tmp_path / "csv" / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([head, *lines])
    found = label_issues(tmp_path / "run", tmp_path / "csv")
    assert (found["images"], found["unlabelled"]) == (40, 20)
    assert "20 images without a label are left out" in show.label_issues(found)
    both = {"train": slice(0, 40), "test": slice(40, 60)}
    arrays = {f"{name}_images": images.images[rows, 0] for name, rows in both.items()}
    arrays |= {f"{name}_labels": images.require_labels()[rows] for name, rows in both.items()}
    np.savez(tmp_path / "both.npz", **arrays)
    assert label_issues(tmp_path / "run", tmp_path / "both.npz")["images"] == 60


def test_bad_input_is_refused_and_earlier_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = shapes(60)
    verbs.train(images, recipe=RECIPE, out=tmp_path / "run")
    with pytest.raises(InputError, match="has no labels"):
        label_issues(tmp_path / "run", ImageSet(images.images))
    with pytest.raises(InputError, match="one class only"):
        label_issues(tmp_path / "run", images.subset(images.labels == 1))
    with pytest.raises(InputError, match="folds is 1, expected"):
        label_issues(tmp_path / "run", images, folds=1)
    with pytest.raises(InputError, match="folds is 61, expected"):
        label_issues(tmp_path / "run", images, folds=61)
    with pytest.raises(InputError, match="neither a known data set nor a path"):
        label_issues(tmp_path / "run")  # an ImageSet in memory cannot be read again
    with pytest.raises(InputError, match="no run folder"):
        label_issues(tmp_path / "nothing", images)
    assert not (tmp_path / "run" / "label-issues").exists()
    first = label_issues(tmp_path / "run", images)
    before = [Path(first[name]).read_bytes() for name in ("table", "gallery")]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full"):
        label_issues(tmp_path / "run", flip(images, 0.1)[0])
    monkeypatch.undo()
    assert [Path(first[name]).read_bytes() for name in ("table", "gallery")] == before
    assert sorted(path.name for path in (tmp_path / "run" / "label-issues").iterdir()) == ["issues.csv", "issues.html"]


def test_a_head_cannot_be_cross_validated(tmp_path: Path) -> None:
    images = shapes(60)
    verbs.train(images, recipe=RECIPE, out=tmp_path / "run")
    verbs.train(images, start=tmp_path / "run", out=tmp_path / "head", changes={"train.mode": "linear"})
    with pytest.raises(InputError, match=r"train\.mode=linear"):
        label_issues(tmp_path / "head", images, folds=2)
    assert label_issues(tmp_path / "head", images)["images"] == 60


def test_the_command_prints_json_or_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, _ = flip(shapes(120), 0.1)
    np.savez(tmp_path / "bars.npz", images=images.images[:, 0], labels=images.require_labels())
    verbs.train(str(tmp_path / "bars.npz"), recipe=RECIPE.with_changes({"data.test": 0.0}), out=tmp_path / "run")

    def nearfar(*arguments: object) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(one) for one in arguments])
        return (ended.value.code, *capsys.readouterr())

    code, out, _ = nearfar("data", "issues", tmp_path / "run", "--out", tmp_path / "found", "--json")
    assert code == 0
    tree = json.loads(out)
    assert tree["images"] == 120
    assert (tmp_path / "found" / "issues.csv").exists()
    code, out, _ = nearfar("data", "issues", tmp_path / "run", "--folds", 2)
    assert code == 0
    assert "each judged by its 20 nearest in 2 folds" in out
    code, out, err = nearfar("data", "issues", tmp_path / "run", "--folds", 1)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
