"""Runs judged by images without labels: by views of these, and by nothing that nobody knows."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from htmlreader import Reader, pictures
from samples import TINY, shapes

from nearfar import Embedder, runs, show, verbs
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.evaluation import views as evaluation_views
from nearfar.evaluation.views import CHANGES, Views, rank_views, view_rows
from nearfar.measuring.judging import judge
from nearfar.measuring.unlabelled import look_for_views
from nearfar.pictures import as_png
from nearfar.recipe import Recipe
from nearfar.report import report

VIEWS: dict[str, Any] = {
    **TINY,
    "loss": {"kind": "nt-xent", "temperature": 0.2},
    "sampling": {"kind": "views", "batch_size": 30},
    "augment": {"shift": 1, "noise": 0.05},
    "train": {"epochs": 3, "learning_rate": 0.01},
}
COPIED = 7
Cli = Callable[..., tuple[int, str, str]]


def write(images: ImageSet, folder: Path) -> Path:
    folder.mkdir()
    for row, pixels in enumerate(images.images):
        (folder / f"{row:03d}.png").write_bytes(as_png(np.asarray(pixels)))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of images without classes, 25 of which are kept for a test, with a report."""
    place = tmp_path_factory.mktemp("views")
    source = write(shapes(100, seed=5), place / "photos")
    verbs.train(source, recipe=Recipe.from_dict({**VIEWS, "data": {**TINY["data"], "test": 0.25}}), out=place / "run")
    report(place / "run")
    return place / "run"


def slow_ranks(z: Any, views: Any, rows: Any, metric: str) -> list[int]:
    """The place of each view's image, by a loop; of equal scores the others come first."""
    wide, asked = z.astype(np.float64), views.astype(np.float64)
    if metric == "cosine":
        wide, asked = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (wide, asked))
    found = []
    for view, row in zip(asked, rows, strict=True):
        near = [float(-np.linalg.norm(view - x)) if metric == "euclidean" else float(view @ x) for x in wide]
        found.append(1 + sum(other >= near[row] for at, other in enumerate(near) if at != row))
    return found


# ---- the views


def test_views_are_the_same_however_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    images = shapes(23, size=10, channels=3)
    monkeypatch.setattr(evaluation_views, "_VALUES", 4 * 300)  # four images at a time
    views = Views(images, np.arange(3, 23))
    parts = [np.asarray(part.images) for part in views.parts()]
    assert [len(part) for part in parts] == [4] * 5
    whole = np.concatenate(parts)
    assert whole.dtype == np.uint8
    assert whole.shape == (20, 3, 10, 10)
    places = np.array([13, 0, 19, 13])
    np.testing.assert_array_equal(views.at(places), whole[places])
    np.testing.assert_array_equal(np.concatenate([part.images for part in views.parts(np.array([2, 5, 6]))]), whole[[2, 5, 6]])
    np.testing.assert_array_equal(Views(images, np.arange(3, 23)).at(np.arange(20)), whole)
    other = Views(images, np.arange(3, 23), seed=1).at(np.arange(20))
    assert all((one != two).any() for one, two in zip(whole, other, strict=True))
    assert all((one != two).any() for one, two in zip(whole, np.asarray(images.images)[3:], strict=True))


def test_rows_are_all_or_a_sample_of_all() -> None:
    np.testing.assert_array_equal(view_rows(7), np.arange(7))
    some = view_rows(1000, 30)
    assert (np.diff(some) > 0).all()
    assert len(some) == 30
    assert some.max() > 900
    np.testing.assert_array_equal(some, view_rows(1000, 30))


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_ranks_are_those_of_a_loop(metric: Any) -> None:
    generator = np.random.default_rng(3)
    z = generator.integers(-2, 3, (40, 3)).astype(np.float32) + np.float32(0.25)  # whole steps: many ties
    rows = np.sort(generator.permutation(40)[:25])
    views = (z[rows] + generator.integers(-1, 2, (25, 3))).astype(np.float32)
    ranks = rank_views(views, z, rows, metric=metric)
    if metric != "cosine":  # whose unit rows are rounded, so that ties may break either way
        assert ranks.tolist() == slow_ranks(z, views, rows, metric)
    smooth = generator.standard_normal((40, 5)).astype(np.float32)
    near = smooth[rows] + np.float32(0.5) * generator.standard_normal((25, 5)).astype(np.float32)
    assert rank_views(near, smooth, rows, metric=metric).tolist() == slow_ranks(smooth, near, rows, metric)


# ---- the figures


def test_figures_by_a_loop(run: Path) -> None:
    tree = json.loads((run / runs.METRICS).read_text())
    judged, model = judge(run), Embedder.load(run)
    assert not judged.told
    assert (judged.labels == -1).all()
    assert (judged.split, len(judged.z), len(judged.gallery)) == ("test", 25, 75)
    views = Views(judged.queries, np.arange(25)).at(np.arange(25))
    ranks = np.array(slow_ranks(judged.z, model.transform(views), np.arange(25), "cosine"))
    assert ranks.max() > 1
    expected = {f"recall@{k}": np.mean(ranks <= k) for k in (1, 5, 10)} | {"mrr": np.mean(1 / ranks)}
    for name, value in expected.items():
        assert tree["views"][name] == pytest.approx(value)
        low, high = tree["confidence"]["views"][name]
        assert low <= value <= high
    assert tree["views"]["changes"] == {"degrees": 15.0, "crop": 0.7, "brightness": 0.3}
    assert tree["views"]["changes"] == {key: value for key, value in dataclasses.asdict(CHANGES).items() if value}
    pixels = np.asarray(judged.queries.images).reshape(25, -1) / 255.0
    plain = np.array(slow_ranks(pixels, views.reshape(25, -1) / 255.0, np.arange(25), "cosine"))
    assert tree["baselines"]["pixels"]["views"]["recall@1"] == pytest.approx(np.mean(plain <= 1))
    assert tree["baselines"]["pca"]["dimensions"] == 8
    z, seen = judged.z.astype(np.float64), model.transform(views).astype(np.float64)
    assert tree["geometry"]["alignment"] == pytest.approx(np.mean(np.sum((z - seen) ** 2, axis=1)), rel=1e-4)
    assert not {"classification", "retrieval", "verification", "clustering", "calibration", "left_out"} & set(tree)


def test_copies_are_counted_and_figures_given_without_them(run: Path, tmp_path: Path) -> None:
    images = shapes(30, seed=8)
    pixels = np.array(images.images)
    pixels[COPIED] = pixels[0]
    asked = ImageSet(images=pixels, name="asked")
    tree = verbs.evaluate(copied(run, tmp_path), asked)
    leaks = tree["leaks"]
    assert (leaks["exact"], leaks["near"]) == (2, 0)
    assert "differing_labels" not in leaks
    assert {(pair["query"], pair["gallery"]) for pair in leaks["examples"]} == {("0", "7"), ("7", "0")}
    assert leaks["figures"]["all"] == {"queries": 30, **{key: tree["views"][key] for key in tree["views"] if key != "changes"}}
    judged = judge(run, asked)
    found = look_for_views(judged)
    rest = np.delete(found.ranks, [0, COPIED])
    assert leaks["figures"]["without"]["queries"] == 28
    assert leaks["figures"]["without"]["recall@1"] == pytest.approx(np.mean(rest == 1))
    assert found.ranks[0] >= 2  # the copy stands before it
    assert "copies in the gallery: 2 images are there to the pixel, 0 nearly" in show.figures(tree)


def copied(run: Path, place: Path) -> Path:
    return Path(shutil.copytree(run, place / "copy"))


def test_the_missed_are_those_that_another_image_is_nearest_to(run: Path) -> None:
    judged = judge(run)
    found = look_for_views(judged)
    scores = found.z.astype(np.float64) @ judged.z.astype(np.float64).T
    assert found.first.tolist() == scores.argmax(axis=1).tolist()
    missed = found.missed(100)
    assert sorted(missed) == np.flatnonzero(scores.argmax(axis=1) != np.arange(25)).tolist()
    assert (np.diff(found.ranks[missed]) <= 0).all()
    np.testing.assert_array_equal(found.missed(3), missed[:3])


def test_another_run_stands_beside_it(run: Path, tmp_path: Path) -> None:
    tree = verbs.evaluate(copied(run, tmp_path), baseline=str(run))
    beside = tree["baselines"]["model"]
    assert beside["name"] == str(run)
    assert beside["views"] == pytest.approx({key: tree["views"][key] for key in beside["views"]})


def test_images_of_a_run_with_classes_need_none(tmp_path: Path) -> None:
    verbs.train(shapes(60), recipe=Recipe.from_dict(TINY), out=tmp_path / "run")
    asked = dataclasses.replace(shapes(20, seed=1), labels=None, classes=(), name="bare")
    tree = verbs.evaluate(tmp_path / "run", asked)
    assert tree["data"]["queries"] == tree["data"]["gallery"] == 20
    assert tree["views"]["recall@10"] > 0.4
    assert not (set(tree) & {"classification", "calibration"})
    assert report(tmp_path / "run", asked)["left_out"]["confusion"] == "the images have no labels"


def test_one_image_cannot_be_missed(run: Path) -> None:
    with pytest.raises(InputError, match="1 image without a label: to be found again among others, it takes at least 2"):
        verbs.evaluate(run, ImageSet(images=np.array(shapes(1).images), name="one"))


def test_too_many_images_have_no_baselines(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearfar.evaluation.baselines.MOST_GALLERY", 10)
    tree = verbs.evaluate(copied(run, tmp_path))
    assert "baselines" not in tree
    assert "at most 10" in tree["left_out"]["baselines"]
    assert "without baselines: the gallery has 25 images" in show.figures(tree)


# ---- what people see


def test_the_screen_and_the_card(run: Path, tmp_path: Path, cli: Cli) -> None:
    copy = copied(run, tmp_path)
    code, out, err = cli("evaluate", copy)
    assert (code, err) == (0, "")
    tree = json.loads((copy / runs.METRICS).read_text())
    assert "themselves, which have no labels; each is looked for by a changed view of it" in out
    (line,) = [line.split() for line in out.splitlines() if "views" in line.split()[:1]]
    pca, pixels = (tree["baselines"][name]["views"]["recall@1"] for name in ("pca", "pixels"))
    assert line[:3] == ["views", "recall@1", f"{tree['views']['recall@1']:.4f}"]
    assert line[-2:] == [f"{pca:.4f}", f"{pixels:.4f}"]
    card = (copy / runs.CARD).read_text()
    assert f"an image looked for by a changed view of it | {tree['views']['recall@1']:.4f} (" in card
    assert "type: recall_at_1" in card


def test_the_page(run: Path) -> None:
    tree = json.loads((run / runs.METRICS).read_text())
    reader = Reader((run / "report.html").read_text())
    assert "have no labels, so nothing is said of classes" in reader.text
    assert f"{100 * tree['views']['recall@1']:.2f} %" in reader.text
    for key, title in (("recall@1", "Recall@1"), ("mrr", "MRR")):
        row = [cell.strip() for cell in reader.row(f"{title} ")]
        assert row[1].split()[0] == f"{tree['views'][key]:.4f}"
        assert row[2:] == [f"{tree['baselines'][name]['views'][key]:.4f}" for name in ("pca", "pixels")]
    assert [each["id"] for each in reader.all("section")] == [
        *("summary", "trained", "figures", "copies", "missed", "plots", "time", "again")
    ]
    shown = [str(each["id"]).removeprefix("plot-") for each in reader.all("figure") if "id" in each]
    assert {"loss", "neighbors", "views", "views_missed", "pca_2d", "pca_3d", "tsne"} == set(shown)
    assert {path.stem for path in (run / "plots").glob("*.png")} == set(shown)
    assert len(pictures(reader)) == len(shown)
    assert [cell.strip() for cell in reader.row("confusion")] == ["confusion", "the images have no labels"]
    links = {str(each["href"])[1:] for each in reader.all("a")}
    assert links <= {str(attributes["id"]) for _, attributes in reader.elements if "id" in attributes}


def test_a_report_with_labels_takes_the_place_of_one_without(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    report(copy, shapes(30, seed=9))
    assert not (copy / "plots" / "views.png").exists()
    assert (copy / "plots" / "confusion.png").exists()


def test_its_embeddings_go_to_the_projector_without_classes(run: Path, tmp_path: Path) -> None:
    assert verbs.export(run, out=tmp_path / "shown")["images"] == 25
    with (tmp_path / "shown" / "metadata.tsv").open() as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[0] == ["id", "row"]
    assert len(rows) == 26
