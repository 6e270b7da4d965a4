"""Maps of runs that know few labels, or none: what is not known is not said, and the rest is as ever."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from explore.pages import loaded, served
from PIL import Image
from playwright.sync_api import Browser, expect
from samples import TINY, shapes
from starlette.testclient import TestClient

from nearfar import verbs
from nearfar.classify import winners
from nearfar.explore import atlas, explore
from nearfar.explore.app import make_app
from nearfar.explore.make import make_map
from nearfar.explore.serve import shown
from nearfar.explore.store import Map, read_map
from nearfar.explore.subject import Subject, open_subject
from nearfar.labelissues.scores import LIKELY
from nearfar.pictures import as_png
from nearfar.recipe import Recipe

VIEWS: dict[str, Any] = {
    **TINY,
    "loss": {"kind": "nt-xent", "temperature": 0.2},
    "sampling": {"kind": "views", "batch_size": 30},
    "augment": {"shift": 1, "noise": 0.05},
    "train": {"epochs": 2, "learning_rate": 0.01},
}
FEW: dict[str, Any] = {**TINY, "data": {"size": [12, 12], "channels": 1, "labelled": 0.4, "test": 0.25}}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of images without labels, which lies beside it."""
    folder = tmp_path_factory.mktemp("bare") / "run"
    (folder.parent / "images").mkdir()
    for row, pixels in enumerate(shapes(60).images):
        (folder.parent / "images" / f"{row:03d}.png").write_bytes(as_png(np.asarray(pixels)))
    verbs.train(str(folder.parent / "images"), recipe=Recipe.from_dict(VIEWS), out=folder)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Map]:
    """A run that was told the labels of some of its images, and its map."""
    folder = tmp_path_factory.mktemp("few")
    for row, (pixels, label) in enumerate(zip((images := shapes(160)).images, images.require_labels(), strict=True)):
        (folder / "images" / images.classes[label]).mkdir(parents=True, exist_ok=True)
        (folder / "images" / images.classes[label] / f"{row:03d}.png").write_bytes(as_png(np.asarray(pixels)))
    verbs.train(str(folder / "images"), recipe=Recipe.from_dict(FEW), out=folder / "run")
    subject = open_subject(folder / "run")
    return subject, make_map(subject)


@pytest.fixture(scope="module")
def opened(bare: Path) -> tuple[Subject, Map]:
    subject = open_subject(bare)
    return subject, make_map(subject)


def test_images_without_a_label_have_no_say(few: tuple[Subject, Map]) -> None:
    """Oracle: the labelled rows of the index searched by a loop in float64."""
    subject, made = few
    labels, vectors = np.asarray(subject.index.labels), np.asarray(subject.index.vectors, dtype=np.float64)
    assert 0 < (labels >= 0).sum() < len(labels) == made.gallery
    np.testing.assert_array_equal(made.labels[: made.gallery], labels)
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, -np.inf)
    np.testing.assert_allclose(made.scores[: made.gallery], np.sort(alike, axis=1)[:, ::-1][:, :20], atol=1e-6)
    alike[:, labels < 0] = -np.inf
    for row in range(made.gallery):
        near = np.argsort(-alike[row], kind="stable")[:5]
        assert made.predictions[row] == winners(labels[near][None], alike[row, near][None])[0]
    assert (made.suspicion[made.labels < 0] == 0).all()
    near = np.argsort(-alike, axis=1, kind="stable")[:, :20]
    for row in np.flatnonzero(labels >= 0):
        others = labels[near[row][labels[near[row]] >= 0]]
        if not (others == labels[row]).any():
            assert made.suspicion[row] > 1 - LIKELY
    np.testing.assert_array_equal(made.wrong, (made.labels >= 0) & (made.labels != made.predictions))


def test_what_was_kept_is_read_again(few: tuple[Subject, Map], opened: tuple[Subject, Map]) -> None:
    for subject, made in (few, opened):
        kept = read_map(subject.folder)
        assert kept is not None
        np.testing.assert_array_equal(kept.labels, made.labels)
        np.testing.assert_array_equal(kept.predictions, made.predictions)
        before = (subject.folder / "map.parquet").stat().st_mtime_ns
        make_map(open_subject(subject.folder))
        assert (subject.folder / "map.parquet").stat().st_mtime_ns == before


def test_the_images_judged_by_get_the_answers_of_predict(few: tuple[Subject, Map]) -> None:
    subject, made = few
    (part,) = subject.parts
    said = verbs.predict(subject.folder, [part.images], precision=0)
    assert [made.class_of(number) for number in made.predictions[made.gallery :]] == [one["voted"] for one in said]
    np.testing.assert_allclose(made.probability[made.gallery :], [one["probability"] for one in said], atol=1e-5)


def test_a_map_without_labels_has_neighbours_and_no_votes(opened: tuple[Subject, Map], bare: Path, tmp_path: Path) -> None:
    _, made = opened
    assert (len(made), made.gallery, made.classes) == (60, 48, [])
    subject, vectors = opened[0], np.asarray(opened[0].index.vectors, dtype=np.float64)
    rest = subject.model.transform(subject.parts[0].images).astype(np.float64)
    alike = np.concatenate([vectors, rest]) @ vectors.T
    np.fill_diagonal(alike, -np.inf)
    np.testing.assert_allclose(made.scores, np.sort(alike, axis=1)[:, ::-1][:, :20], atol=1e-6)
    for column, value in ((made.labels, -1), (made.predictions, -1), (made.probability, 0), (made.suspicion, 0)):
        assert (column == value).all()
    result = explore(bare, map_only=True)
    assert (result["points"], result["wrong"]) == (60, None)
    assert shown(result).count("\n") == 0
    table = pq.read_table(atlas.write(*opened, tmp_path))
    for column in ("label", "prediction", "right"):
        assert table[column].null_count == 60
    assert table["text"][0].as_py() == f"{made.names[0]}, gallery"


def test_the_server_says_what_is_near_and_no_more(opened: tuple[Subject, Map], bare: Path) -> None:
    client = TestClient(make_app(*opened), base_url="http://127.0.0.1")
    about = client.get("/about").json()
    assert (about["classes"], about["votes"]) == ([], 0)
    assert client.get("/points/7/neighbors?k=3").json()["neighbors"][0]["label"] is None
    own = Path(opened[1].names[7]).name
    said = client.post("/search?k=3", content=(bare.parent / "images" / own).read_bytes()).json()
    assert (said["label"], said["voted"], said["probability"]) == (None, None, None)
    assert said["neighbors"][0]["name"].endswith(own)
    assert said["neighbors"][0]["score"] == pytest.approx(1.0, abs=1e-5)


def test_the_page_without_labels(opened: tuple[Subject, Map], browser: Browser, bare: Path, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    with served(*opened) as address, loaded(context, address) as page:
        assert page.locator("#colour option").all_text_contents() == ["split"]
        expect(page.locator("#legend")).to_contain_text("gallery")
        expect(page.locator("#map")).to_have_attribute("aria-label", "Map of 60 images without labels")
        page.set_input_files("#file", str(bare.parent / "images" / Path(opened[1].names[11]).name))
        expect(page.locator("#neighbors li")).to_have_count(10)
        expect(page.locator("#image dl")).to_have_text("")
        expect(page.locator("#neighbors li").first).to_contain_text("1.0000")
        page.locator("#neighbors button").first.click()
        expect(page.locator("#image dt")).to_have_text(["label", "split"])
        expect(page.locator("#image dd")).to_have_text(["none", "gallery"])
        page.click("#tab-selection")
        expect(page.locator("#selection .offers button")).to_have_text(["What is in view"])
        page.click("#selection .offers button")
        expect(page.locator("#selected-count")).to_have_text("60")
        page.locator("#selection .modes button").last.click()
        assert page.locator("#selection thead th").all_text_contents() == ["picture", "name", "split"]
        assert page.locator("#order option").all_text_contents() == ["as they come"]
        with page.expect_download() as waiting:
            page.click("#csv")
        waiting.value.save_as(tmp_path / "some.csv")
        rows = list(csv.DictReader(io.StringIO((tmp_path / "some.csv").read_text())))
        assert len(rows) == 60
        assert {(row["label"], row["prediction"], row["right"], row["probability"], row["suspicion"]) for row in rows} == {
            ("",) * 5
        }
        page.click("#tab-filters")
        expect(page.locator("#filters legend")).to_have_text(["Split"])
        page.screenshot(path=tmp_path / "page.png")
    assert len(np.unique(np.asarray(Image.open(tmp_path / "page.png").convert("L")))) > 20
    context.close()


def test_the_page_with_few_labels(few: tuple[Subject, Map], browser: Browser) -> None:
    _, made = few
    unknown = int((made.labels < 0).sum())
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    with served(*few) as address, loaded(context, address) as page:
        expect(page.locator("#legend .chip").last).to_have_text(f"no label{unknown}")
        page.select_option("#colour", "right")
        told, wrong = int((made.labels >= 0).sum()), int(made.wrong.sum())
        shown_counts = [text for text in (f"right{told - wrong}", f"wrong{wrong}") if not text.endswith("g0")]
        expect(page.locator("#legend .chip")).to_have_text(shown_counts)
        page.fill("#text", made.names[int(np.flatnonzero(made.labels < 0)[0])])
        page.keyboard.press("Enter")
        expect(page.locator("#image dt")).to_have_text(["label", "prediction", "probability", "split"])
        expect(page.locator("#image dd").first).to_have_text("none")
    context.close()
