"""The report of a run: what it says is what was measured, what it shows is what there is, and nothing in it runs or loads."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from htmlreader import Reader, pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import TINY, shapes

from nearfar import InputError, show, verbs
from nearfar.cli import main
from nearfar.data import ImageSet
from nearfar.measuring.judging import gallery_images, judge
from nearfar.recipe import Recipe, load_recipe, parse_changes, recipe_names
from nearfar.report import page, report, tables
from nearfar.report.gather import answer, mean_cosines, sample_pairs
from nearfar.report.pictures import Album
from nearfar.runs.reproduce import recipe_file, recipe_toml, train_command

EVIL = "<script>alert(1)</script>"
CLASSES = (EVIL, 'b & "c"', "\u202eplain</td>")


def images(count: int = 90, seed: int = 0, **more: Any) -> ImageSet:
    """Bars whose classes and ids would run, if they were not escaped."""
    plain = shapes(count, seed=seed, **more)
    names = CLASSES if len(plain.classes) == 3 else plain.classes
    ids = [f'"><img src=http://nowhere.example/{row} onerror=alert(2)>' for row in range(count)]
    return ImageSet(images=plain.images, labels=plain.labels, classes=names, ids=np.array(ids), name="bars <b>")


def trained(folder: Path, source: ImageSet, /, **sections: dict[str, Any]) -> Path:
    verbs.train(source, recipe=Recipe.from_dict({**TINY, **sections}), out=folder)
    return folder


class Made(NamedTuple):
    folder: Path
    result: dict[str, Any]
    content: page.Content
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run with a validation part and mistakes, what `report` returned for it, and what the page was made of."""
    rendered: list[Any] = []

    def remember(*parts: Any) -> str:
        rendered.extend(parts)
        return page.render(*parts)

    folder = trained(
        tmp_path_factory.mktemp("runs") / "bars",
        images(),
        data={"size": [12, 12], "channels": 1, "validation": 0.2, "test": 0.4},
        train={"epochs": 2, "learning_rate": 1e-4},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nearfar.report.write.render", remember)
        result = report(folder, images())
    return Made(folder, result, *rendered)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at other things: drawing takes seconds."""
    monkeypatch.setattr("nearfar.report.write.draw_plots", lambda *_: Album())


def read(folder: Path) -> Reader:
    return Reader((folder / "report.html").read_text())


def test_the_page_is_one_small_file_that_loads_and_runs_nothing(made: Made) -> None:
    folder, result = made.folder, made.result
    text = (folder / "report.html").read_text()
    reader = Reader(text)
    assert result["bytes"] == len(text.encode()) < 5_000_000
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base", "svg", "b.png"}
    ids = {attributes["id"] for _, attributes in reader.elements if "id" in attributes}
    for tag, attributes in reader.elements:
        assert not [key for key in attributes if key.startswith("on")], (tag, attributes)
        if "src" in attributes:
            assert str(attributes["src"]).startswith("data:image/png;base64,")
        if "href" in attributes:
            assert str(attributes["href"])[1:] in ids
            assert str(attributes["href"])[0] == "#"
        for key in ("srcset", "action", "poster", "data"):
            assert key not in attributes
    assert not re.search(r"url\(|@import", text)
    policy = next(each["content"] for each in reader.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")
    assert reader.all("html") == [{"lang": "en"}]
    assert [len(reader.all(tag)) for tag in ("h1", "main", "header", "footer", "title")] == [1] * 5
    for section in reader.all("section"):
        assert section["aria-labelledby"] in ids


def test_every_picture_has_words_and_is_a_whole_png(made: Made) -> None:
    folder, result = made.folder, made.result
    reader = read(folder)
    for attributes, png in zip(reader.all("img"), pictures(reader), strict=True):
        assert len(str(attributes["alt"])) > 10
        with Image.open(io.BytesIO(png)) as picture:
            picture.load()
            assert picture.format == "PNG"
            ratio = int(str(attributes["width"])) / int(str(attributes["height"]))
            assert ratio == pytest.approx(picture.width / picture.height, rel=0.02)
    assert len(reader.all("table")) == len(reader.all("caption")) == len(reader.all("thead"))
    shown = [str(each["id"]).removeprefix("plot-") for each in reader.all("figure") if "id" in each]
    # The sheet of mistakes is on the page as pictures of their own.
    assert sorted([*shown, "worst_mistakes"]) == sorted(result["plots"])
    assert len(reader.all("figcaption")) == len(reader.all("figure"))
    in_files = {(folder / "plots" / f"{name}.png").read_bytes() for name in shown}
    assert in_files <= set(pictures(reader))


def test_names_that_look_like_html_are_text(made: Made) -> None:
    folder, result = made.folder, made.result
    reader = read(folder)
    assert EVIL in reader.text
    assert reader.row(EVIL)[0].strip() == EVIL
    assert 'b & "c"' in reader.text
    assert "bars <b>" in reader.text
    assert "<img src=http://nowhere.example/" in reader.text
    per_class = result["figures"]["classification"]["per_class"]
    assert int(reader.row(EVIL)[1]) == per_class[EVIL]["queries"]
    assert [float(cell) for cell in reader.row(EVIL)[2:5]] == pytest.approx(
        [per_class[EVIL][key] for key in ("precision", "recall", "f1")], abs=5e-5
    )


def test_figures_on_the_page_are_those_of_metrics_json(made: Made) -> None:
    folder, result = made.folder, made.result
    tree = json.loads((folder / "metrics.json").read_text())
    assert tree == result["figures"]
    reader = read(folder)
    seen = 0
    for section, key, title, _ in tables.FIGURES:
        value = tree.get(section, {}).get(key)
        if value is None:
            continue
        row = reader.row(title.format(k=5) + " ")
        expected = f"{value:.4f}".replace("-", "\N{MINUS SIGN}")
        assert row[1].split()[0] == expected
        interval = tree["confidence"].get(section, {}).get(key)
        if interval:
            assert row[1].split()[1:] == [f"{interval[0]:.4f}", "to", f"{interval[1]:.4f}"]
        if section in ("classification", "retrieval", "verification") or key in ("rand", "adjusted_rand", "nmi"):
            for place, name in ((2, "pca"), (3, "pixels")):
                assert row[place].strip() == f"{tree['baselines'][name][section][key]:.4f}"
        seen += 1
    assert seen == 24
    assert f"{100 * tree['classification']['accuracy']:.2f} %" in reader.text
    card = (folder / "README.md").read_text()
    assert f"| {tree['classification']['accuracy']:.4f} (" in card


def test_mistakes_are_shown_with_what_misled_the_model(made: Made) -> None:
    folder, result = made.folder, made.result
    judged = judge(folder, images())
    answers = answer(judged, 5)
    wrong = int((answers.predicted != judged.labels).sum())
    assert wrong > 3, "the fixture makes mistakes"
    assert result["figures"]["classification"]["accuracy"] == pytest.approx(1 - wrong / len(judged.labels))
    assert f"{wrong:,} of {len(judged.labels):,} images got a wrong class" in read(folder).text
    rows = answers.worst(judged.labels, 4)
    assert all(answers.predicted[rows] != judged.labels[rows])
    votes = answers.votes[rows]
    others = np.setdiff1d(np.flatnonzero(answers.predicted != judged.labels), rows)
    assert (np.diff(votes) <= 1e-9).all()
    assert votes.min() >= answers.votes[others].max(initial=0) - 1e-9
    near = answers.nearest_of_predicted(rows)
    gallery = gallery_images(judged)
    for row, at in zip(rows, near, strict=True):
        assert judged.gallery_labels[at] == answers.predicted[row]
        own = [
            where
            for where, code in zip(answers.rows[row], answers.codes[row], strict=True)
            if code == judged.gallery_labels[at]
        ]
        assert own[0] == at
        label = judged.classes[judged.gallery_labels[at]]
        assert gallery.classes[gallery.require_labels()[at]] == label
    asked = np.asarray(judged.queries.images[rows[:1]])[0, 0]
    with Image.open(io.BytesIO(pictures(read(folder))[0])) as first:
        assert np.array_equal(np.asarray(first), asked)


def test_a_report_touches_nothing_but_its_own_files(made: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "bars")
    (folder / "plots" / "scatter.png").write_bytes(b"of an earlier report")
    (folder / "plots" / "mine.png").write_bytes(b"mine")
    (folder / "notes.txt").write_text("mine too")
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = report(folder, images())
    after = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert set(before) - set(after) == {Path("plots/scatter.png")}
    assert set(after) <= set(before)
    changed = {str(path) for path in after if after[path] != before[path]}
    assert changed <= {"metrics.json", "report.html"}  # times differ; every plot is the same to the byte
    assert "plots/mine.png" in map(str, after)
    for name in result["plots"]:
        assert (folder / "plots" / f"{name}.svg").read_text().startswith("<?xml")
    ignored = ("timing", "baselines")
    first, second = made.result["figures"], result["figures"]
    assert {key: first[key] for key in first if key not in ignored} == {
        key: second[key] for key in second if key not in ignored
    }
    for name in ("pixels", "pca"):
        drop = {"seconds": 0}
        assert {**first["baselines"][name], **drop} == {**second["baselines"][name], **drop}


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "bars")
    earlier = (folder / "report.html").read_bytes()
    kept = made.content.album
    some = Album(plots={"loss": kept.plots["loss"]}, files={"loss": kept.files["loss"]})
    monkeypatch.setattr("nearfar.report.write.draw_plots", lambda *_: some)
    shutil.rmtree(folder / "plots")
    (folder / "plots").write_text("a file in the way")
    with pytest.raises(InputError, match=r"plots.*is a file"):
        report(folder, images())
    assert (folder / "report.html").read_bytes() == earlier


def test_a_run_whose_data_is_gone_says_so_in_one_line(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(made.folder)])
    _, err = capsys.readouterr()
    assert ended.value.code == 2
    assert len(err.splitlines()) == 1
    assert "bars <b>" in err
    with pytest.raises(InputError, match="no run folder"):
        report(tmp_path / "nothing")


def test_other_images_without_the_training_images_leave_out_what_needs_them(made: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "bars")
    plain = images(40, seed=5)
    other = ImageSet(images=plain.images, labels=plain.labels, classes=plain.classes, name="other")
    result = report(folder, other)
    assert set(result["left_out"]) == {"baselines", "leaks", "neighbors", "copies"}
    assert "not to be had" in result["left_out"]["neighbors"]
    tree = json.loads((folder / "metrics.json").read_text())
    assert not {"baselines", "leaks"} & set(tree)
    assert {"baselines", "leaks"} <= set(tree["left_out"])
    assert show.reported(result).count("without copies and baselines: the images that it was trained on are not to be had") == 1
    assert not (folder / "plots" / "neighbors.png").exists()
    reader = read(folder)
    assert reader.row("neighbors")[1].strip() == result["left_out"]["neighbors"]
    assert "Baselines were left out" in reader.text
    assert "They were not looked for" in reader.text
    assert len(reader.row("5-NN accuracy")) == 2


def test_training_images_that_changed_are_not_passed_off_as_the_gallery(made: Made) -> None:
    same = images()
    pixels = np.array(same.images)
    pixels[:, :, 0, 0] ^= 1
    changed = ImageSet(images=pixels, labels=same.labels, classes=same.classes, ids=same.ids, name=same.name)
    gallery_images(judge(made.folder, same))
    with pytest.raises(InputError, match="have changed"):
        gallery_images(judge(made.folder, changed))


def test_plane_embeddings_trained_on_pairs_get_maps_and_pairs(tmp_path: Path) -> None:
    data = images(80)
    folder = trained(
        tmp_path / "plane",
        data,
        encoder={"kind": "mlp", "hidden": [16], "dim": 2, "normalize": False},
        loss={"kind": "contrastive", "distance": "squared", "margin": 1.0, "weight": 0.5},
        sampling={"kind": "pairs", "batch_size": 20},
        train={"epochs": 1},
        evaluate={"metric": "euclidean", "k": 3, "bootstrap": 0},
    )
    result = report(folder, data)
    maps = {"scatter", "density", "scatter_gallery", "density_gallery", "scatter_before"}
    assert maps | {"pairs", "pairs_predicted", "distances"} <= set(result["plots"])
    assert not {"tsne", "pca_2d", "pca_3d"} & set(result["plots"])
    reader = read(folder)
    assert "95 % interval" not in reader.text
    assert result["figures"]["baselines"]["pca"]["dimensions"] == 2
    assert result["figures"]["baselines"]["pixels"]["metric"] == "euclidean"
    judged = judge(folder, data)
    pairs = sample_pairs(judged)
    said = (pairs.distances < result["figures"]["verification"]["threshold"]) == pairs.same
    assert said.mean() == pytest.approx(result["figures"]["verification"]["accuracy"])
    chosen = pairs.mixed(10, 0)
    assert len(set(chosen.tolist())) == 10
    assert pairs.same[chosen].sum() == 5


@pytest.mark.usefixtures("no_plots")
def test_classes_kept_from_training_have_tables_of_their_own(tmp_path: Path) -> None:
    data = shapes(100, classes=5)
    folder = trained(tmp_path / "run", data, data={"size": [12, 12], "channels": 1, "unseen": ["b", "d"]})
    result = report(folder, data)
    reader = read(folder)
    assert "Classes that training never saw" in reader.text
    apart = result["figures"]["unseen"]
    both = apart["with_seen"]
    assert f"{apart['data']['queries']:,} images, each searched among the others." in reader.text
    assert f"{both['data']['gallery'] - apart['data']['queries']:,} gallery images of the seen classes" in reader.text
    row = next(row for row in reader.rows if row[0].startswith(" MAP@R ") and "PCA" in row[1])
    for cell, tree in zip(row[1:], (result["figures"], apart, both), strict=True):
        words = cell.split()
        assert words[0] == f"{tree['retrieval']['map@r']:.4f}"
        assert words[words.index("pixels") + 1] == f"{tree['baselines']['pixels']['retrieval']['map@r']:.4f}"
        assert words[words.index("PCA") + 1] == f"{tree['baselines']['pca']['retrieval']['map@r']:.4f}"
    # Classes without a query have no row; those never seen come second, with what they find among all images.
    rows = [row for row in reader.rows if row[0].strip() in list("abcde")]
    assert [row[0].strip() for row in rows] == ["a", "c", "e", "b", "d"]
    assert float(rows[-1][8]) == pytest.approx(both["retrieval"]["per_class"]["d"]["map@r"], abs=5e-5)


def test_copies_in_the_gallery_are_told_and_shown(tmp_path: Path) -> None:
    plain, fresh = shapes(60), shapes(24, seed=9)
    pixels = np.array(fresh.images)
    pixels[:3] = plain.images[:3]
    pixels[3] = np.clip(plain.images[3].astype(np.int64) // 2 + 20, 0, 255)  # half as bright
    labels = np.concatenate([plain.require_labels()[:4], fresh.require_labels()[4:]])
    for split, images, numbers in (("train", plain.images, plain.require_labels()), ("test", pixels, labels)):
        for row, label in enumerate(numbers.tolist()):
            target = tmp_path / "images" / split / "abc"[label] / f"{row:03d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(images)[row, 0]).save(target)
    verbs.train(str(tmp_path / "images"), recipe=Recipe.from_dict(TINY), out=tmp_path / "run")
    result = report(tmp_path / "run")
    found = result["figures"]["leaks"]
    assert (found["exact"], found["near"], found["differing_labels"]) == (3, 1, 0)
    assert "copies" in result["plots"]
    reader = read(tmp_path / "run")
    assert "3 have an exact copy in what is searched, 1 a near one" in reader.text
    row = next(row for row in reader.rows if row[0].strip() == "MAP@R" and len(row) == 3)
    parts = found["figures"]
    assert [float(cell) for cell in row[1:]] == pytest.approx([parts[one]["map@r"] for one in ("all", "without")], abs=5e-5)
    assert "#plot-copies" in [str(each.get("href")) for each in reader.all("a")]
    assert "3 images are there to the pixel, 1 nearly" in show.figures(result["figures"])
    assert "without these 4: accuracy" in show.figures(result["figures"])


def test_the_command_line_prints_figures_and_where_the_page_is(
    folder_of_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {**TINY, "data": {"size": [12, 12], "channels": 3, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.2]}}
    verbs.train(str(folder_of_images), recipe=Recipe.from_dict(tree), out=tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path / "run"), "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    result = json.loads(out)
    assert result["figures"] == json.loads((tmp_path / "run" / "metrics.json").read_text())
    text = show.reported(result | {"left_out": {"tsne": "too few", "loss": "too few", "pairs": "none"}})
    assert "5-NN accuracy" in text
    assert "left out tsne, loss: too few\nleft out pairs: none\n" in text
    assert f"report: {tmp_path / 'run' / 'report.html'}" in text
    assert "colour images of 12 x 12 pixels" in read(tmp_path / "run").text
    assert str(folder_of_images) in read(tmp_path / "run").text


def test_a_page_that_would_be_too_large_gets_plots_of_fewer_pixels(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    _, result, content, files = made
    limit = result["bytes"] * 2 // 3
    monkeypatch.setattr(page, "LIMIT", limit)
    text = page.render(content, files)
    assert len(text.encode()) < limit
    sizes = {}
    for attributes, png in zip(Reader(text).all("img"), pictures(Reader(text)), strict=True):
        with Image.open(io.BytesIO(png)) as picture:
            picture.load()
            sizes[str(attributes["alt"])] = picture.width
    full = {plot.alt: Image.open(io.BytesIO(files[name])).width for name, plot in content.album.plots.items() if name in files}
    shown = [alt for alt in full if alt in sizes]
    assert len(shown) == len(full) - 1
    assert all(sizes[alt] <= full[alt] for alt in shown)
    assert any(sizes[alt] < full[alt] for alt in shown)


# Arrays


def test_mean_cosines_are_those_of_a_slow_loop() -> None:
    rng = np.random.default_rng(1)
    z, labels = rng.normal(size=(20, 4)).astype(np.float32), np.append(rng.integers(0, 3, 19), 3)
    means = mean_cosines(z, labels, 5)
    for one in range(5):
        for other in range(5):
            values = [
                z[i].astype(np.float64) @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j])
                for i in np.flatnonzero(labels == one)
                for j in np.flatnonzero(labels == other)
                if i != j
            ]
            assert means[one, other] == pytest.approx(np.mean(values) if values else np.nan, abs=1e-6, nan_ok=True)


# Recipe and command


@pytest.mark.parametrize("name", recipe_names())
def test_the_recipe_on_the_page_is_read_back_whole(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / recipe_file(recipe.to_dict())
    path.write_text(recipe_toml(recipe.to_dict()))
    assert load_recipe(path) == recipe


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(1e-9, 1e9), st.booleans())
def test_any_text_and_number_survives_toml(text: str, number: float, flag: bool) -> None:
    recipe = Recipe.from_dict({**TINY, "description": text, "loss": {"kind": text, text: number, "flag": [flag, text]}})
    tree = tomllib.loads(recipe_toml(recipe.to_dict()))
    assert Recipe.from_dict(tree, name=recipe.name) == recipe


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mnist-fast", {}),
        ("mnist-fast", {"train.epochs": 7, "data.validation": 0.1, "encoder.widths": [8, 8], "loss.temperature": 0.2}),
        ("siamese-verification", {"evaluate.threshold": None, "data.rows": 100}),
        ("images", {"data.unseen": ["a b", "c'd"]}),
    ],
)
def test_the_command_makes_the_same_recipe(name: str, changes: dict[str, Any]) -> None:
    recipe = load_recipe(name, changes)
    config = {"recipe": recipe.to_dict(), "data": {"source": "my images"}, "seed": 3}
    command, from_file = train_command(config, "runs/x")
    words = shlex.split(command)
    assert words[:6] == ["nearfar", "train", "my images", "--recipe", name, "--seed"]
    assert not from_file
    given_settings = words[words.index("--set") + 1 :] if "--set" in words else []
    assert load_recipe(name, parse_changes(given_settings)) == recipe


def test_a_recipe_of_ones_own_is_named_as_a_file() -> None:
    own = Recipe.from_dict({**TINY, "name": "my recipe/"}).to_dict()
    command, from_file = train_command({"recipe": own, "data": {}, "seed": 0, "start": {"run": "runs/a b"}}, "x")
    assert from_file
    assert command == "nearfar train DATA --recipe my-recipe.toml --from 'runs/a b' --seed 0 --out x"
    without = load_recipe("mnist-fast").to_dict()
    del without["loss"]["temperature"]  # which no setting can take away
    assert train_command({"recipe": without, "data": {}, "seed": 0}, "x")[1]
