"""Learning from captions: what is drawn, what the loss is told, exact resume, and what does not go together."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import CLIP, SQUARES, TINY, shapes, squares
from torch import Tensor

from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.losses import LOSSES, CLIPLoss, of_towers
from nearfar.recipe import Recipe
from nearfar.sampling import Captions, Shuffle
from nearfar.text import TextTower, class_vectors
from nearfar.training import captions as captions_module
from nearfar.training.captions import TowersLoss, captions_of, require_captions
from nearfar.training.loop import Fitted, fit
from nearfar.training.parts import build_sampler, check, training_targets

RECIPE = Recipe.from_dict(CLIP)


def recipe(**changes: Any) -> Recipe:
    return RECIPE.with_changes({key.replace("__", "."): value for key, value in changes.items()})


# ---- which captions


def captioned(*texts: Any) -> ImageSet:
    return ImageSet(np.zeros((len(texts), 1, 4, 4), np.uint8), texts=texts)


def test_equal_captions_have_one_number() -> None:
    found = captions_of(captioned(["a", "b"], None, "a", ["c", "b"]))
    assert found.distinct == ("a", "b", "c")
    assert found.numbers.tolist() == [0, 1, 0, 2, 1]
    assert found.starts.tolist() == [0, 2, 2, 3, 5]
    assert found.first.tolist() == [0, -1, 0, 2]
    assert found.captioned.tolist() == [0, 2, 3]


def test_images_without_captions_are_named_or_left_out_of_training() -> None:
    images = captioned("a", None, "", "b", [" "])
    with pytest.raises(InputError, match=r"images: 3 of 5 images have no caption: 1, 2, 4; .*--skip-bad"):
        require_captions(images, skip_bad=False)
    assert require_captions(images, skip_bad=True) == ["1", "2", "4"]
    many = captioned("a", *[None] * 9)
    with pytest.raises(InputError, match="9 of 10 images have no caption: 1, 2, 3 and 6 more"):
        require_captions(many, skip_bad=False)
    with pytest.raises(InputError, match=r"has no captions, .*metadata\.csv"):
        require_captions(captioned(None, None), skip_bad=True)


def test_every_image_has_one_of_its_captions_drawn_anew_each_epoch() -> None:
    images = squares(40)
    targets = training_targets(RECIPE, images, seed=0)
    sampler, known = build_sampler(recipe(sampling__batch_size=16), targets, seed=5), targets.captions
    assert known is not None
    seen = []
    for number in range(4):
        plan = sampler.epoch(number)
        assert np.array_equal(plan.rows, Shuffle(np.arange(40), batch_size=16, seed=5).epoch(number).rows)
        assert plan.captions is not None
        for row, caption in zip(plan.rows, plan.captions, strict=True):
            assert images.texts is not None
            assert known.distinct[caption] in images.texts[row]
        by_row = np.empty(40, np.int64)
        by_row[plan.rows] = plan.captions
        seen.append(by_row)
        parts = [plan.batch(1, rank, 2) for rank in range(2)]
        assert np.array_equal(np.concatenate([part.captions for part in parts]), plan.batch(1).captions)
        assert np.array_equal(plan.head(1).captions, plan.captions[:16])
        again = build_sampler(recipe(sampling__batch_size=16), targets, seed=5).epoch(number)
        assert np.array_equal(again.captions, plan.captions)
    changed = np.mean([np.mean(a != b) for a, b in itertools.pairwise(seen)])
    assert 0.3 < changed < 0.7  # of two captions each


def test_images_without_a_caption_are_not_drawn() -> None:
    numbers, starts = [0, 1, 0], [0, 2, 2, 3]
    for epoch in range(3):
        plan = Captions(numbers, starts, batch_size=2, seed=0).epoch(epoch)
        assert sorted(plan.rows.tolist()) == [0, 2]
    with pytest.raises(InputError, match="no image has a caption"):
        Captions([], [0, 0, 0], batch_size=2, seed=0)


# ---- what the loss is told


def test_the_loss_compares_images_with_their_captions_each_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    texts = ["a cat", "a dog", "a bird"]
    tower = TextTower.fit(texts, dim=4, width=8, layers=1, heads=2, dropout=0.0)
    loss = TowersLoss(CLIPLoss(), tower, texts)
    z = torch.nn.functional.normalize(torch.randn(5, 4), dim=1).requires_grad_()
    numbers = torch.tensor([2, 0, 2, 2, 1])
    rows = []
    original = tower.forward
    monkeypatch.setattr(tower, "forward", lambda inputs: (rows.append(len(inputs)), original(inputs))[1])
    value = loss(z, numbers)
    value.backward()
    assert rows == [3]
    got = z.grad.clone()  # type: ignore[union-attr]  # set by backward
    z.grad = None
    keys = torch.stack([original(loss.inputs[number : number + 1])[0] for number in numbers])  # type: ignore[index]  # a tensor
    wanted = of_towers(CLIPLoss(), z, keys, numbers)
    wanted.backward()
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(got, z.grad)
    assert loss.temperature == pytest.approx(0.07)
    learned = {name for name, parameter in loss.named_parameters() if parameter.grad is not None}
    assert "loss.log_scale" in learned
    assert any(name.startswith("tower.") for name in learned)
    assert not any("inputs" in name for name in loss.state_dict())


# ---- training


def same_bits(a: Fitted, b: Fitted) -> bool:
    assert a.text is not None
    assert b.text is not None
    pairs = [(a.encoder.state_dict(), b.encoder.state_dict()), (a.text.state_dict(), b.text.state_dict())]
    return a.temperature == b.temperature and all(torch.equal(one[name], two[name]) for one, two in pairs for name in one)


def class_accuracy(done: Fitted, images: ImageSet, template: str) -> float:
    assert done.text is not None
    z = done.encoder(torch.from_numpy(images.images).float().div(255).sub(0.15).div(0.2)).detach().numpy()
    named = {name: [template.format(*name.split())] for name in SQUARES}
    found = (z @ class_vectors(done.text.embed, named).T).argmax(1)
    return float((found == images.require_labels()).mean())


@pytest.mark.parametrize("kind", ["clip", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("nt-xent", "triplet"))])
def test_it_learns_from_captions_alone_and_knows_classes_by_words_it_never_read_together(kind: str) -> None:
    images = dataclasses.replace(squares(160), labels=None, classes=())
    made = Recipe.from_dict({**CLIP, "loss": {"kind": kind}})
    held = squares(80, seed=5)
    done = fit(made, images, held, seed=1)
    assert class_accuracy(done, held, "a {} one at the {}") > 0.9
    figures = done.history[-1]["validation"]
    assert figures["knn_accuracy"] > 0.9
    assert 0.25 < figures["image_to_text"] <= 1  # two of the five captions of its class are the image's own
    assert 0.1 < figures["text_to_image"] <= 1
    assert figures["loss"] < done.history[0]["validation"]["loss"]
    assert done.temperature is not None
    assert not done.text.training  # type: ignore[union-attr]  # seen above


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss__kind": "siglip", "train__optimizer": "muon", "train__average": 0.9, "train__schedule": "one-cycle"},
        {"train__chunk": 16, "train__clip": 1.0, "sampling__drop_last": True},
    ],
    ids=["clip", "siglip, muon, averaged", "chunks"],
)
@pytest.mark.parametrize("stop", [2, 5])
def test_an_interrupted_run_ends_in_the_same_bits(changes: dict[str, Any], stop: int, tmp_path: Path) -> None:
    made, images = recipe(**changes, train__epochs=3), squares(100)
    whole = fit(made, images, squares(40, seed=5), seed=2)
    path, home, count = tmp_path / "latest.safetensors", LOSSES[made.loss.kind], 0

    class Interrupting(home):  # type: ignore[valid-type,misc]
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal count
            if self.training and torch.is_grad_enabled():
                count += 1
                if count == stop + 1:  # the first is of the memory that is reckoned before
                    os.kill(os.getpid(), signal.SIGINT)
            value: Tensor = super().forward(*args, **kwargs)
            return value

    LOSSES["interrupting"] = Interrupting
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(made.with_changes({"loss.kind": "interrupting"}), images, squares(40, seed=5), seed=2, checkpoint=path)
    finally:
        del LOSSES["interrupting"]
    resumed = fit(made, images, squares(40, seed=5), seed=2, checkpoint=path, resume=True)
    assert same_bits(whole, resumed)
    for key in ("loss", "validation", "health"):
        assert [row[key] for row in resumed.history] == [row[key] for row in whole.history]


def test_chunks_of_images_give_the_weights_of_the_whole_batch() -> None:
    made = recipe(train__optimizer="sgd", train__epochs=2, text__dropout=0.0)
    whole, chunked = (fit(made.with_changes({"train.chunk": chunk}), squares(80), seed=1) for chunk in (0, 7))
    for one, two in ((whole.encoder, chunked.encoder), (whole.text, chunked.text)):
        assert one is not None
        assert two is not None
        for name, value in one.state_dict().items():
            torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_long_captions_are_cut_and_that_is_said() -> None:
    class Notes:
        def __init__(self) -> None:
            self.said: list[str] = []

        def note(self, message: str) -> None:
            self.said.append(message)

        def step(self, *values: Any) -> None: ...
        def epoch(self, *values: Any) -> None: ...
        def warn(self, message: str) -> None:
            self.said.append(message)

    fit(recipe(text__length=4, train__epochs=1), squares(40), watcher=(notes := Notes()))
    (line,) = [one for one in notes.said if "captions" in one]
    assert line.endswith("of the captions are longer than 4 pieces, as text.length says; their ends are not read")
    assert "no two images" not in " ".join(notes.said)


# ---- what does not go together


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss__kind": "proxy-anchor"}, "'proxy-anchor' cannot compare images with captions; take clip or siglip"),
        ({"loss__kind": "cross-entropy"}, "'cross-entropy' cannot compare images with captions"),
        ({"encoder__normalize": False}, "set encoder.normalize=true"),
        ({"train__projector": [8]}, r"set train\.projector=\[\]"),
    ],
)
def test_recipes_that_cannot_learn_from_captions(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check(recipe(**changes), squares(20), seed=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text.heads": 3}, "text.heads is 3; expected a divisor of text.width, 16"),
        ({"text.vocabulary": 100}, "text.vocabulary is 100; expected 258"),
        ({"text.length": 1}, "text.length is 1"),
        ({"text.dropout": 1.0}, "text.dropout is 1.0"),
        ({"text.kind": "lstm"}, "text.kind is 'lstm'; expected one of 'transformer', 'sentence'"),
        ({"text.widht": 8}, "text.widht.*did you mean 'width'"),
        ({"evaluate.templates": ["a photo"]}, r"evaluate\.templates is .*expected texts with \{\}"),
    ],
)
def test_the_text_section_is_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        RECIPE.with_changes(changes)


def test_the_text_section_is_there_only_where_it_is_needed() -> None:
    assert "text" not in Recipe.from_dict(TINY).to_dict()
    plain = Recipe.from_dict({**TINY, "sampling": {"kind": "captions"}})
    assert plain.to_dict()["text"]["kind"] == "transformer"
    assert Recipe.from_dict(plain.to_dict()) == plain
    assert Recipe.from_dict(TINY).with_changes({"sampling.kind": "captions", "text.width": 64}).text.width == 64  # type: ignore[union-attr]  # there
    assert RECIPE.with_changes({"train.mode": "linear"}).sampling.kind == "shuffle"


def test_images_without_captions_are_refused_and_captions_are_no_burden(small: ImageSet) -> None:
    with pytest.raises(InputError, match="shapes has no captions"):
        fit(RECIPE, small)
    assert "knn_accuracy" in fit(recipe(train__epochs=1), squares(40), shapes(20)).history[0]["validation"]
    images = shapes(60)
    bare, with_texts = (fit(Recipe.from_dict(TINY), one, seed=1) for one in (images, images.with_texts(["x"] * 60)))
    for name, value in bare.encoder.state_dict().items():
        assert torch.equal(value, with_texts.encoder.state_dict()[name])


def test_nothing_of_a_tower_is_made_for_other_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_module, "build_tower", lambda *given: pytest.fail("a tower was built"))
    done = fit(Recipe.from_dict(TINY), squares(40), seed=1)
    assert done.text is None
    assert done.temperature is None
