"""What a map says is what search, vote and answers say; it is made once, and anew when what it holds for has changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from explore.conftest import CLASSES
from samples import shapes

from nearfar import runs, verbs
from nearfar.answers import CALIBRATION
from nearfar.classify import winners
from nearfar.errors import InputError
from nearfar.explore import make, open_positions
from nearfar.explore.make import make_map
from nearfar.explore.store import MAP, SPLITS, Map, read_map
from nearfar.explore.subject import Subject, open_subject
from nearfar.files import read_json, write_json
from nearfar.measuring.judging import load_run
from nearfar.runs import indexing
from nearfar.training.progress import Silent


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def test_neighbours_votes_and_answers(opened: tuple[Subject, Map], trained: Path) -> None:
    subject, made = opened
    index = subject.index
    assert (len(made), made.gallery, made.method) == (84, 60, "t-SNE")
    assert [SPLITS[one] for one in made.splits] == ["gallery"] * 60 + ["test"] * 24
    assert made.names[:60] == index.names["images"]
    assert set(made.classes) == set(CLASSES)
    vectors = np.asarray(index.vectors, dtype=np.float64)
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, -np.inf)
    for row in range(60):
        assert row not in made.neighbors[row]
        np.testing.assert_allclose(made.scores[row], np.sort(alike[row])[::-1][:20], atol=1e-6)
        np.testing.assert_allclose(alike[row, made.neighbors[row]], made.scores[row], atol=1e-6)
        near = np.argsort(-alike[row], kind="stable")[:5]
        said = winners(np.asarray(index.labels)[near][None], alike[row, near][None])
        assert made.predictions[row] == said[0]
    said = verbs.predict(trained, [str(trained.parent / "images" / "test")], precision=0)
    at = {name.split("/")[-2] + "/" + name.split("/")[-1]: row for row, name in enumerate(made.names) if row >= 60}
    assert len(said) == 24
    for one in said:
        row = at["/".join(one["image"].split("/")[-2:])]
        assert made.classes[made.predictions[row]] == one["voted"]
        assert made.classes[made.labels[row]] == one["true_label"]
        assert made.probability[row] == pytest.approx(one["probability"], abs=1e-5)


def test_suspicion_is_above_half_where_another_label_fits_better(opened: tuple[Subject, Map]) -> None:
    subject, made = opened
    own = np.asarray(subject.index.labels)[made.neighbors] == made.labels[:, None]
    assert ((made.suspicion >= 0) & (made.suspicion <= 1)).all()
    assert (made.suspicion[own.all(axis=1)] < 0.5).all()
    assert (made.suspicion[~own.any(axis=1)] > 0.5).all()


def test_a_flipped_label_is_the_most_suspicious(run: Path) -> None:
    _, index = load_run(run)
    made = read_map(run)
    assert made is not None
    inside = int(np.argmin(made.suspicion[:60]))
    labels = np.asarray(index.labels).copy()
    labels[inside] = (labels[inside] + 1) % 3
    changed = type(index)("cosine").fit(index.vectors, labels, ids=index.ids)
    changed.save(run / runs.INDEX, model_hash=index.model_hash, names=index.names)
    again = make_map(run)
    assert int(np.argmax(again.suspicion[:60])) == inside
    assert again.suspicion[inside] > 0.9


def test_it_is_made_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / MAP).read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(make, "_make", fail)
    assert len(make_map(run)) == 84
    assert (run / MAP).read_bytes() == before


def test_where_only_the_calibration_changed_points_stay(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_map(run)
    tree = read_json(run / CALIBRATION)
    tree["fitted"]["temperature"] *= 2
    write_json(run / CALIBRATION, tree)
    monkeypatch.setattr(make, "lay_out", None)
    after = make_map(run)
    assert before is not None
    np.testing.assert_array_equal(after.xy, before.xy)
    assert not np.array_equal(after.probability, before.probability)


def test_another_state_of_the_index_makes_it_anew(run: Path) -> None:
    more = shapes(8, seed=5)
    indexing.add_images(run, more, label="owl")
    _, index = load_run(run)
    placed = open_positions(run, index)
    assert placed is not None
    assert placed.xy.shape == (68, 2)
    notes = Notes()
    made = make_map(run, watcher=notes)
    assert any("of another state of the index: making a new one" in line for line in notes.lines)
    assert [SPLITS[one] for one in made.splits[:68]] == ["gallery"] * 60 + ["added"] * 8
    assert made.classes == [*placed_classes(run), "owl"]
    subject = open_subject(run)
    assert subject.picture(60) is not None
    exact = open_positions(run, index)
    assert exact is not None
    np.testing.assert_array_equal(exact.xy, made.xy[:68])


def placed_classes(run: Path) -> list[str]:
    return list(runs.read_config(run)["classes"])


def test_of_another_model_it_is_made_anew(run: Path) -> None:
    made = read_map(run)
    assert made is not None
    made.bound_to["model"] = "another"
    make.write_map(run, made)
    notes = Notes()
    assert make_map(run, watcher=notes).bound_to["model"] != "another"
    assert any("of another model" in line for line in notes.lines)


def test_a_damaged_map_is_one_line(run: Path) -> None:
    (run / MAP).write_bytes(b"PAR1 and then something else")
    with pytest.raises(InputError, match=r"map\.parquet is damaged .*delete it"):
        make_map(run)


def test_a_map_that_cannot_be_kept_is_shown_all_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / MAP).unlink()

    def full(*_: object) -> None:
        raise InputError("the disk is full")

    monkeypatch.setattr(make, "write_map", full)
    notes = Notes()
    assert len(make_map(run, watcher=notes)) == 84
    assert "the map is not kept: the disk is full" in notes.lines


def test_without_opentsne_one_line_says_what_helps(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearfar.explore.make.can_tsne", lambda: False)
    monkeypatch.setattr("nearfar.explore.layout.can_tsne", lambda: False)
    notes = Notes()
    assert make_map(run, watcher=notes).method == "t-SNE"  # the one that is there is the better one
    (run / MAP).unlink()
    assert make_map(run, watcher=notes).method == "PCA"
    assert sum("nearfar[project]" in line for line in notes.lines) == 1
    monkeypatch.undo()
    assert make_map(run).method == "t-SNE"


def test_where_the_images_are_gone_only_the_index_is_shown(run: Path) -> None:
    config = read_json(run / runs.CONFIG)
    config["data"]["source"] = str(run.parent / "gone")
    write_json(run / runs.CONFIG, config)
    subject = open_subject(run)
    made = make_map(subject)
    assert len(made) == 60
    assert subject.picture(0) is None
    assert "no pictures" in subject.notes[0]


def test_changed_training_images_give_no_wrong_pictures(run: Path) -> None:
    config = read_json(run / runs.CONFIG)
    config["data"]["train"]["sha256"] = "0" * 64
    write_json(run / runs.CONFIG, config)
    subject = open_subject(run)
    assert (subject.picture(0), len(subject.parts)) == (None, 1)
    assert subject.picture(60) is not None
    assert "have changed" in subject.notes[0]
