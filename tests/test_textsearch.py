"""A run that learned from captions, used: images for texts, captions for images, classes by words, figures, and errors."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import CLIP, PHRASES, SQUARES, TINY, shapes, squares, write_parquet

import nearfar as nf
from nearfar import runs, verbs
from nearfar.errors import InputError
from nearfar.evaluation.views import Views
from nearfar.recipe import Recipe
from nearfar.report import report
from nearfar.report.tables import towers_table
from nearfar.runs import hub
from nearfar.search import NeighborIndex
from nearfar.training.captions import captions_of

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet with the splits train and test, an image of each class, and a recipe."""
    folder = tmp_path_factory.mktemp("captioned")
    write_parquet(squares(160), folder / "data" / "train.parquet")
    write_parquet(squares(80, seed=5), folder / "data" / "test.parquet")
    held = squares(80, seed=6)
    for number, name in enumerate(SQUARES):
        row = int(np.flatnonzero(held.require_labels() == number)[0])
        Image.fromarray(held.images[row, 0]).save(folder / f"{name.replace(' ', '-')}.png")
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    verbs.train(data / "data", recipe=Recipe.from_dict(CLIP), out=data / "run", seed=1)
    verbs.evaluate(data / "run")
    return data / "run"


@pytest.fixture(scope="module")
def plain(data: Path) -> Path:
    """A run without a text tower."""
    verbs.train(data / "data", recipe=Recipe.from_dict(TINY), out=data / "plain", seed=1)
    return data / "plain"


# ---- texts


@pytest.mark.parametrize("name", SQUARES)
def test_a_text_finds_its_images(run: Path, name: str) -> None:
    tone, side = name.split()
    (found,) = verbs.search(run, [f"a {tone} one at the {side}"], k=5)  # words that were never read together
    assert found["query"] == f"a {tone} one at the {side}"
    assert [one["label"] for one in found["neighbors"]] == [name] * 5
    scores = [one["score"] for one in found["neighbors"]]
    assert scores == sorted(scores, reverse=True)


def test_texts_through_the_command_line(run: Path, cli: Cli) -> None:
    code, out, err = cli("search", run, "a dim square on the left", "bright, to the right", "-k", "3", "--json")
    assert (code, err) == (0, "")
    tree = json.loads(out)
    assert [one["query"] for one in tree] == ["a dim square on the left", "bright, to the right"]
    assert {one["label"] for one in tree[1]["neighbors"]} == {"bright right"}
    code, out, _ = cli("search", run, "a dim square on the left", "-k", "2")
    assert out.splitlines()[0] == "a dim square on the left"
    assert "dim left" in out


def test_captions_for_an_image_are_the_nearest_of_all_by_a_slow_loop(run: Path, data: Path, cli: Cli) -> None:
    picture = data / "dim-right.png"
    (found,) = verbs.search(run, [picture], k=4, to="text")
    model = nf.Embedder.load(run)
    train = nf.load_images(data / "data", "train")
    captions = captions_of(train).distinct
    z = model.transform(nf.load_images(picture))[0].astype(np.float64)
    scores = {text: float(z @ model.transform_text([text])[0].astype(np.float64)) for text in captions}
    wanted = sorted(scores, key=lambda text: -scores[text])[:4]
    assert [one["text"] for one in found["captions"]] == wanted
    assert [one["score"] for one in found["captions"]] == pytest.approx([scores[text] for text in wanted], abs=1e-5)
    assert {text for text in wanted} <= {phrase.format(tone="dim", side="right") for phrase in PHRASES}
    code, out, _ = cli("search", run, picture, "--to", "text", "-k", "1")
    assert (code, out.splitlines()[1].split(maxsplit=1)[1]) == (0, wanted[0])


def test_classes_by_words(run: Path, data: Path, cli: Cli, tmp_path: Path) -> None:
    pictures = [data / f"{name.replace(' ', '-')}.png" for name in SQUARES]
    found = verbs.predict(run, pictures, templates=["a {} one"])
    assert [one["label"] for one in found] == list(SQUARES)
    assert all(0.25 < one["probability"] <= 1 for one in found)
    halves = verbs.predict(run, pictures, classes=["bright", "dim"], templates=["a {} square", "it is {}"])
    assert [one["label"] for one in halves] == ["bright", "bright", "dim", "dim"]
    prompts = tmp_path / "prompts.toml"
    prompts.write_text('"on the left" = ["on the left", "to the left"]\nright = "on the right"\n')
    code, out, err = cli("predict", run, *pictures, "--prompts", prompts, "--json")
    assert (code, err) == (0, "")
    assert [one["label"] for one in json.loads(out)] == ["on the left", "right"] * 2
    code, out, _ = cli("predict", run, data / "data", "--classes", ", ".join(SQUARES), "--template", "a {} square")
    assert code == 0
    right = int(out.splitlines()[-1].split()[0])
    assert right > 72, out.splitlines()[-1]
    table = tmp_path / "said.csv"
    assert cli("predict", run, pictures[0], "--classes", "bright,dim", "--out", table)[0] == 0
    assert table.read_text().splitlines()[1].split(",")[1] == "bright"


def test_a_text_that_is_too_long_is_cut_and_that_is_said(run: Path, cli: Cli, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="nearfar"):
        verbs.search(run, ["a dim square on the left " * 20])
    assert caplog.messages == ["1 of the texts are longer than 12 pieces, as text.length says; their ends are not read"]


# ---- the run folder


def test_what_is_saved_is_what_is_loaded(run: Path, tmp_path: Path) -> None:
    model = nf.Embedder.load(run)
    assert model.has_text
    texts = ["a dim square", "something else"]
    z = model.transform_text(texts)
    assert z.dtype == np.float32
    assert np.allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    again = nf.Embedder.load(model.save(tmp_path / "copy"))
    assert np.array_equal(again.transform_text(texts), z)
    assert again.temperature_ == model.temperature_ == json.loads((run / runs.CONFIG).read_text())["text"]["temperature"]
    images = squares(20, seed=9)
    fitted = nf.Embedder(Recipe.from_dict(CLIP), epochs=1).fit(images)
    assert fitted.transform_text(texts).shape == (2, 8)


def test_the_same_seed_gives_the_same_files(run: Path, data: Path, tmp_path: Path) -> None:
    verbs.train(data / "data", recipe=Recipe.from_dict(CLIP), out=tmp_path / "again", seed=1)
    for name in (runs.MODEL, runs.TEXT, runs.TOKENIZER, "texts/index.json"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize("part", ["text.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_damaged_text_tower_is_refused_in_a_line(run: Path, tmp_path: Path, part: str, how: str) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    if how == "gone":
        (copy / part).unlink()
    else:
        content = bytearray((copy / part).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / part).write_bytes(content)
    with pytest.raises(InputError, match=part.replace(".", r"\.")) as caught:
        verbs.search(copy, ["a dim square"])
    assert "\n" not in str(caught.value)


def test_captions_of_another_model_are_refused(run: Path, data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    index = NeighborIndex.load(copy / runs.TEXTS)
    index.save(copy / runs.TEXTS, model_hash="0" * 64)
    with pytest.raises(InputError, match="model"):
        verbs.search(copy, [data / "dim-left.png"], to="text")


def test_all_files_go_to_the_hub_and_the_card_shows_how_to_search(run: Path) -> None:
    files = hub.own_files(run)
    assert {"text.safetensors", "tokenizer.json", "texts/index.json"} <= set(files)
    assert {name.partition("-")[0] for name in files if name.startswith("texts/")} == {
        "texts/index.json",
        "texts/vectors",
        "texts/ids",
        "texts/names",
    }
    card = (run / runs.CARD).read_text()
    assert 'nearfar search RUN "what to look for"' in card
    assert "and their captions" in card
    assert "| Text to image, recall at 1 |" in card
    assert "| Zero-shot accuracy, by the names of the classes |" in card


# ---- figures


def test_figures_by_slow_loops(run: Path, data: Path) -> None:
    tree = json.loads((run / runs.METRICS).read_text())["towers"]
    test, model = nf.load_images(data / "data", "test"), nf.Embedder.load(run)
    assert test.texts is not None
    captions = captions_of(test).distinct
    z, texts = model.transform(test).astype(np.float64), model.transform_text(captions).astype(np.float64)
    scores = z @ texts.T
    there = [any(captions[column] in test.texts[row] for column in np.argsort(-scores[row])[:5]) for row in range(len(test))]
    back = [
        any(captions[column] in test.texts[row] for row in np.argsort(-scores[:, column])[:5])
        for column in range(len(captions))
    ]
    assert tree["images"] == 80
    assert tree["captions"] == len(captions)
    assert tree["image_to_text"]["recall@5"] == pytest.approx(np.mean(there))
    assert tree["text_to_image"]["recall@5"] == pytest.approx(np.mean(back))
    assert tree["zero_shot"]["accuracy"] > 0.9
    assert tree["zero_shot"]["precision@10"] > 0.9
    assert (tree["zero_shot"]["classes"], tree["zero_shot"]["templates"]) == (4, ["a {} square"])


def test_images_with_captions_and_no_labels(data: Path, tmp_path: Path, cli: Cli) -> None:
    for split, images in (("train", squares(120)), ("test", squares(40, seed=5))):
        bare = dataclasses.replace(images, labels=None, classes=())
        write_parquet(bare, tmp_path / "data" / f"{split}.parquet")
    recipe = tmp_path / "tiny.toml"
    from nearfar.runs.reproduce import recipe_toml

    recipe.write_text(recipe_toml(Recipe.from_dict(CLIP).with_changes({"train.epochs": 3}).to_dict()))
    code, out, err = cli("train", tmp_path / "data", "--recipe", recipe, "--out", tmp_path / "run")
    assert code == 0, err
    assert "without labels, 20 different captions" in out
    assert f"next: nearfar evaluate {tmp_path}/run" in out
    code, out, err = cli("evaluate", tmp_path / "run")
    assert (code, err) == (0, "")
    assert "text to image" in out
    tree = json.loads((tmp_path / "run" / runs.METRICS).read_text())
    # As images, by views of them.
    model, test = nf.Embedder.load(tmp_path / "run"), nf.load_images(tmp_path / "data", "test")
    near = model.transform(Views(test, np.arange(40)).at(np.arange(40))) @ model.transform(test).T
    assert tree["views"]["recall@1"] == pytest.approx(((near >= near.diagonal()[:, None]).sum(axis=1) == 1).mean())
    assert "classification" not in tree
    assert 0 <= tree["towers"]["text_to_image"]["recall@1"] <= 1
    (found,) = verbs.search(tmp_path / "run", ["dim left"], k=2)
    assert [one["label"] for one in found["neighbors"]] == [None, None]
    code, out, err = cli("explore", tmp_path / "run", "--map-only")
    assert code == 0, err
    assert "of 160 images (120 gallery, 40 test)" in out
    assert "their neighbours say" not in out
    code, _, err = cli("predict", tmp_path / "run", data / "dim-left.png", "--template", "a {}")
    assert (code, err) == (2, "nearfar: the run knows no classes; name them with classes (--classes A,B,...)\n")


def test_a_report_says_how_images_and_texts_find_each_other(run: Path) -> None:
    found = json.loads((run / runs.METRICS).read_text())["towers"]
    shown = towers_table(found)
    assert f"{found['text_to_image']['recall@1']:.4f}" in shown
    assert f"{100 * found['zero_shot']['accuracy']:.2f} %" in shown
    assert towers_table({"zero_shot": found["zero_shot"]}).startswith("<p>")


@pytest.mark.slow
def test_a_report_of_a_run_with_towers(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    report(copy)
    page = (copy / "report.html").read_text()
    assert "Images and texts" in page
    assert "Text to image" in page


# ---- what users do wrong


def test_searching_by_text_without_a_tower(plain: Path, data: Path, cli: Cli) -> None:
    code, out, err = cli("search", plain, "a striped shirt")
    assert (code, out) == (2, "")
    assert err == f"nearfar: 'a striped shirt' does not exist, and cannot be a text to search for: {plain} has no text tower\n"
    code, _, err = cli("search", plain, data / "dim-left.png", "--to", "text")
    assert (code, err.count("\n")) == (2, 1)
    assert "this run has no text tower" in err
    code, _, err = cli("predict", plain, data / "dim-left.png", "--classes", "a,b")
    assert (code, "this run has no text tower" in err) == (2, True)


def test_errors_are_one_line(run: Path, data: Path, tmp_path: Path, cli: Cli) -> None:
    picture, bad = data / "dim-left.png", tmp_path / "bad.toml"
    bad.write_text("a = 5\n")
    same = tmp_path / "same.toml"
    same.write_text('a = "x"\nb = ["x"]\n')
    cases: list[tuple[list[Any], str]] = [
        (["search", run, "gone.png"], "gone.png"),
        (["search", run, "a dim square", picture], "search for one kind at a time"),
        (["search", run, "  "], "an empty text"),
        (["predict", run, picture, "--classes", "a,,b"], "classes[1] is ''"),
        (["predict", run, picture, "--classes", "a,a"], "'a' is named twice"),
        (["predict", run, picture, "--template", "a photo"], "'a photo' has no {}"),
        (["predict", run, picture, "--classes", "a", "--prompts", bad], "give one of the two"),
        (["predict", run, picture, "--prompts", bad], "a is 5; expected prompts"),
        (["predict", run, picture, "--prompts", same], "have the same prompts"),
        (["predict", run, picture, "--prompts", tmp_path / "gone.toml"], "does not exist"),
        (["search", run, picture, "--to", "text", "-k", "100000"], "k"),
    ]
    for arguments, words in cases:
        code, out, err = cli(*arguments)
        assert (code, out) == (2, ""), arguments
        assert words in err
        assert err.count("\n") == 1


def test_training_without_captions_is_refused_before_anything_is_written(tmp_path: Path, cli: Cli) -> None:
    write_parquet(shapes(30), tmp_path / "bare.parquet")
    code, _, err = cli("train", tmp_path / "bare.parquet", "--recipe", "clip", "--out", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "has no captions" in err
    images = squares(30)
    assert images.texts is not None
    write_parquet(images.with_texts([*images.texts[:28], None, ""]), tmp_path / "gaps.parquet")
    settings = ["--set", "encoder.kind=mlp", "train.epochs=1", "data.test=0"]
    code, _, err = cli("train", tmp_path / "gaps.parquet", "--recipe", "clip", "--out", tmp_path / "run", *settings)
    assert code == 2
    assert "2 of 30 images have no caption: 28, 29; write them, or leave" in err
    assert not (tmp_path / "run").exists()
    code, out, _ = cli(
        "train", tmp_path / "gaps.parquet", "--recipe", "clip", "--out", tmp_path / "run", "--skip-bad", *settings
    )
    assert code == 0
    assert "2 images without a caption were not learned from" in out
    assert len(NeighborIndex.load(tmp_path / "run" / runs.INDEX)) == 30
