"""Classes added from a few images, found, and removed without a trace; and every way to do it wrong."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import TINY, shapes

from nearfar import answers, runs, show, verbs
from nearfar.classify import similarities, winners
from nearfar.cli import main
from nearfar.data import ImageSet, load_any
from nearfar.errors import InputError
from nearfar.recipe import Recipe
from nearfar.report import report
from nearfar.runs import indexing
from nearfar.search import NeighborIndex
from nearfar.search.storage import MANIFEST

DIGITS = {
    **TINY,
    "data": {"size": [8, 8], "channels": 1, "unseen": ["4", "9"]},
    "encoder": {"kind": "mlp", "hidden": [64], "dim": 16, "normalize": True},
    "train": {"epochs": 5, "learning_rate": 0.003},
    "evaluate": {"k": 10, "bootstrap": 20},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    verbs.train("digits", recipe=Recipe.from_dict(DIGITS), out=folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_any(["digits"])


def of_class(digits: ImageSet, name: str) -> Any:
    return np.flatnonzero(digits.require_labels() == digits.classes.index(name))


def write(folder: Path, images: ImageSet, rows: Any, *, scale: int = 1, flat: bool = False) -> Path:
    """The images as PNG files, in one folder for each class, or all in one."""
    labels = images.require_labels()
    for row in np.asarray(rows).tolist():
        target = folder / ("" if flat else images.classes[labels[row]]) / f"{row:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.images[row, 0]).resize((8 * scale, 8 * scale)).save(target)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def voted(results: list[dict[str, Any]]) -> list[str]:
    return [result["voted"] for result in results]


def test_a_class_of_five_images_is_found_and_costs_the_others_little(run: Path, digits: ImageSet, tmp_path: Path) -> None:
    nines, fours = of_class(digits, "9"), of_class(digits, "4")
    few = write(tmp_path / "few", digits, np.concatenate([nines[:5], fours[:5]]))
    rest = write(tmp_path / "rest", digits, np.concatenate([nines[5:], fours[5:]]))
    assert verbs.predict(run, [rest], precision=0)[0]["label"] not in ("4", "9", "unknown")
    before = verbs.predict(run, ["digits"])
    assert not {"4", "9"} & set(voted(verbs.predict(run, [rest])))
    added = indexing.add_images(run, few)
    assert (added["added"], added["new_classes"]) == ({"4": 5, "9": 5}, ["4", "9"])
    found = verbs.predict(run, [rest])
    share = np.mean([one["voted"] == one["true_label"] for one in found])
    answered = [one for one in found if one["label"] in ("4", "9")]
    assert 0.1 < len(answered) / len(found) < share
    assert all(one["probability"] >= 0.99 for one in answered)
    # The vote of the nearest ten of all images, in which five can hardly win.
    model, index = verbs.load_run(run)
    z = model.transform(load_any([rest], size=8, channels=1))
    scores, rows = index.search_rows(z, 10)
    classes = np.array(model.classes_)
    plain = classes[winners(np.asarray(index.labels)[rows], similarities(scores, "cosine"))]
    drowned = np.mean(plain == [one["true_label"] for one in found])
    assert share > 0.4
    assert share > 3 * drowned
    known = [
        (old, new) for old, new in zip(before, verbs.predict(run, ["digits"]), strict=True) if old["true_label"] not in "49"
    ]
    lost = np.mean([old["voted"] == old["true_label"] for old, _ in known]) - np.mean(
        [new["voted"] == new["true_label"] for _, new in known]
    )
    assert lost < 0.02


def test_removing_restores_every_answer_and_every_byte_of_the_vectors(run: Path, digits: ImageSet, tmp_path: Path) -> None:
    queries = [write(tmp_path / "queries", digits, np.arange(0, 1797, 9), flat=True)]
    before, files = verbs.predict(run, queries), contents(run / "index")
    found = verbs.search(run, queries, k=7)
    indexing.add_images(run, write(tmp_path / "few", digits, np.arange(1757, 1797)))
    indexing.add_images(run, write(tmp_path / "more", digits, of_class(digits, "9")[10:20], flat=True), label="neuf")
    assert verbs.predict(run, queries) != before
    info = indexing.index_info(run)
    assert info["added_images"] > 10
    for one in info["classes"]:
        if one["added"] == one["images"]:
            indexing.remove_images(run, label=one["name"])
    _, index = verbs.load_run(run)
    trained = answers.trained_images(runs.read_config(run), index)
    left = [name for name, number in zip(index.names["images"], index.ids, strict=True) if number >= trained]
    indexing.remove_images(run, ids=left)
    assert verbs.predict(run, queries) == before
    assert verbs.search(run, queries, k=7) == found
    after = contents(run / "index")
    assert {name for name in files if not name.endswith(MANIFEST)} == {name for name in after if not name.endswith(MANIFEST)}
    assert all(after[name] == content for name, content in files.items() if not name.endswith(MANIFEST))


def test_added_images_are_searched_and_named(run: Path, digits: ImageSet, tmp_path: Path) -> None:
    few = write(tmp_path / "few", digits, of_class(digits, "9")[:4], flat=True)
    result = indexing.add_images(run, few, label="new <b>")
    assert result["added"] == {"new <b>": 4}
    assert runs.read_config(run)["classes"] == [*"0123456789"]  # what training knew stays what it was
    for image in sorted(few.iterdir()):
        first = verbs.search(run, [image], k=1)[0]["neighbors"][0]
        assert (first["label"], first["id"]) == ("new <b>", f"few/{image.name}")
        said = verbs.predict(run, [image])[0]
        assert (said["voted"], said["nearest"]) == ("new <b>", f"few/{image.name}")
    # Of equal names the later one gets a number.
    other = write(tmp_path / "other" / "few", digits, of_class(digits, "4")[:2], flat=True)
    for number, path in enumerate(sorted(other.iterdir())):
        path.rename(other / sorted(few.iterdir())[number].name)
    indexing.add_images(run, other, label="4")
    names = verbs.load_run(run)[1].names["images"]
    assert names[-2:] == [f"few/{path.name}#2" for path in sorted(other.iterdir())]
    assert len(set(names)) == len(names)


def test_images_of_any_size_and_of_classes_that_are_there(run: Path, digits: ImageSet, tmp_path: Path) -> None:
    size = indexing.index_info(run)["images"]
    # Enlarged to another size, images are no copies of those that were trained on.
    result = indexing.add_images(run, write(tmp_path / "large", digits, np.arange(10), scale=3))
    assert result["added"] == {str(number): 1 for number in range(10)}
    assert result["new_classes"] == ["4", "9"]
    info = indexing.index_info(run)
    assert info["images"] == size + 10
    by_name = {one["name"]: one for one in info["classes"]}
    assert by_name["3"]["added"] == 1 < by_name["3"]["images"]
    assert by_name["9"] == {"name": "9", "images": 1, "added": 1}


def test_the_same_images_twice_are_left_out_and_counted(run: Path, digits: ImageSet, tmp_path: Path) -> None:
    nines = of_class(digits, "9")
    few = write(tmp_path / "few", digits, nines[:5])
    shutil.copy(few / "9" / f"{nines[0]:04d}.png", few / "9" / "copy.png")
    first = indexing.add_images(run, few)
    assert (first["added"], first["already_there"]) == ({"9": 5}, ["9/copy.png"])
    before = contents(run)
    again = indexing.add_images(run, few)
    assert (again["added"], len(again["already_there"])) == ({}, 6)
    assert contents(run) == before
    with pytest.raises(
        InputError, match=r"9/\d+\.png is given as 'x', but is in the index as 'few/9/\d+\.png' of class '9'|is given as 'x'"
    ):
        indexing.add_images(run, few, label="x")
    mixed = write(tmp_path / "mixed", digits, of_class(digits, "4")[:1])
    (mixed / "b").mkdir()
    shutil.copy(next((mixed / "4").iterdir()), mixed / "b" / "copy.png")
    with pytest.raises(InputError, match="is in these images as '4/"):
        indexing.add_images(run, mixed)
    assert contents(run) == before


def test_a_class_removed_from_the_middle_leaves_the_names_of_the_others(run: Path, digits: ImageSet, tmp_path: Path) -> None:
    for name, label in (("4", "x"), ("9", "y")):
        indexing.add_images(run, write(tmp_path / label, digits, of_class(digits, name)[:6], flat=True), label=label)
    queries = [write(tmp_path / "q", digits, of_class(digits, "9")[6:60], flat=True)]
    result = indexing.remove_images(run, label="x")
    assert (result["removed"], result["gone_classes"]) == ({"x": 6}, ["x"])
    assert verbs.load_run(run)[1].names["classes"] == [*"0123456789", "y"]
    assert {"y"} <= set(voted(verbs.predict(run, queries))) <= {*"01235678", "y"}
    indexing.remove_images(run, label="y")
    assert "classes" not in verbs.load_run(run)[1].names


def test_evaluate_and_report_go_on_working(
    run: Path, digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nearfar.report.pictures import Album

    monkeypatch.setattr("nearfar.report.write.draw_plots", lambda *_: Album())
    before = verbs.evaluate(run)
    assert before["open_set"]["unseen"] == before["unseen"]["data"]["queries"]
    assert 0.5 < before["open_set"]["auroc"] <= 1.0
    indexing.add_images(run, write(tmp_path / "few", digits, of_class(digits, "9")[:5]))
    after = verbs.evaluate(run)
    fours = len(of_class(digits, "4"))
    assert after["open_set"]["unseen"] == fours
    assert after["calibration"]["added_classes"]["images"] == len(of_class(digits, "9"))
    assert after["data"]["gallery"] == before["data"]["gallery"] + 5
    for key in ("images", "fitted", "before", "after"):
        assert after["calibration"][key] == before["calibration"][key]
    text = show.figures(after)
    assert f"against {fours:,} images of classes never seen: AUROC {after['open_set']['auroc']:.4f}" in text
    page = Path(report(run)["report"]).read_text()
    assert "5 images were added to the index since" in page
    assert f"{after['open_set']['auroc']:.4f}" in page
    apart = write(tmp_path / "apart", digits, np.concatenate([of_class(digits, name)[5:25] for name in "0129"]))
    other = verbs.evaluate(run, apart)
    assert other["data"]["new_classes"] == 0
    assert other["calibration"]["queries"]["accuracy"] > 0.8


def test_names_that_classes_may_not_have(run: Path, digits: ImageSet, tmp_path: Path) -> None:
    few, before = write(tmp_path / "few", digits, of_class(digits, "9")[:2], flat=True), contents(run)
    for name, message in [
        ("", "is empty or has spaces"),
        (" x", "is empty or has spaces"),
        ("../x", "looks like a path"),
        ("a/b", "looks like a path"),
        ("a\\b", "looks like a path"),
        ("..", "looks like a path"),
        ("a\nb", r"'a\\nb' holds control characters"),
        ("\x1b[31mred", "holds control characters"),
        ("\u202edlog", r"'\\u202edlog' holds control characters"),
        ("unknown", "what images of no known class are called"),
        ("x" * 201, "has 201 characters, expected at most 200"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            indexing.add_images(run, few, label=name)
        assert str(caught.value).isprintable()
    assert indexing.check_class_name("Gänseblümchen (Bellis)") == "Gänseblümchen (Bellis)"
    assert contents(run) == before


def test_what_cannot_be_added_or_removed_is_one_line_and_changes_nothing(run: Path, digits: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    flat = write(tmp_path / "flat", digits, of_class(digits, "9")[:3], flat=True)
    bad = write(tmp_path / "bad", digits, of_class(digits, "9")[:3], flat=True)
    (bad / "broken.png").write_bytes(b"not an image")
    name = verbs.load_run(run)[1].names["images"][0]
    everything = verbs.load_run(run)[1].names["images"]
    before = contents(run)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: indexing.add_images(run, tmp_path / "empty", label="x"), "empty"),
        (lambda: indexing.add_images(run, tmp_path / "none", label="x"), "neither a known data set nor a path"),
        (lambda: indexing.add_images(run, flat), "has no classes; say which one .* --label NAME"),
        (lambda: indexing.add_images(run, bad, label="x"), "broken.png"),
        (lambda: indexing.add_images(tmp_path, flat, label="x"), "is not a run"),
        (lambda: indexing.remove_images(run), "either a class .* or images"),
        (lambda: indexing.remove_images(run, label="1", ids=[name]), "either a class .* or images"),
        (lambda: indexing.remove_images(run, label="11"), "no image of class '11'; did you mean '1'"),
        (lambda: indexing.remove_images(run, label="9"), "no image of class '9'; known are 0, 1"),
        (lambda: indexing.remove_images(run, ids=["nothing like it"]), "'nothing like it'; nearfar search shows the ids"),
        (lambda: indexing.remove_images(run, ids=[name, f"{name}x"]), f"no image '{name}x'; did you mean .*'{name}'"),
        (lambda: indexing.remove_images(run, ids=everything), "would remove every image"),
    ]
    for call, message in calls:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert contents(run) == before
    assert indexing.add_images(run, bad, label="x", skip_bad=True)["added"] == {"x": 3}


@pytest.mark.parametrize("at", ["nearfar.search.storage.write_json", "nearfar.files.os.fsync"])
def test_a_crash_in_the_middle_leaves_the_earlier_index(
    run: Path, digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    few = write(tmp_path / "few", digits, of_class(digits, "9")[:5])
    query = [next((few / "9").iterdir())]
    before = verbs.predict(run, query)

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    for change in (lambda: indexing.add_images(run, few), lambda: indexing.remove_images(run, label="3")):
        with monkeypatch.context() as patch:
            patch.setattr(at, crash)
            with pytest.raises(KeyboardInterrupt):
                change()
        NeighborIndex.load(run / "index", verify=True)
        assert verbs.predict(run, query) == before
    assert indexing.add_images(run, few)["added"] == {"9": 5}  # no lock is left behind


def test_two_writers_are_refused_while_readers_go_on(run: Path, digits: ImageSet, tmp_path: Path) -> None:
    few, before = write(tmp_path / "few", digits, of_class(digits, "9")[:2]), contents(run)
    handle = os.open(run, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        for call in (lambda: indexing.add_images(run, few), lambda: indexing.remove_images(run, label="3")):
            with pytest.raises(InputError, match="is being written by another process; try again"):
                call()
        assert len(verbs.predict(run, [few])) == 2
    finally:
        os.close(handle)
    assert contents(run) == before


def test_an_index_whose_classes_are_not_those_of_the_run_is_refused(run: Path) -> None:
    model, index = verbs.load_run(run)
    index.save(run / "index", names={**index.names, "classes": [*reversed(model.classes_), "new"]})
    with pytest.raises(InputError, match=r"does not belong to .* classes that the run lacks"):
        verbs.load_run(run)


def test_calibration_is_made_anew_when_it_is_missing_or_stale(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / answers.CALIBRATION
    whole, said = path.read_bytes(), verbs.predict(run, ["digits"])
    path.unlink()
    assert verbs.predict(run, ["digits"]) == said
    assert path.read_bytes() == whole
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["evaluate"]["k"] = 3
    (run / "config.json").write_text(json.dumps(config))
    assert verbs.predict(run, ["digits"]) != said
    assert json.loads(path.read_text())["bound_to"]["k"] == 3
    indexing.remove_images(run, label="3")
    verbs.predict(run, ["digits"])
    assert json.loads(path.read_text())["fitted"]["classes"] == 7
    # Where nothing may be written, there is an answer all the same.
    path.unlink()

    def refuse(*_: Any) -> None:
        raise InputError("permission denied")

    monkeypatch.setattr(answers, "write_json", refuse)
    assert len(verbs.predict(run, ["digits"])) == len(said)
    assert not path.exists()


def test_a_damaged_calibration_is_one_line(run: Path) -> None:
    path = run / answers.CALIBRATION
    tree = json.loads(path.read_text())
    for content in (
        "{",
        json.dumps({**tree, "fitted": None}),
        json.dumps({**tree, "fitted": {**tree["fitted"], "temperature": 0}}),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=r"calibration\.json is damaged") as caught:
            verbs.predict(run, ["digits"])
        assert "\n" not in str(caught.value)


def test_calibration_on_validation_images_and_on_training_images_says_so(tmp_path: Path) -> None:
    for share, source in ((0.25, "validation images"), (0.0, "training images, each left out of its own search")):
        folder = tmp_path / source[:4]
        recipe = Recipe.from_dict({**TINY, "data": {**TINY["data"], "validation": share}})
        verbs.train(shapes(200), recipe=recipe, out=folder)
        record = json.loads((folder / answers.CALIBRATION).read_text())
        assert record["images_are"] == source
        assert record["images"] == (40 if share else 160)
        kept = (folder / answers.CALIBRATION).read_bytes()
        tree = verbs.evaluate(folder, shapes(200))
        assert (folder / answers.CALIBRATION).read_bytes() == kept
        assert tree["calibration"]["images_are"] == source
        assert tree["calibration"]["queries"]["images"] == 40
        assert tree["calibration"]["queries"]["accuracy"] == tree["classification"]["accuracy"]


def test_the_verbs_of_the_command_line(run: Path, digits: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cli(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(one) for one in arguments])
        return int(ended.value.code or 0), *capsys.readouterr()

    few = write(tmp_path / "few", digits, of_class(digits, "9")[:5], flat=True)
    code, out, err = cli("index", "add", run, few, "--label", "nine")
    assert (code, out.strip()) == (
        0,
        f"added 5 of nine (new); the index of {run} holds {len(verbs.load_run(run)[1]):,} images",
    ), err
    assert "already in the index, left out: " in cli("index", "add", run, few, "--label", "nine")[1]
    info = json.loads(cli("index", "info", run, "--json")[1])
    assert info == indexing.index_info(run)
    assert "5 of them added since training" in cli("index", "info", run)[1]
    names = verbs.load_run(run)[1].names["images"][-2:]
    removed = json.loads(cli("index", "remove", run, "--id", *names, "--json")[1])
    assert removed["removed"] == {"nine": 2}
    assert "removed 3 of nine (the last)" in cli("index", "remove", run, "--label", "nine")[1]
    code, out, err = cli("index", "remove", run, "--label", "nin")
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
