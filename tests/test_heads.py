"""Linear heads and fine-tuning on a trained embedding, and training that begins with another run's weights."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import TINY, shapes
from torch import Tensor

import nearfar as nf
from nearfar import runs, verbs
from nearfar.cli import main
from nearfar.data import ImageSet
from nearfar.heads import Head, load_head, save_head
from nearfar.losses import LOSSES, CrossEntropyLoss
from nearfar.measuring import figures, judging
from nearfar.recipe import Recipe
from nearfar.training import loop, trained
from nearfar.training.headloss import HeadLoss

CONV: dict[str, Any] = {
    **TINY,
    "encoder": {"kind": "conv5", "filters": [4, 4], "hidden": 16, "dropout": 0.2, "dim": 8, "normalize": True},
    "data": {"size": [16, 16], "channels": 1},
}


def images(count: int = 120, seed: int = 0) -> ImageSet:
    """Those of each seed have a name of their own, so that one seed's run is judged on another's images as they are."""
    return shapes(count, size=16, seed=seed, classes=4, name=f"shapes {seed}")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with batch norms and dropout."""
    folder = tmp_path_factory.mktemp("base") / "run"
    verbs.train(images(), recipe=Recipe.from_dict(CONV), out=folder)
    return folder


@pytest.fixture(autouse=True)
def _forget_test_losses() -> Iterator[None]:
    yield
    LOSSES.pop("interrupting", None)


def recipe(base: Path, mode: str, **changes: Any) -> Recipe:
    return trained.load(base)[0].with_changes({"train.mode": mode, **changes})


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = trained.load(folder)[1].state_dict()
    return found


def test_a_linear_head_is_the_logistic_regression_of_its_decay_and_leaves_the_encoder_alone(base: Path, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    # With decay there is one minimum, and steps of all images at once do not scatter about it.
    known, decay = images(), 1 / 120
    whole = {"sampling.batch_size": len(known), "train.weight_decay": decay}
    rates = {"train.epochs": 200, "train.learning_rate": 0.2, "train.schedule": "one-cycle"}
    verbs.train(known, start=base, out=tmp_path / "linear", changes={"train.mode": "linear", **whole, **rates})
    model = nf.Embedder.load(tmp_path / "linear")
    before, after = weights(base), weights(tmp_path / "linear")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)  # batch norms' statistics too

    def with_ones(part: ImageSet) -> np.ndarray:
        return np.hstack([model.transform(part), np.ones((len(part), 1))]).astype(np.float64)  # the bias decays too

    def loss(matrix: np.ndarray) -> float:
        return float(-np.log(_softmax(rows @ matrix.T)[np.arange(len(rows)), known.labels]).mean())

    rows, test = with_ones(known), images(1000, seed=9)
    oracle = LogisticRegression(C=1 / (decay * len(rows)), fit_intercept=False, max_iter=5000, tol=1e-8).fit(rows, known.labels)
    assert model.head_ is not None
    numbers = np.array([model.classes_.index(name) for name in model.head_.classes])
    matrix = np.hstack([model.head_.weight, model.head_.bias[:, None]])[np.argsort(numbers)].astype(np.float64)
    ours, least = (loss(each) + decay / 2 * np.square(each).sum() for each in (matrix, oracle.coef_))
    assert least * (1 - 1e-6) <= ours <= least * 1.001
    right = (numbers[model.head_.predict(model.transform(test))] == test.labels).mean()
    assert right == pytest.approx(oracle.score(with_ones(test), test.labels), abs=0.02)
    assert right > 0.6
    assert loss(matrix) == pytest.approx(model.history_[-1]["loss"], rel=0.05)


def _softmax(scores: np.ndarray) -> np.ndarray:
    wide = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return wide / wide.sum(axis=1, keepdims=True)


def test_a_linear_head_embeds_every_image_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    whole = loop.embed

    def counted(encoder: Any, part: ImageSet, *args: Any, **kwargs: Any) -> np.ndarray:
        calls.append(len(part))
        return whole(encoder, part, *args, **kwargs)

    monkeypatch.setattr(loop, "embed", counted)
    start = trained.load(base)[1]
    fitted = loop.fit(recipe(base, "linear"), images(), images(40, seed=5), start=start)
    assert calls == [120, 40]
    assert 0 <= fitted.history[-1]["validation"]["head_accuracy"] <= 1
    assert fitted.history[0]["validation"]["knn_accuracy"] == fitted.history[-1]["validation"]["knn_accuracy"]


def test_fine_tuning_changes_encoder_and_head_and_leaves_an_embedding(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    changes = {"train.mode": "finetune", "train.epochs": 15, "train.learning_rate": 0.03, "encoder.dropout": 0.0}
    verbs.train(images(240), start=base, out=out, changes=changes)
    before, after = weights(base), weights(out)
    assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))
    verbs.evaluate(out, images(100, seed=9))
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["classification"]["head_accuracy"] > 0.8
    assert figures["classification"]["accuracy"] > 0.8  # still an embedding with an index
    config = runs.read_config(out)
    assert config["recipe"]["train"]["mode"] == "finetune"
    assert config["recipe"]["loss"] == {"kind": "cross-entropy"}
    assert config["start"] == {"run": str(base), "sha256": runs.read_config(base)["model"]["sha256"]}


@pytest.mark.parametrize("mode", ["linear", "finetune", "embedding"])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_an_interrupted_run_resumes_to_the_same_bits(base: Path, tmp_path: Path, mode: str, average: float) -> None:
    start, path = trained.load(base)[1], tmp_path / "latest.safetensors"
    chosen = recipe(base, mode, **{"train.average": average})
    whole = loop.fit(chosen, images(), start=start, seed=1)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(_interrupted(chosen, stop=6), images(), start=start, seed=1, checkpoint=path)
    resumed = loop.fit(chosen, images(), start=start, seed=1, checkpoint=path, resume=True)
    for one, other in zip(whole.encoder.state_dict().items(), resumed.encoder.state_dict().items(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
    assert [row["loss"] for row in whole.history] == [row["loss"] for row in resumed.history]
    if mode == "embedding":
        assert whole.head is resumed.head is None
    else:
        assert whole.head is not None
        assert resumed.head is not None
        assert np.array_equal(whole.head.weight, resumed.head.weight)
        assert np.array_equal(whole.head.bias, resumed.head.bias)
        assert whole.head.weight.any()


def _interrupted(chosen: Recipe, stop: int) -> Recipe:
    """The same recipe, but Ctrl-C arrives in its ``stop``-th step."""
    home = LOSSES[chosen.loss.kind]
    count = 0

    class Interrupting(home):  # type: ignore[valid-type,misc]
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal count
            count += 1
            if count == stop:
                os.kill(os.getpid(), signal.SIGINT)
            result: Tensor = super().forward(*args, **kwargs)
            return result

    LOSSES["interrupting"] = Interrupting
    return chosen.with_changes({"loss.kind": "interrupting", **{f"loss.{k}": v for k, v in chosen.loss.params.items()}})


def test_a_run_folder_is_resumed_without_naming_its_start_again(base: Path, tmp_path: Path) -> None:
    for name in ("whole", "parted"):
        changes = {"train.mode": "finetune"}
        if name == "whole":
            verbs.train(images(), start=base, out=tmp_path / name, changes=changes)
            continue

        class Stop:
            def step(self, *values: Any) -> None:
                pass

            def epoch(self, row: dict[str, Any], epochs: float) -> None:
                if row["epoch"] == 2:
                    raise KeyboardInterrupt

            def note(self, message: str) -> None:
                pass

            def warn(self, message: str) -> None:
                pass

        with pytest.raises(KeyboardInterrupt):
            verbs.train(images(), start=base, out=tmp_path / name, changes=changes, watcher=Stop())
        with pytest.raises(nf.InputError, match=r"started with start"):
            verbs.train(images(), start=tmp_path / "whole", out=tmp_path / name, resume=True)
        verbs.train(images(), out=tmp_path / name, resume=True)
    for file in ("model.safetensors", "head.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parted" / file).read_bytes()


def test_training_begins_with_the_weights_of_the_run(base: Path) -> None:
    still = {"train.learning_rate": 1e-30, "train.epochs": 1}
    model = nf.Embedder(recipe=recipe(base, "embedding", **still), start=base).fit(images())
    for name, value in weights(base).items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(model.encoder_.state_dict()[name], value), name
    assert model.head_ is None


def test_other_classes_and_another_recipe_can_stand_on_the_run(base: Path) -> None:
    named = ImageSet(images=images().images, labels=images().labels, classes=("p", "q", "r", "s"))
    model = nf.Embedder(recipe=recipe(base, "linear"), start=base).fit(named)
    assert model.head_ is not None
    assert model.head_.classes == ("p", "q", "r", "s")
    pairs = recipe(base, "embedding", **{"sampling.kind": "pairs", "loss.kind": "contrastive"})
    assert nf.Embedder(recipe=pairs, start=base).fit(images()).head_ is None
    assert pairs.with_changes({"train.mode": "linear"}).sampling.kind == "shuffle"


def test_head_figures_and_predictions_are_those_of_the_head_itself(base: Path, tmp_path: Path) -> None:
    out, test = tmp_path / "linear", images(60, seed=9)
    verbs.train(images(), start=base, out=out, changes={"train.mode": "linear", "evaluate.bootstrap": 100})
    judged = judging.judge(out, test)
    tree = figures.figures(judged)
    head = judged.model.head_
    assert head is not None
    scores = judged.z.astype(np.float64) @ head.weight.T.astype(np.float64) + head.bias
    right = np.array([head.classes[place] for place in scores.argmax(1)]) == np.array(test.classes)[test.labels]
    assert tree["classification"]["head_accuracy"] == pytest.approx(right.mean())
    low, high = tree["confidence"]["classification"]["head_accuracy"]
    assert low <= right.mean() <= high
    assert low < high

    write = tmp_path / "images.npz"
    np.savez(write, images=test.images[:, 0], labels=np.array(test.classes)[test.labels], allow_pickle=False)
    results = verbs.predict(out, [write], out=tmp_path / "labels.csv")
    assert [one["head_label"] == one["true_label"] for one in results] == right.tolist()
    assert "head_label" in (tmp_path / "labels.csv").read_text().splitlines()[0]

    strangers = ImageSet(images=test.images, labels=test.labels, classes=("a", "b", "c", "new"), name="strangers")
    assert "head_accuracy" not in figures.figures(judging.judge(out, strangers))["classification"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.mode": "linear", "encoder": {"kind": "mlp"}}, ["encoder.kind", "'conv5'", "'mlp'", "--recipe"]),
        ({"train.mode": "linear", "data.mean": [0.25]}, ["data.mean", "0.5", "0.25"]),
        ({"train.mode": "finetune", "encoder.dim": 9}, ["head.4", "encoder"]),
        ({"train.mode": "linear", "loss.kind": "supcon"}, ["train.mode", "'linear'", "cross-entropy", "'supcon'"]),
        ({"train.mode": "probe"}, ["train.mode", "'probe'", "'linear'"]),
    ],
)
def test_what_cannot_stand_on_the_run_is_said_in_one_line(
    base: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    tree = {**CONV, "encoder": changes.pop("encoder", CONV["encoder"])}
    with pytest.raises(nf.InputError) as caught:
        verbs.train(images(), recipe=Recipe.from_dict(tree), start=base, out=tmp_path / "no", changes=changes)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("mode", ["linear", "finetune"])
def test_a_head_needs_something_to_stand_on(tmp_path: Path, mode: str) -> None:
    with pytest.raises(nf.InputError, match=r"trained encoder.*--from RUN"):
        verbs.train(images(), recipe=Recipe.from_dict(CONV), out=tmp_path / "no", changes={"train.mode": mode})
    with pytest.raises(nf.InputError, match="no run folder"):
        verbs.train(images(), start=tmp_path / "none", out=tmp_path / "no")


def test_a_head_that_is_missing_damaged_or_anothers_is_refused(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "linear"
    verbs.train(images(), start=base, out=out, changes={"train.mode": "linear", "train.epochs": 1})
    path, whole = out / runs.HEAD, (out / runs.HEAD).read_bytes()
    head = load_head(path, runs.read_config(out)["head"]["sha256"])
    for content in (whole[:-20], None, whole.replace(b'\\"d\\"', b'\\"e\\"')):
        path.unlink()
        if content is not None:
            assert content != whole
            path.write_bytes(content)
        with pytest.raises(nf.InputError, match=r"head\.safetensors"):
            nf.Embedder.load(out)
        path.write_bytes(whole)
    for wrong in (Head(head.weight, head.bias[:2], head.classes), Head(head.weight, head.bias, head.classes[:2])):
        digest = save_head(tmp_path / "other.safetensors", wrong)
        with pytest.raises(nf.InputError, match="do not fit together"):
            load_head(tmp_path / "other.safetensors", digest)
    with pytest.raises(nf.InputError, match=r"\[N, 8\]"):
        head.predict(np.zeros((3, 9), dtype=np.float32))


def test_a_saved_embedder_keeps_its_head(base: Path, tmp_path: Path) -> None:
    model = nf.Embedder(recipe=recipe(base, "linear"), start=base).fit(images())
    loaded = nf.Embedder.load(model.save(tmp_path / "run"))
    assert model.head_ is not None
    assert loaded.head_ is not None
    assert np.array_equal(loaded.head_.weight, model.head_.weight)
    assert loaded.head_.classes == model.head_.classes


def test_the_loss_of_a_head_is_cross_entropy_of_its_scores_in_float64() -> None:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    loss = HeadLoss(CrossEntropyLoss(label_smoothing=0.1), classes=3, dim=5)
    assert loss(z, labels).item() == pytest.approx(np.log(3))  # it starts without a preference
    with torch.no_grad():
        loss.linear.weight.copy_(torch.randn(3, 5, generator=generator))
        loss.linear.bias.copy_(torch.randn(3, generator=generator))
    scores = z.detach().numpy() @ loss.linear.weight.detach().numpy().T.astype(np.float64)
    scores += loss.linear.bias.detach().numpy()
    logs = np.log(_softmax(scores))
    expected = -(0.9 * logs[np.arange(7), labels.numpy()] + 0.1 * logs.mean(axis=1)).mean()
    assert loss(z, labels).item() == pytest.approx(expected, rel=1e-9)
    assert loss.classify(z).tolist() == scores.argmax(1).tolist()
    assert loss.head(["a", "b", "c"]).predict(z.detach().numpy()).tolist() == scores.argmax(1).tolist()
    assert torch.autograd.gradcheck(lambda points: loss(points, labels), (z,))


def test_the_command_line_trains_a_head(
    base: Path, folder_of_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def cli(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    code, out, err = cli(
        "train", str(folder_of_images), "--from", str(base), "--set", "train.mode=linear", "train.epochs=2", "--json"
    )
    assert code == 0, err
    run = json.loads(out)["run"]
    assert run == "runs/images-tiny-linear"
    code, out, err = cli("evaluate", run)
    assert code == 0, err
    assert "linear head accuracy" in out
    card = (tmp_path / run / "README.md").read_text()
    for words in ("Accuracy of the linear head", "a linear classifier was trained on it", f"--from {base}"):
        assert words in card
    code, out, err = cli("predict", run, str(folder_of_images))
    assert "linear head" in out.splitlines()[0]
