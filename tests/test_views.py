"""Learning from views: what the loss is told, that labels change nothing, and what does not go together."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from samples import TINY, shapes

from nearfar import show, verbs
from nearfar.classify import winners
from nearfar.data import ImageSet
from nearfar.encoders.projector import projector
from nearfar.errors import InputError
from nearfar.losses import LOSSES
from nearfar.onnxmodel import OnnxEmbedder
from nearfar.recipe import Recipe
from nearfar.runs import indexing
from nearfar.sampling import Shuffle, Views
from nearfar.training.loop import fit
from nearfar.training.parts import build_encoder_for, build_projector, check, training_targets

VIEWS: dict[str, Any] = {
    **TINY,
    "loss": {"kind": "nt-xent", "temperature": 0.2},
    "sampling": {"kind": "views", "batch_size": 30},
    "augment": {"shift": 1, "noise": 0.05, "brightness": 0.2},
    "train": {"epochs": 3, "learning_rate": 0.01, "projector": [32, 8]},
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.from_dict(VIEWS).with_changes({key.replace("__", "."): value for key, value in changes.items()})


def unlabelled(images: ImageSet) -> ImageSet:
    return dataclasses.replace(images, labels=None, classes=())


# ---- the sampler


@pytest.mark.parametrize("views", [2, 3])
def test_views_are_an_epoch_of_rows_each_several_times_together(views: int) -> None:
    rows = np.array([4, 7, 9, 11, 20])
    for epoch in range(3):
        each = Shuffle(rows, batch_size=2, seed=5).epoch(epoch)
        seen = Views(rows, batch_size=2, views=views, seed=5).epoch(epoch)
        assert len(seen) == len(each) == 3
        for number in range(3):
            assert seen.batch(number).rows.tolist() == [row for row in each.batch(number).rows for _ in range(views)]


def test_processes_hold_whole_images() -> None:
    plan = Views(np.arange(8), batch_size=4, views=2, seed=0).epoch(0)
    for rank in range(2):
        part = plan.batch(0, rank, 2).rows
        assert np.array_equal(part[::2], part[1::2])


def test_one_view_is_none() -> None:
    with pytest.raises(InputError, match="views is 1; expected a whole number of at least 2"):
        Views(np.arange(8), batch_size=4, views=1, seed=0)


# ---- what the loss is told


def test_every_image_stands_for_itself(small: ImageSet) -> None:
    told = training_targets(recipe(), small, seed=0).told
    assert len(np.unique(told)) == len(small)
    assert len(np.unique(training_targets(recipe(), unlabelled(small), seed=0).told)) == len(small)


def test_labelled_images_may_stand_for_their_class(small: ImageSet) -> None:
    half = recipe(sampling__instances="unlabelled", data__labelled=0.5)
    targets = training_targets(half, small, seed=0)
    with_label = targets.labels >= 0
    assert with_label.sum() == len(small) // 2
    assert np.array_equal(targets.classes[targets.told[with_label]], small.require_labels()[with_label])
    alone = targets.told[~with_label]
    assert len(np.unique(alone)) == len(alone)
    assert not np.isin(alone, targets.told[with_label]).any()
    counts = np.bincount(small.require_labels()[with_label])
    assert counts.max() - counts.min() <= 1


def test_images_without_a_used_label_take_no_part_where_classes_are_learned(small: ImageSet) -> None:
    targets = training_targets(Recipe.from_dict(TINY).with_changes({"data.labelled": 0.1}), small, seed=0)
    assert (targets.told >= 0).sum() == 12
    assert np.array_equal(targets.told, targets.labels)


# ---- training


@pytest.mark.parametrize("loss", ["nt-xent", "dcl", "vicreg", "barlow-twins", "info-nce", "supcon"])
def test_it_learns_without_labels(loss: str, small: ImageSet) -> None:
    made = recipe(loss__kind=loss, train__epochs=6)
    done = fit(made, unlabelled(small), unlabelled(shapes(60, seed=5)), seed=1)
    losses = [row["loss"] for row in done.history]
    assert losses[-1] < losses[0]
    figures = done.history[-1]["validation"]
    assert set(figures) == {"loss", "alignment", "uniformity", "effective_rank"}
    assert figures["loss"] < done.history[0]["validation"]["loss"] * 1.05
    assert done.encoder(torch.zeros(1, 1, 12, 12)).shape == (1, 8), "the projector is gone"


def test_labels_change_nothing_but_the_figures(small: ImageSet) -> None:
    shuffled = dataclasses.replace(small, labels=np.random.default_rng(0).permutation(small.require_labels()))
    runs = [fit(recipe(), images, shapes(60, seed=5), seed=1) for images in (small, shuffled, unlabelled(small))]
    weights = [run.encoder.state_dict() for run in runs]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])
        assert torch.equal(value, weights[2][name])
    assert "knn_accuracy" in runs[0].history[-1]["validation"]


def test_the_views_of_an_image_differ_and_are_those_of_the_step(small: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    home = LOSSES["nt-xent"]
    original = home.forward

    def forward(self: Any, z: torch.Tensor, labels: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        if self.training and z.requires_grad:
            seen.append((z.detach().clone(), labels.clone()))
        result: torch.Tensor = original(self, z, labels, *rest, **more)
        return result

    monkeypatch.setattr(home, "forward", forward)
    fit(recipe(train__epochs=1), small, seed=1)
    steps = [(z, labels) for z, labels in seen if len(labels) == 60]
    assert steps
    for z, labels in steps:
        assert torch.equal(labels[::2], labels[1::2])
        assert (z[::2] - z[1::2]).abs().amax(1).min() > 0


def test_an_interrupted_run_ends_in_the_same_bits(small: ImageSet, tmp_path: Path) -> None:
    whole = fit(recipe(), small, seed=2)
    state = tmp_path / "state.safetensors"

    class Stop:
        """Interrupts after the first epoch."""

        def step(self, *values: Any) -> None:
            pass

        def epoch(self, row: dict[str, Any], epochs: float) -> None:
            pass

        note = warn = staticmethod(lambda message: None)

    def stop(history: list[dict[str, Any]]) -> None:
        if len(history) == 2:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit(recipe(), small, seed=2, checkpoint=state, on_epoch=stop, watcher=Stop())
    again = fit(recipe(), small, seed=2, checkpoint=state, resume=True)
    assert all(torch.equal(value, again.encoder.state_dict()[name]) for name, value in whole.encoder.state_dict().items())


def test_cached_gradients_are_those_of_the_whole_batch(small: ImageSet) -> None:
    """Without batch norm in the projector, which would see each chunk alone."""
    flat = {"train__projector": [8], "train__epochs": 1}
    whole, parts = (fit(recipe(**flat, train__chunk=chunk), small, seed=2).encoder.state_dict() for chunk in (0, 16))
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=2e-5), name


def test_a_projector_is_its_layers() -> None:
    net = projector(5, (7, 3))
    x = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    first, norm, _, last = net
    hidden = x @ first.weight.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + norm.eps).sqrt()
    assert torch.allclose(net(x), hidden.clamp_min(0) @ last.weight.T + last.bias, atol=1e-5)


def test_the_projector_gives_unit_rows_where_the_loss_needs_them(small: ImageSet) -> None:
    for loss, unit in (("nt-xent", True), ("vicreg", False)):
        made = recipe(loss__kind=loss)
        net = build_projector(made, build_encoder_for(made, 1, (12, 12)), small).eval()
        lengths = net(torch.randn(6, 8, generator=torch.Generator().manual_seed(0))).norm(dim=1)
        assert torch.allclose(lengths, torch.ones(6), atol=1e-5) == unit


def test_a_head_on_what_was_learned_from_views_needs_no_further_change(small: ImageSet) -> None:
    learned = fit(recipe(), small, seed=1).encoder
    head = recipe().with_changes({"train.mode": "linear", "train.epochs": 20, "data.labelled": 0.5})
    assert head.sampling.kind == "shuffle"
    assert head.train.projector == ()
    done = fit(head, small, shapes(60, seed=5), start=learned, seed=1)
    assert done.head is not None
    assert done.history[-1]["validation"]["head_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment__shift": 0, "augment__noise": 0.0, "augment__brightness": 0.0}, "views are all alike"),
        ({"loss__kind": "arcface"}, "views of images have none"),
        ({"loss__kind": "cross-entropy"}, "views of images have none"),
        ({"sampling__views": 1}, "sampling.views is 1"),
        ({"train__projector": [0]}, "train.projector"),
        ({"data__labelled": 0.0}, "data.labelled"),
    ],
)
def test_what_does_not_go_together_is_one_line(changes: dict[str, Any], message: str, small: ImageSet) -> None:
    with pytest.raises(InputError, match=message) as told:
        check(recipe(**changes), small, seed=0)
    assert "\n" not in str(told.value)


# ---- a run of images without labels


@pytest.fixture(scope="module")
def unsorted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and the folder of images that it learned from, which has no classes."""
    place = tmp_path_factory.mktemp("unsorted")
    (place / "photos").mkdir()
    for number, image in enumerate(np.asarray(shapes(80, seed=3).images)):
        Image.fromarray(image[0]).save(place / "photos" / f"{number:02d}.png")
    verbs.train(place / "photos", recipe=recipe(data__validation=0.1), out=place / "run")
    return place / "run", place / "photos"


def test_images_without_labels_can_be_searched(unsorted: tuple[Path, Path]) -> None:
    run, photos = unsorted
    name = indexing.load_run(run, device="cpu")[1].names["images"][5]
    found = verbs.search(run, [photos / name], k=3)[0]["neighbors"]
    assert found[0]["id"] == name
    assert found[0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert [one["label"] for one in found] == [None] * 3
    assert "images without labels" in (run / "README.md").read_text()


def test_such_a_run_is_exported_and_checked_by_its_neighbours(unsorted: tuple[Path, Path], tmp_path: Path) -> None:
    result = verbs.export(unsorted[0], out=tmp_path / "model.onnx")
    assert result["same_nearest"] == 1.0
    assert not {"same_class", "accuracy"} & set(result)
    assert "class" not in show.exported(result)
    ours, theirs = indexing.load_run(unsorted[0], device="cpu")[0], OnnxEmbedder.load(tmp_path / "model.onnx")
    images = shapes(20, seed=4).images
    np.testing.assert_allclose(theirs.transform(images), ours.transform(images), atol=1e-5)


def test_what_needs_labels_says_so(unsorted: tuple[Path, Path]) -> None:
    run, photos = unsorted
    with pytest.raises(InputError, match="label"):
        verbs.predict(run, [photos])


def test_labelled_images_judge_such_a_run_among_themselves(unsorted: tuple[Path, Path]) -> None:
    tree = verbs.evaluate(unsorted[0], shapes(60, seed=9))
    assert tree["data"]["same_set"]
    assert tree["classification"]["accuracy"] > 0.4


def test_a_few_labelled_images_give_it_classes_and_go_without_a_trace(unsorted: tuple[Path, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(unsorted[0], tmp_path / "run"))
    before = verbs.search(run, [unsorted[1]], k=2)
    some = shapes(30, seed=8)
    indexing.add_images(run, some)
    info = indexing.index_info(run)
    assert info["unlabelled"] == info["images"] - 30
    assert [one["images"] for one in info["classes"]] == [10, 10, 10]
    model, index = indexing.load_run(run, device="cpu")
    z = model.transform(shapes(60, seed=9))
    said = verbs.predict(run, [write(shapes(60, seed=9), tmp_path / "asked")], precision=0.0)
    labelled = np.flatnonzero(np.asarray(index.labels) >= 0)
    similar = z @ np.asarray(index.vectors)[labelled].T
    near = np.argsort(-similar, axis=1, kind="stable")[:, :5]
    codes = np.asarray(index.labels)[labelled][near]
    voted = winners(codes, np.take_along_axis(similar, near, axis=1).astype(np.float64))
    assert [one["voted"] for one in said] == ["abc"[number] for number in voted]
    for name in "abc":
        indexing.remove_images(run, label=name)
    assert verbs.search(run, [unsorted[1]], k=2) == before


def write(images: ImageSet, folder: Path) -> Path:
    folder.mkdir()
    for number, image in enumerate(np.asarray(images.images)):
        Image.fromarray(image[0]).save(folder / f"{number:03d}.png")
    return folder
