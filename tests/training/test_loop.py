from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import TINY, shapes
from torch import Tensor

from nearfar.data import ImageSet
from nearfar.distributed import Part
from nearfar.encoders import ENCODERS
from nearfar.errors import InputError
from nearfar.losses import LOSSES
from nearfar.recipe import Recipe, TrainSection
from nearfar.sampling import Epoch
from nearfar.training.loop import Fitted, fit
from nearfar.training.muon import Muon, orthogonal
from nearfar.training.optim import learning_rate, update_average
from nearfar.training.parts import build_optimizer, check
from nearfar.training.seeds import mix
from nearfar.training.step import Look, Step

RECIPE = Recipe.from_dict(TINY)


class Recorder:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def step(self, *values: Any) -> None:
        pass

    def epoch(self, row: dict[str, Any], epochs: float) -> None:
        self.rows.append(row)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def weights(fitted: Fitted) -> dict[str, Tensor]:
    return fitted.encoder.state_dict()


def same_bits(a: Fitted, b: Fitted) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_training_learns_and_the_seed_decides_every_bit(small: ImageSet) -> None:
    torch.manual_seed(1)
    first = fit(RECIPE, small, shapes(60, seed=5), seed=3)
    torch.manual_seed(2)  # the caller's random state must not matter, nor be moved
    before = torch.get_rng_state()
    again = fit(RECIPE, small, shapes(60, seed=5), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_bits(first, again)
    assert not same_bits(first, fit(RECIPE, small, seed=4))
    losses = [row["loss"] for row in first.history]
    assert losses[-1] < losses[0]
    assert first.history[-1]["validation"]["knn_accuracy"] > 0.9
    assert not first.encoder.training


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampling.kind": "pairs", "loss.kind": "contrastive", "sampling.partner": "fixed"},
        {"sampling.kind": "pairs", "loss.kind": "contrastive", "sampling.linked": 5, "augment.noise": 0.1},
        {"sampling.kind": "class-batches", "sampling.classes": 3, "sampling.per_class": 10, "loss.kind": "dcl"},
        {"encoder": {"kind": "conv5", "dim": 8, "dropout": 0.5}, "augment.shift": 1, "data.size": [16, 16]},
        {"train.optimizer": "sgd", "train.schedule": "one-cycle", "train.average": 0.9, "train.clip": 1.0},
        {"train.optimizer": "adamw", "train.schedule": "exponential", "train.factor": 0.5, "train.precision": "bfloat16"},
        {"train.optimizer": "muon", "train.schedule": "one-cycle", "train.epochs": 2.5, "loss.kind": "proxy-anchor"},
    ],
    ids=["shuffle", "pairs", "linked", "class-batches", "dropout", "averaged", "bfloat16", "muon"],
)
@pytest.mark.parametrize("stop", [1, 4, 8])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, changes: dict[str, Any], stop: int) -> None:
    tree = json.loads(json.dumps(TINY))
    tree["encoder"] = changes.get("encoder", tree["encoder"])
    recipe = Recipe.from_dict(tree).with_changes({k: v for k, v in changes.items() if k != "encoder"})
    images = shapes(120, size=recipe.data.size[0] if recipe.data.size else 12)
    whole = fit(recipe, images, seed=1)
    path = tmp_path / "latest.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(_interrupted(recipe, stop), images, seed=1, checkpoint=path)
    resumed = fit(recipe, images, seed=1, checkpoint=path, resume=True)
    assert same_bits(whole, resumed)
    keys = ("epoch", "loss", "learning_rate", "spread", "health")
    assert [[row[key] for key in keys] for row in resumed.history] == [[row[key] for key in keys] for row in whole.history]


def _interrupted(recipe: Recipe, stop: int) -> Recipe:
    """The same recipe, but Ctrl-C arrives in its ``stop``-th step."""
    home = LOSSES[recipe.loss.kind]
    count = 0

    class Interrupting(home):  # type: ignore[valid-type,misc]
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            self._tick()
            result: Tensor = super().forward(*args, **kwargs)
            return result

        def pairs(self, *args: Any) -> Tensor:
            self._tick()
            result: Tensor = super().pairs(*args)
            return result

        def _tick(self) -> None:
            nonlocal count
            count += 1
            if count == stop + 1:  # the first is of the memory that is reckoned before
                os.kill(os.getpid(), signal.SIGINT)

    LOSSES["interrupting"] = Interrupting
    params = {f"loss.{key}": value for key, value in recipe.loss.params.items()}
    return recipe.with_changes({"loss.kind": "interrupting", **params})


@pytest.fixture(autouse=True)
def _forget_test_losses() -> Any:
    yield
    LOSSES.pop("interrupting", None)


def test_a_checkpoint_is_left_after_every_epoch_for_a_process_that_is_killed(tmp_path: Path, small: ImageSet) -> None:
    path = tmp_path / "latest.safetensors"
    seen: list[bytes] = []
    fit(RECIPE, small, checkpoint=path, on_epoch=lambda history: seen.append(path.read_bytes() if path.exists() else b""))
    assert seen[0] == b""
    assert len(set(seen)) == RECIPE.train.epochs  # one after each of the first two epochs, each another


def test_a_checkpoint_of_another_network_or_a_damaged_one_is_refused(tmp_path: Path, small: ImageSet) -> None:
    path = tmp_path / "latest.safetensors"
    fit(RECIPE, small, checkpoint=path)
    wider = RECIPE.with_changes({"encoder.hidden": [33]})
    with pytest.raises(InputError, match="does not belong to this network"):
        fit(wider, small, checkpoint=path, resume=True)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        fit(RECIPE, small, checkpoint=path, resume=True)


@pytest.mark.parametrize("kind", sorted(set(ENCODERS) - {"timm"}))  # which has tests of its own
def test_every_encoder_trains(kind: str) -> None:
    recipe = Recipe.from_dict({**TINY, "encoder": {"kind": kind}, "train": {"epochs": 1, "learning_rate": 1e-3}})
    fitted = fit(recipe, shapes(40, size=28))
    assert np.isfinite(fitted.history[0]["loss"])


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_every_loss_trains_in_batches_and_lowers_itself(kind: str, small: ImageSet) -> None:
    tree = {**TINY, "loss": {"kind": kind}, "train": {"epochs": 6, "learning_rate": 0.01}}
    if LOSSES[kind].scores:
        tree["encoder"] = {"kind": "mlp", "hidden": [32], "dim": 3, "normalize": False}
    fitted = fit(Recipe.from_dict(tree), small)
    losses = [row["loss"] for row in fitted.history]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss.kind": "supconn"}, ["supconn", "supcon"]),
        ({"loss.temperatur": 1}, ["temperatur", "temperature"]),
        ({"loss.temperature": -1}, ["temperature", "-1"]),
        ({"encoder.kind": "resnett"}, ["resnett", "resnet"]),
        ({"encoder.dims": 3}, ["dims", "dim"]),
        ({"augment.shft": 2}, ["shft", "shift"]),
        ({"augment.shift": -2}, ["shift", "-2"]),
        ({"sampling.kind": "pairs"}, ["supcon", "pairs", "contrastive"]),
        ({"encoder.normalize": False}, ["supcon", "unit length", "normalize"]),
        ({"loss.kind": "cross-entropy", "encoder.dim": 2}, ["cross-entropy", "2", "3", "encoder.dim"]),
        ({"data.mean": [0.1, 0.2, 0.3]}, ["mean", "3", "1 channel"]),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_training(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        check(RECIPE.with_changes(changes), shapes(30), seed=0)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_images_without_classes_to_tell_apart_are_refused(small: ImageSet) -> None:
    with pytest.raises(InputError, match="no labels"):
        fit(RECIPE, ImageSet(images=small.images))
    with pytest.raises(InputError, match="one class only"):
        fit(RECIPE, small.subset(small.labels == 1))
    lonely = ImageSet(images=small.images[:5], labels=np.array([0, 0, 1, 1, 2]), classes=("a", "b", "lonely"))
    with pytest.raises(InputError, match="lonely"):
        fit(RECIPE.with_changes({"sampling.kind": "pairs", "loss.kind": "contrastive"}), lonely)


def test_a_loss_that_is_no_number_ends_training_with_what_to_try(tmp_path: Path, small: ImageSet) -> None:
    recipe = RECIPE.with_changes(
        {"train.learning_rate": 1e30, "loss.kind": "contrastive", "encoder.normalize": False, "train.optimizer": "sgd"}
    )
    with pytest.raises(InputError, match=r"epoch 1.*(learning rate|learning_rate)"):
        fit(recipe, small, checkpoint=tmp_path / "latest.safetensors")
    assert not (tmp_path / "latest.safetensors").exists()


def test_collapse_is_noticed_once_and_said_in_plain_words(small: ImageSet) -> None:
    blank = ImageSet(images=np.zeros_like(small.images), labels=small.labels, classes=small.classes)
    recorder = Recorder()
    fit(RECIPE, blank, watcher=recorder)
    assert len(recorder.warnings) == 1
    assert "collapsed" in recorder.warnings[0]
    assert "try" in recorder.warnings[0]
    fit(RECIPE, small, watcher=(healthy := Recorder()))
    assert healthy.warnings == []
    assert len(healthy.rows) == 3


def test_learning_rates_follow_their_closed_forms() -> None:
    step = TrainSection(schedule="step", learning_rate=1.0, step_epochs=7, factor=0.3, epochs=50)
    assert [learning_rate(step, epoch, 0, 500) for epoch in (0, 6, 7, 13, 14)] == pytest.approx([1, 1, 0.3, 0.3, 0.09])
    falling = TrainSection(schedule="exponential", learning_rate=3e-4, factor=0.5, epochs=10)
    assert learning_rate(falling, 5, 50, 100) == pytest.approx(3e-4 * 0.5**0.5)
    cycle = TrainSection(schedule="one-cycle", learning_rate=2.0, epochs=2, warmup=0.25, start_factor=0.1, final_factor=0.01)
    rates = [learning_rate(cycle, number // 50, number, 100) for number in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0, rel=1e-3)
    assert rates[-1] == pytest.approx(0.02)
    assert np.argmax(rates) in (24, 25)
    assert all(np.diff(rates[25:]) < 0)
    assert learning_rate(TrainSection(learning_rate=0.1), 3, 3, 9) == 0.1


def test_the_average_of_weights_is_the_closed_form() -> None:
    average, encoder = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        encoder.weight.fill_(3.0)
        encoder.num_batches_tracked.fill_(7)
    for _ in range(2):
        update_average(average, encoder, 0.5)
    assert average.weight.tolist() == [2.5, 2.5]  # 1 -> 2 -> 2.5
    assert average.num_batches_tracked == 7


@pytest.mark.parametrize(
    ("section", "peer"),
    [
        (TrainSection(optimizer="adam", weight_decay=0.1), lambda w: torch.optim.Adam(w, weight_decay=0.1, fused=True)),
        (
            TrainSection(optimizer="adamw", beta2=0.95),
            lambda w: torch.optim.AdamW(w, betas=(0.9, 0.95), weight_decay=0, fused=True),
        ),
        (
            TrainSection(optimizer="sgd", momentum=0.8, weight_decay=0.5),
            lambda w: torch.optim.SGD(w, momentum=0.8, weight_decay=0.5, nesterov=True, fused=True),
        ),
        (TrainSection(optimizer="sgd", momentum=0.0), lambda w: torch.optim.SGD(w, fused=True)),
    ],
    ids=["adam", "adamw", "sgd", "sgd without momentum"],
)
def test_optimisers_are_those_of_pytorch(section: TrainSection, peer: Callable[..., torch.optim.Optimizer]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), (2, 3, 2, 2))]
    ours[2].data = ours[2].data.contiguous(memory_format=torch.channels_last)
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    own, other = build_optimizer(section, ours), peer(theirs)
    for step in range(6):
        own.rate = other.param_groups[0]["lr"] = 0.1 / (step + 1)
        for place, (mine, its) in enumerate(zip(ours, theirs, strict=True)):
            # One weight begins late, which PyTorch's fused SGD cannot, and one has a pause.
            silent = (place == 0 and step < 2 and section.optimizer != "sgd") or (place == 1 and step == 3)
            mine.grad = None if silent else torch.randn(mine.shape, generator=generator)
            its.grad = None if silent else mine.grad.clone()
        own.step()
        other.step()
        if step == 2:  # a new one takes the state over
            state = {name: value.clone() for name, value in own.state().items()}
            own = build_optimizer(section, ours)
            own.load(state)
        for mine, its in zip(ours, theirs, strict=True):
            assert torch.equal(mine, its)
    own.forget_gradients()
    assert all(weight.grad is None for weight in ours)


def quintic(singular: Tensor) -> Tensor:
    """What three iterations of Jordan et al. (2024) make of singular values that were divided by their root sum of squares."""
    x = singular / singular.square().sum().sqrt()
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return x


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (1, 7), (6, 3, 2, 2), (2, 3, 3, 3)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_orthogonal_moves_singular_values_alone(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    step = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    if len(shape) == 4:
        step = step.contiguous(memory_format=layout)
    got = orthogonal(step)
    left, singular, right = torch.linalg.svd(step.double().flatten(1), full_matrices=False)
    wanted = (left * quintic(singular)) @ right
    torch.testing.assert_close(got.flatten(1).double(), wanted, rtol=1e-4, atol=1e-5)
    assert got.shape == step.shape
    assert got.is_contiguous(memory_format=layout) or len(shape) == 2


def test_orthogonal_of_nothing_is_nothing() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_muon_by_a_slow_loop_and_adam_for_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    section = TrainSection(optimizer="muon", learning_rate=0.2, vector_rate=0.01, momentum=0.6, weight_decay=0.05)
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((6, 2), (5,), (2, 3, 2, 2))]
    proxies = torch.nn.Parameter(torch.randn(3, 4, generator=generator))
    matrices = [weight.detach().clone() for weight in (ours[0], ours[2])]
    rest = [torch.nn.Parameter(weight.detach().clone()) for weight in (ours[1], proxies)]
    momentum = [torch.zeros_like(weight) for weight in matrices]
    own, adam = build_optimizer(section, ours, [proxies]), torch.optim.Adam(rest, lr=0.01, fused=True)
    assert isinstance(own, Muon)
    for step in range(5):
        own.rate = 0.2 / (step + 1)
        adam.param_groups[0]["lr"] = 0.01 / (step + 1)
        for weight in (*ours, proxies):
            weight.grad = torch.randn(weight.shape, generator=generator)
        for mine, its in zip((ours[1], proxies), rest, strict=True):
            its.grad = mine.grad.clone()  # type: ignore[union-attr]  # set just above
        own.step()
        adam.step()
        if step == 2:  # a new one takes the state over
            state = {name: value.clone() for name, value in own.state().items()}
            own = build_optimizer(section, ours, [proxies])
            own.load(state)
        for place, mine in enumerate((ours[0], ours[2])):
            momentum[place] = 0.6 * momentum[place] + mine.grad
            ahead = mine.grad + 0.6 * momentum[place]
            rows, columns = len(mine), mine[0].numel()
            moved = orthogonal(ahead) * max(1, rows / columns) ** 0.5
            matrices[place] = matrices[place] * (1 - 0.2 / (step + 1) * 0.05) - 0.2 / (step + 1) * moved
            torch.testing.assert_close(mine.detach(), matrices[place])
        for mine, its in zip((ours[1], proxies), rest, strict=True):
            torch.testing.assert_close(mine, its)
    own.forget_gradients()
    assert all(weight.grad is None for weight in (*ours, proxies))
    before = [weight.detach().clone() for weight in ours]
    own.step()  # without gradients nothing moves
    assert all(torch.equal(old, new) for old, new in zip(before, ours, strict=True))


def test_an_epoch_may_end_in_its_middle(small: ImageSet) -> None:
    whole = len(small) // RECIPE.sampling.batch_size
    fitted = fit(RECIPE.with_changes({"train.epochs": 1 + 2 / whole}), small, seed=1)
    assert [row["epoch"] for row in fitted.history] == [1, 1 + 2 / whole]
    tiny = fit(RECIPE.with_changes({"train.epochs": 1e-6}), small, seed=1)  # one step at least
    assert [row["epoch"] for row in tiny.history] == [1 / whole]


def test_training_does_not_import_the_compiler() -> None:
    code = """
import sys
import numpy as np
import nearfar as nf
images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
nf.Embedder(recipe="decoupled", epochs=1, changes={"data.size": [8, 8]}).fit(images, np.arange(40) % 4)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_seeds_of_steps_do_not_repeat() -> None:
    seeds = {mix(seed, number) for seed in range(20) for number in range(2000)}
    assert len(seeds) == 20 * 2000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(("kind", "linked"), [("shuffle", 1), ("pairs", 1), ("pairs", 3)])
def test_chunks_give_the_weights_of_the_whole_batch(small: ImageSet, kind: str, linked: int) -> None:
    loss = "contrastive" if kind == "pairs" else "supcon"
    changes = {"sampling.kind": kind, "sampling.linked": linked, "loss.kind": loss, "train.optimizer": "sgd"}
    recipe = RECIPE.with_changes(changes | {"augment.noise": 0.2})
    whole, chunked = fit(recipe, small), fit(recipe.with_changes({"train.chunk": 7}), small)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(chunked)[name], value, rtol=1e-5, atol=1e-6)
    assert [row["loss"] for row in chunked.history] == pytest.approx([row["loss"] for row in whole.history], rel=1e-5)


@pytest.mark.parametrize("pairing", ["half", "both"])
def test_linked_pairs_teach_what_they_would_if_each_image_was_embedded_anew(
    small: ImageSet, pairing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"sampling.kind": "pairs", "sampling.pairing": pairing, "loss.kind": "contrastive", "train.optimizer": "sgd"}
    recipe = RECIPE.with_changes(changes | {"sampling.linked": 5})
    embedded, look = [], Step._look

    def counting(step: Step, part: Part) -> list[Look]:
        embedded.append(len(part.images))
        return look(step, part)

    monkeypatch.setattr(Step, "_look", counting)
    shared, few = fit(recipe, small), sum(embedded)
    batch = Epoch.batch
    monkeypatch.setattr(Epoch, "batch", lambda *places: replace(batch(*places), linked=1))
    apart = fit(recipe, small)
    assert few < 0.75 * (sum(embedded) - few)
    for name, value in weights(apart).items():
        torch.testing.assert_close(weights(shared)[name], value, rtol=1e-5, atol=1e-6)
    assert [row["loss"] for row in shared.history] == pytest.approx([row["loss"] for row in apart.history], rel=1e-5)


def test_chunks_resume_to_the_same_bits_with_dropout_and_batch_norm(tmp_path: Path) -> None:
    tree = {**TINY, "encoder": {"kind": "conv5", "dim": 8, "dropout": 0.5}, "data": {"size": [16, 16], "channels": 1}}
    recipe, images, path = (
        Recipe.from_dict(tree).with_changes({"train.chunk": 8}),
        shapes(60, size=16),
        tmp_path / "c.safetensors",
    )
    whole = fit(recipe, images, seed=1)
    with pytest.raises(KeyboardInterrupt):
        fit(_interrupted(recipe, 3), images, seed=1, checkpoint=path)
    assert same_bits(whole, fit(recipe, images, seed=1, checkpoint=path, resume=True))


def test_the_memory_of_a_step_is_said_before_it_starts(small: ImageSet) -> None:
    fit(RECIPE, small, watcher=(recorder := Recorder()))
    assert len(recorder.notes) == 1
    assert re.match(r"a step needs about [\d.]+ MiB \(weights and optimiser .* 30 images .* are free$", recorder.notes[0])
