"""Figures of training's health against slow loops; every fault injected and its sentence checked; healthy runs are quiet."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import TINY, shapes
from torch import Tensor

import nearfar as nf
from nearfar import runs, show, verbs
from nearfar.data import ImageSet
from nearfar.embedder import Embedder
from nearfar.losses import LOSSES, ContrastiveLoss, Loss, MultiSimilarityLoss, SupConLoss, TripletLoss
from nearfar.recipe import Recipe, load_recipe, recipe_names
from nearfar.report import report
from nearfar.sampling import ClassBatches, Epoch, Pairs
from nearfar.training.checkpoint import load_tensors, save_tensors
from nearfar.training.health import batch_figures, diagnose, embedding_figures, measured_batch, sample, spread, warnings_of
from nearfar.training.loop import fit

RECIPE = Recipe.from_dict(TINY)


class Recorder:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def step(self, *values: Any) -> None:
        pass

    def epoch(self, row: dict[str, Any], epochs: float) -> None:
        pass

    def note(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def points(rows: int = 40, dim: int = 5, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(rows) % classes)
    z = random.normal(size=(rows, dim)) + 2.0 * random.normal(size=(classes, dim))[labels]
    return torch.nn.functional.normalize(torch.from_numpy(z), dim=1).float(), torch.from_numpy(labels)


def trained(changes: dict[str, Any], images: ImageSet | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """The history and the warnings of a run."""
    fitted = fit(RECIPE.with_changes(changes), images or shapes(120), watcher=(watcher := Recorder()))
    return fitted.history, watcher.warnings


def test_spread_is_zero_for_one_point_and_one_for_centred_points() -> None:
    rows = torch.nn.functional.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    assert spread(torch.ones(5, 3)) == 0
    assert spread(torch.cat([rows, -rows])) == pytest.approx(1)
    wide = rows.double().numpy()
    oracle = np.sqrt(((wide - wide.mean(0)) ** 2).sum(1).mean() / (wide**2).sum(1).mean())
    assert spread(rows) == pytest.approx(float(oracle), rel=1e-5)


def test_figures_of_a_batch_are_those_of_slow_loops() -> None:
    z, labels = points()
    z = z * 3.0  # of any length: alignment and uniformity look at directions
    found = embedding_figures(z, labels.numpy())
    unit = [row / np.linalg.norm(row) for row in z.double().numpy()]
    pairs = list(itertools.combinations(range(len(unit)), 2))
    squares = {pair: float(((unit[pair[0]] - unit[pair[1]]) ** 2).sum()) for pair in pairs}
    alike = [squares[i, j] for i, j in pairs if labels[i] == labels[j]]
    values = np.linalg.svd(z.double().numpy(), compute_uv=False)
    shares = values / values.sum()
    assert found["alignment"] == pytest.approx(sum(alike) / len(alike), rel=1e-5)
    assert found["uniformity"] == pytest.approx(
        math.log(sum(math.exp(-2 * one) for one in squares.values()) / len(pairs)), rel=1e-5
    )
    assert found["effective_rank"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert (found["images"], found["classes"], found["dim"]) == (40, 4, 5)
    far = {pair: float(((z[pair[0]] - z[pair[1]]).double() ** 2).sum()) for pair in pairs}
    far |= {(j, i): value for (i, j), value in far.items()}
    nearest = [min((j for j in range(40) if j != i), key=lambda j: far[i, j]) for i in range(40)]
    right = [bool(labels[i] == labels[j]) for i, j in enumerate(nearest)]
    assert 0 < sum(right) < 40
    assert found["nearest_right"] == pytest.approx(sum(right) / 40)
    assert embedding_figures(z[:4], np.arange(4))["nearest_right"] is None


def test_large_batches_are_looked_at_by_a_sample_that_is_always_the_same() -> None:
    assert sample(100).tolist() == list(range(100))
    chosen = sample(5000)
    assert len(np.unique(chosen)) == len(chosen) == 256
    assert np.array_equal(chosen, sample(5000))
    assert chosen.max() > 4000


@pytest.mark.parametrize(("rows", "size", "expected"), [(10, 5, 1), (11, 5, 1), (14, 5, 1), (15, 5, 2), (3, 5, 0), (5, 5, 0)])
def test_an_epoch_is_judged_by_its_last_whole_batch(rows: int, size: int, expected: int) -> None:
    plan = Epoch(rows=np.arange(rows), partners=None, same=None, batch_size=size)
    assert measured_batch(plan) == expected
    assert len(plan.batch(expected).rows) == min(rows, size)


def test_classes_of_batches_are_counted_as_in_a_loop() -> None:
    labels = np.array([0] * 6 + [1] * 6 + [2, 3])
    plan = Epoch(rows=np.arange(14), partners=None, same=None, batch_size=4)
    # 0000, 0011, 1111, 23
    assert batch_figures(plan, labels) == {"classes_per_batch": 6 / 4, "one_class_batches": 2 / 4, "no_positive_batches": 1 / 4}
    pairs = Pairs(labels[:12], batch_size=1, seed=0, pairing="both").epoch(0)  # as many of one class as of two
    assert batch_figures(pairs, labels) == {"classes_per_batch": 1.5, "one_class_batches": 0.5, "no_positive_batches": 0.5}
    assert batch_figures(ClassBatches(labels[:12], classes=2, per_class=3, seed=0).epoch(0), labels)["classes_per_batch"] == 2


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
def test_active_pairs_are_those_whose_own_loss_is_not_zero(distance: Any) -> None:
    z, labels = points()
    z[1] = z[0]
    labels[1] = labels[0]  # a positive pair without any loss
    loss = ContrastiveLoss(margin=0.8, distance=distance)
    counts = {True: [0, 0], False: [0, 0]}
    for i, j in itertools.permutations(range(len(z)), 2):
        same = bool(labels[i] == labels[j])
        value = float(loss.pairs(z[i : i + 1], z[j : j + 1], torch.tensor([same])))
        counts[same][0] += value > 0
        counts[same][1] += 1
    expected = {"positives": counts[True][0] / counts[True][1], "negatives": counts[False][0] / counts[False][1]}
    assert 0 < expected["negatives"] < 1
    assert expected["positives"] < 1
    assert loss.active(z, labels) == pytest.approx(expected)
    a, b = (torch.from_numpy(np.array(side)) for side in zip(*itertools.permutations(range(len(z)), 2), strict=True))
    assert loss.active_pairs(z[a], z[b], labels[a] == labels[b]) == pytest.approx(expected)
    assert loss.active_pairs(z[:2], z[:2], torch.tensor([True, True])) == {"positives": 0.0}


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
def test_active_triplets_are_those_of_loops_over_all_triplets(distance: Any) -> None:
    z, labels = points(24)
    apart = torch.cdist(z.double(), z.double())
    apart = apart if distance == "euclidean" else apart.square()
    margin, rows = 0.3, range(len(z))
    triplets = [
        (a, p, n)
        for a, p, n in itertools.product(rows, rows, rows)
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]
    ]
    broken = [bool(apart[a, p] - apart[a, n] + margin > 0) for a, p, n in triplets]
    assert 0 < sum(broken) < len(broken)
    whole = TripletLoss(margin=margin, mining="all", distance=distance)
    assert whole.active(z, labels) == pytest.approx({"triplets": sum(broken) / len(broken)})

    hard, semi = [], []
    for a in rows:
        positives = [p for p in rows if p != a and labels[p] == labels[a]]
        negatives = [n for n in rows if labels[n] != labels[a]]
        nearest = min(float(apart[a, n]) for n in negatives)
        hard.append(max(float(apart[a, p]) for p in positives) - nearest + margin > 0)
        for p in positives:
            beyond = [float(apart[a, n]) for n in negatives if apart[a, n] > apart[a, p]]
            semi.append(bool(beyond) and float(apart[a, p]) - min(beyond) + margin > 0)
    for mining, flags in (("hard", hard), ("semi-hard", semi)):
        loss = TripletLoss(margin=margin, mining=mining, distance=distance)  # type: ignore[arg-type]  # one of the names
        assert loss.active(z, labels) == pytest.approx({"triplets": sum(flags) / len(flags)})
    assert TripletLoss(soft_margin=True).active(z, labels) == {}
    assert whole.active(z[:4], torch.arange(4)) == {}  # no positives: no triplets


def test_active_pairs_of_the_multi_similarity_loss_are_those_that_change_it() -> None:
    z, labels = points(20)
    loss = MultiSimilarityLoss(epsilon=0.05)
    cosine = z.double() @ z.double().T
    flags: dict[str, list[bool]] = {"positives": [], "negatives": []}
    for i, j in itertools.permutations(range(len(z)), 2):
        others = [k for k in range(len(z)) if k != i and (labels[k] == labels[i]) != (labels[j] == labels[i])]
        limits = [float(cosine[i, k]) for k in others]
        if labels[i] == labels[j]:
            flags["positives"].append(float(cosine[i, j]) - 0.05 < max(limits))
        else:
            flags["negatives"].append(float(cosine[i, j]) + 0.05 > min(limits))
    expected = {name: sum(each) / len(each) for name, each in flags.items()}
    assert loss.active(z, labels) == pytest.approx(expected)
    assert all(0 < share < 1 for share in expected.values())


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_asking_a_loss_what_is_active_changes_nothing(kind: str) -> None:
    home = LOSSES[kind]
    loss = home(**({"classes": 4, "dim": 5} if home.needs_classes else {}))
    z, labels = points()
    z.requires_grad_()
    torch.manual_seed(0)
    before = float(loss(z, labels).detach())
    shares = loss.active(z, labels)
    assert all(0 <= share <= 1 for share in shares.values())
    torch.manual_seed(0)
    assert float(loss(z, labels).detach()) == before
    assert z.grad is None


def healthy(epoch: int = 1, loss: float = 1.0, **changes: Any) -> dict[str, Any]:
    health = {
        "images": 128,
        "classes": 10,
        "dim": 64,
        "spread": 0.9,
        "effective_rank": 9.0,
        "nearest_right": 0.95,
        "one_class_batches": 0.0,
        "no_positive_batches": 0.0,
        "active": {"triplets": 0.2},
    }
    return {"epoch": epoch, "loss": loss, "learning_rate": 0.1, "health": health | changes}


FAULTS = [
    ("one-class", [], healthy(one_class_batches=0.9), "one class only"),
    ("no-positives", [], healthy(no_positive_batches=0.9), "no two images of a class"),
    ("collapsed", [], healthy(spread=0.01), "near each other"),
    ("few-dimensions", [healthy(effective_rank=1.5)], healthy(2, 0.9, effective_rank=1.4), "few dimensions"),
    ("inactive", [], healthy(active={"triplets": 0.0}, nearest_right=0.6), "no triplets are active"),
    ("not-falling", [healthy(1), healthy(2, 0.9)], healthy(3, 1.0), "not falling"),
]


@pytest.mark.parametrize(("kind", "history", "row", "words"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_each_fault_has_a_sentence_that_says_what_to_try_once(
    kind: str, history: list[dict[str, Any]], row: dict[str, Any], words: str
) -> None:
    found = diagnose(history, row, within_batch=True)
    assert found is not None
    assert found["kind"] == kind
    assert words in found["message"]
    assert "try" in found["message"]
    assert "\n" not in found["message"]
    said = [*history, {**row, "warning": found}]
    assert diagnose(said, {**row, "epoch": row["epoch"] + 1}, within_batch=True) is None
    assert warnings_of(said) == [found["message"]]


def test_what_is_well_is_not_warned_of() -> None:
    assert diagnose([], healthy(), within_batch=True) is None
    assert diagnose([], healthy(one_class_batches=1.0), within_batch=False) is None  # proxies need no others in the batch
    assert diagnose([], healthy(no_positive_batches=1.0), within_batch=False) is None
    assert diagnose([], healthy(effective_rank=1.4), within_batch=True) is None  # as at the beginning
    rising = healthy(2, 0.9, effective_rank=1.7)
    assert diagnose([healthy(effective_rank=1.4)], rising, within_batch=True) is None
    plane = healthy(2, 0.9, effective_rank=1.1, dim=2)
    assert diagnose([plane], plane, within_batch=True) is None  # two dimensions were asked for
    assert diagnose([], healthy(active={"positives": 1.0, "negatives": 0.0}), within_batch=True) is None
    assert diagnose([], healthy(active={}, nearest_right=0.1), within_batch=True) is None
    assert diagnose([], healthy(active={"triplets": 0.0}), within_batch=True) is None  # all is learned
    assert diagnose([healthy(1, -1.0), healthy(2, -1.1)], healthy(3, -1.2), within_batch=True) is None  # losses below zero
    assert warnings_of([{"warning": "damaged"}, {"warning": {}}, {}]) == []


def test_training_at_a_rate_far_too_high_collapses_and_each_thing_is_said_once() -> None:
    dead = {"loss.kind": "contrastive", "encoder.normalize": False, "train.optimizer": "sgd", "train.clip": 1.0}
    history, said = trained(dead | {"train.learning_rate": 10.0, "train.epochs": 8})
    assert any("collapsed in epoch" in message and "lower train.learning_rate" in message for message in said)
    assert len(set(said)) == len(said)
    assert said == warnings_of(history)
    history, said = trained(dead | {"train.learning_rate": 0.01, "train.epochs": 8})
    assert said == []
    assert all("warning" not in row for row in history)


def test_a_margin_of_zero_leaves_no_triplet_to_learn_from() -> None:
    changes = {"loss.kind": "triplet", "loss.margin": 0.0, "loss.mining": "semi-hard"}
    history, said = trained(changes, shapes(160, classes=8))
    assert [row["loss"] for row in history] == [0.0] * 3
    assert len(said) == 1
    assert "no triplets are active" in said[0]
    assert history[0]["warning"] == {"kind": "inactive", "message": said[0]}
    assert history[0]["health"]["active"] == {"triplets": 0.0}


def test_batches_of_one_class_are_noticed() -> None:
    history, said = trained({"sampling.batch_size": 1})
    assert len(said) == 1
    assert "one class only" in said[0]
    assert history[0]["health"]["classes_per_batch"] == 1
    _, fine = trained({"sampling.batch_size": 1, "loss.kind": "proxy-anchor"})  # compares with weights of its own
    assert fine == []


def test_batches_without_two_images_of_a_class_are_noticed() -> None:
    images = shapes(160, classes=8)
    many = ImageSet(images=images.images, labels=np.arange(160) // 2, classes=tuple(map(str, range(80))))
    _, said = trained({"sampling.batch_size": 4}, many)
    assert len(said) == 1
    assert "no two images of a class" in said[0]
    assert "class-batches" in said[0]


class Gather(Loss):
    """Pulls all rows to one point, or to one line: what no loss should do."""

    line = False

    def __init__(self) -> None:
        super().__init__()

    def _loss(self, batch: Any) -> Tensor:
        if not self.line:
            return (batch.z - batch.z.mean(0, keepdim=True)).square().sum(1).mean()
        return -(torch.where(batch.labels < 4, 1.0, -1.0) * batch.z[:, 0]).mean()


class Align(Gather):
    line = True


@pytest.fixture
def odd_losses() -> Any:
    LOSSES["gather"], LOSSES["align"] = Gather, Align
    yield
    del LOSSES["gather"], LOSSES["align"]


@pytest.mark.usefixtures("odd_losses")
def test_a_loss_that_pulls_all_together_is_noticed_and_the_advice_kept_in_the_history() -> None:
    history, said = trained({"loss.kind": "gather", "train.epochs": 8})
    assert len(said) == 1
    assert "collapsed in epoch" in said[0]
    assert "near each other" in said[0]
    assert history[-1]["spread"] < 0.05
    assert warnings_of(history) == said


@pytest.mark.usefixtures("odd_losses")
def test_a_collapse_to_one_line_is_noticed() -> None:
    history, said = trained({"loss.kind": "align", "train.epochs": 25}, shapes(160, classes=8))
    assert history[-1]["spread"] > 0.5  # not a point
    assert len(said) == 1
    assert "few dimensions" in said[0]


def test_a_loss_that_does_not_fall_is_noticed() -> None:
    _, said = trained({"train.learning_rate": 1e-12})
    assert len(said) == 1
    assert "not falling" in said[0]


@pytest.mark.parametrize("name", recipe_names())
def test_a_healthy_start_of_every_recipe_is_left_in_peace(name: str) -> None:
    source = "fashion-mnist" if "fashion" in name else "mnist"
    recipe = load_recipe(name, {"train.epochs": 1, "train.precision": "float32"})
    few = nf.load_images(source, split="train").subset(slice(0, 400))
    images = nf.load_images(few, size=recipe.data.size, channels=recipe.data.channels)
    if recipe.sampling.kind == "captions":
        images = images.with_texts({name: [f"a {name}", f"the digit {name}"] for name in images.classes})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Embedder(recipe=recipe).fit_parts(images, None)
    health = model.history_[0]["health"]
    assert "warning" not in model.history_[0]
    assert health["classes"] == 10 or (recipe.sampling.kind == "views" and health["classes"] > 100)
    assert health["classes_per_batch"] > 2
    assert 1 <= health["effective_rank"] <= health["dim"]
    assert health["alignment"] >= 0 >= health["uniformity"]
    assert (health["active"] != {}) == (recipe.loss.kind == "contrastive")
    json.dumps(model.history_, allow_nan=False)


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path: Path, small: ImageSet) -> None:
    path = tmp_path / "latest.safetensors"
    whole = fit(RECIPE, small)
    fit(RECIPE.with_changes({"train.epochs": 1}), small, checkpoint=path)
    tensors, header = load_tensors(path)
    del header["position"]["health"]
    header["position"]["warned"] = False
    save_tensors(path, tensors, header)
    resumed = fit(RECIPE, small, checkpoint=path, resume=True)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


def test_evaluate_and_report_repeat_what_was_said(tmp_path: Path) -> None:
    images, others = shapes(160, classes=8), shapes(160, classes=8, seed=7, name="others")
    recipe = RECIPE.with_changes({"loss.kind": "triplet", "loss.margin": 0.0})
    with pytest.warns(UserWarning, match="no triplets are active"):
        verbs.train(images, recipe=recipe, out=tmp_path / "run")
    said = warnings_of(runs.read_history(tmp_path / "run"))
    assert len(said) == 1
    tree = verbs.evaluate(tmp_path / "run", others)
    assert tree["training"]["warnings"] == said
    assert f"warning: {said[0]}" in show.figures(tree)
    report(tmp_path / "run", others)
    assert said[0] in (tmp_path / "run" / "report.html").read_text()
    healthy = verbs.train(shapes(120), recipe=RECIPE, out=tmp_path / "healthy")
    assert "training" not in verbs.evaluate(healthy["run"], shapes(120, seed=7, name="others"))


def test_losses_without_a_hinge_say_nothing_of_what_is_active() -> None:
    z, labels = points()
    assert SupConLoss().active(z, labels) == {}
    assert SupConLoss().active_pairs(z, z, labels == labels) == {}
