"""Comparisons: fair, resumable, and right about what they conclude."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import TINY, shapes

import nearfar as nf
from nearfar import compare
from nearfar import comparison_report as report
from nearfar.cli import main
from nearfar.data import ImageSet
from nearfar.evaluation import evaluate_embeddings
from nearfar.evaluation.bootstrap import bootstrap_intervals
from nearfar.evaluation.paired import PairedDifference, paired_differences
from nearfar.recipe import Recipe
from nearfar.training import budget

SUPCON = Recipe.from_dict({**TINY, "name": "supcon"})
ENTROPY = Recipe.from_dict({**TINY, "name": "entropy", "loss": {"kind": "cross-entropy"}})
PAIRS = Recipe.from_dict({**TINY, "name": "pairs", "loss": {"kind": "contrastive"}, "sampling": {"kind": "pairs"}})
BAD = Recipe.from_dict({**TINY, "name": "bad", "loss": {"kind": "cross-entropy"}, "encoder": {"kind": "mlp", "dim": 2}})
WITHOUT_TIME = ("train_seconds", "images_per_second")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "draw", lambda folder, tree: [])


class Trainings:
    """Stands in for `fit`: keeps what each training was given, and may be interrupted in one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, interrupt: int | None = None) -> None:
        self.seen: list[tuple[str, int, ImageSet]] = []
        self.whole, self.interrupt = compare.fit, interrupt
        monkeypatch.setattr(compare, "fit", self.fit)

    def fit(self, recipe: Recipe, train: ImageSet, *, seed: int, **kwargs: Any) -> Any:
        if len(self.seen) == self.interrupt:
            self.interrupt = None
            raise KeyboardInterrupt
        self.seen.append((recipe.name, seed, train))
        return self.whole(recipe, train, seed=seed, **kwargs)


def timeless(tree: Any) -> Any:
    """The tree without what a clock said, and without its folder."""
    if isinstance(tree, dict):
        return {key: timeless(value) for key, value in tree.items() if key not in (*WITHOUT_TIME, "out")}
    return [timeless(value) for value in tree] if isinstance(tree, list) else tree


@pytest.mark.usefixtures("undrawn")
def test_all_recipes_have_the_same_images_and_smaller_sets_lie_within_larger_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Trainings(monkeypatch).seen
    held = SUPCON.with_changes({"data.validation": 30, "data.rows": 50, "evaluate.k": 3})
    tree = compare.compare(shapes(120), recipes=[held, PAIRS], seeds=2, fractions=[0.5, 1, 0.1], out=tmp_path / "out")
    images: dict[tuple[int, int], set[str]] = {}
    for name, seed, train in seen:
        assert images.setdefault((seed, len(train)), set(train.ids.tolist())) == set(train.ids.tolist()), name
    assert sorted(images) == [(0, 10), (0, 48), (0, 96), (1, 10), (1, 48), (1, 96)]  # 24 of 120 are the test images
    for seed in (0, 1):
        assert images[seed, 10] < images[seed, 48] < images[seed, 96]
    assert images[0, 48] != images[1, 48]
    assert [entry["images"] for entry in tree["trainings"]] == [10] * 4 + [48] * 4 + [96] * 4
    assert tree["settings"]["data"]["supcon"] == tree["settings"]["data"]["pairs"]
    assert tree["settings"]["data"]["pairs"]["test"]["images"] == 24


@pytest.mark.usefixtures("undrawn")
def test_summary_and_differences_follow_from_the_queries_of_each_training(tmp_path: Path) -> None:
    out = tmp_path / "out"
    tree = compare.compare(shapes(240), recipes=[SUPCON, ENTROPY], seeds=3, out=out, changes={"train.epochs": 1})
    assert tree == {**json.loads((out / "comparison.json").read_text()), "out": str(out)}
    values = {
        (one["recipe"], one["seed"]): np.load(out / one["queries"], allow_pickle=False)["accuracy"] for one in tree["trainings"]
    }
    assert {one.shape for one in values.values()} == {(48,)}
    for row in tree["summary"]:
        own = [values[row["recipe"], seed].mean() for seed in range(3)]
        assert row["accuracy"]["mean"] == pytest.approx(np.mean(own))
        assert row["accuracy"]["std"] == pytest.approx(np.std(own, ddof=1))
    rows = {row["figure"]: row for row in tree["differences"]}
    assert set(rows) == set(report.FIGURES)
    gaps = [values["supcon", seed].mean() - values["entropy", seed].mean() for seed in range(3)]
    assert rows["accuracy"]["by_seed"] == pytest.approx(gaps)
    assert rows["accuracy"]["mean"] == pytest.approx(np.mean(gaps))
    assert rows["accuracy"]["low"] <= rows["accuracy"]["mean"] <= rows["accuracy"]["high"]
    assert len(tree["verdicts"]) == 1


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_an_interrupted_comparison_repeats_no_training_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    how: dict[str, Any] = {"recipes": [SUPCON, BAD, PAIRS], "seeds": 2, "fractions": [0.25, 1]}
    whole = compare.compare(shapes(80), **how, out=tmp_path / "whole")
    seen = Trainings(monkeypatch, interrupt=stop).seen
    with pytest.raises(KeyboardInterrupt):
        compare.compare(shapes(80), **how, out=tmp_path / "parted")
    assert len(seen) == stop
    resumed = compare.compare(shapes(80), **how, out=tmp_path / "parted", resume=True)
    assert len(seen) == 8  # two recipes that can be trained, two seeds, two shares
    assert timeless(resumed) == timeless(whole)
    again = compare.compare(shapes(80), **how, out=tmp_path / "parted", resume=True)
    assert len(seen) == 8
    assert again == resumed
    (tmp_path / "parted" / resumed["trainings"][-1]["queries"]).unlink()
    assert timeless(compare.compare(shapes(80), **how, out=tmp_path / "parted", resume=True)) == timeless(whole)
    assert len(seen) == 9


@pytest.mark.usefixtures("undrawn")
def test_resuming_something_else_is_refused(tmp_path: Path) -> None:
    how: dict[str, Any] = {"recipes": [SUPCON, ENTROPY], "seeds": 1, "out": tmp_path / "out"}
    compare.compare(shapes(60), **how)
    with pytest.raises(nf.InputError, match="holds a comparison already; go on with --resume"):
        compare.compare(shapes(60), **how)
    for change, words in (
        ({"seeds": 2}, r"with seeds \[0\], not \[0, 1\]"),
        ({"fractions": [0.5]}, "with fractions"),
        ({"epochs": 2}, "with budget"),
        ({"changes": {"evaluate.k": 3}}, "with other recipes"),
        ({"recipes": [SUPCON]}, "with other recipes"),
    ):
        with pytest.raises(nf.InputError, match=f"cannot resume.*{words}"):
            compare.compare(shapes(60), **{**how, **change}, resume=True)
    with pytest.raises(nf.InputError, match="with other data"):
        compare.compare(shapes(60, seed=3), **how, resume=True)
    queries = next((tmp_path / "out" / "queries").iterdir())
    queries.write_bytes(queries.read_bytes()[:-30])
    with pytest.raises(nf.InputError, match=r"queries/.*is damaged"):
        compare.compare(shapes(60), **how, resume=True)
    for content in ("[]", "{", '{"format": 99}'):
        (tmp_path / "out" / "comparison.json").write_text(content)
        with pytest.raises(nf.InputError, match=r"comparison\.json"):
            compare.compare(shapes(60), **how, resume=True)
    with pytest.raises(nf.InputError, match=r"cannot resume.*leave out --resume"):
        compare.compare(shapes(60), **{**how, "out": tmp_path / "none"}, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(nf.InputError, match="something else than a comparison"):
        compare.compare(shapes(60), **{**how, "out": tmp_path / "mine"})


@pytest.mark.usefixtures("undrawn")
@pytest.mark.filterwarnings("ignore:.*hold no two images of a class:UserWarning")  # true of three images
def test_what_cannot_be_trained_is_one_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    notes: list[str] = []
    images = shapes(30)  # 24 to train on, of which a quarter has two of each class, an eighth one
    tree = compare.compare(
        images, recipes=[PAIRS, SUPCON, BAD], seeds=2, fractions=[0.125, 0.25], out=tmp_path / "out", note=notes.append
    )
    errors = {(one["recipe"], one["images"]): one["error"] for one in tree["trainings"] if "error" in one}
    assert set(errors) == {("pairs", 3), ("bad", 3), ("bad", 6)}
    assert "one image only" in errors["pairs", 3]
    assert "encoder.dim=3" in errors["bad", 3]
    assert len(notes) == len(tree["trainings"]) == 12
    assert not any("\n" in note for note in notes)
    assert [(row["images"], row["recipe"], row["k"]) for row in tree["summary"]] == [
        (3, "supcon", 3),
        (6, "pairs", 5),
        (6, "supcon", 5),
    ]
    remarks = report.remarks(tree)
    assert "supcon: with 3 images all 3 neighbours vote, not 5" in remarks
    assert sum("seed 0, 1" in remark for remark in remarks) == 3
    assert [(row["first"], row["second"], row["images"]) for row in tree["differences"] if row["figure"] == "map@r"] == [
        ("pairs", "supcon", 6)
    ]
    with pytest.raises(nf.InputError, match=r"no training of the comparison could be run.*encoder\.dim=3"):
        compare.compare(images, recipes=[BAD], seeds=1, out=tmp_path / "none")


@pytest.mark.usefixtures("undrawn")
def test_equal_seconds_become_whole_epochs_that_fit_and_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[str, int, float]] = []

    def each(recipe: Recipe, train: ImageSet, *, seed: int, device: str, limit: float) -> float:
        measured.append((recipe.name, len(train), limit))
        return {"supcon": 0.3, "pairs": 7.0}[recipe.name] * len(train) / 48

    monkeypatch.setattr(compare, "epoch_seconds", each)
    how: dict[str, Any] = {
        "recipes": [SUPCON, PAIRS],
        "seeds": 2,
        "fractions": [0.5, 1],
        "seconds": 2.0,
        "out": tmp_path / "out",
    }
    Trainings(monkeypatch, interrupt=6)
    with pytest.raises(KeyboardInterrupt):
        compare.compare(shapes(60), **how)
    tree = compare.compare(shapes(60), **how, resume=True)
    assert measured == [("supcon", 24, 0.4), ("pairs", 24, 0.4), ("supcon", 48, 0.4), ("pairs", 48, 0.4)]
    assert {(one["recipe"], one["images"]): one["epochs"] for one in tree["trainings"]} == {
        ("supcon", 24): 13,
        ("pairs", 24): 1,
        ("supcon", 48): 6,
        ("pairs", 48): 1,
    }
    assert any("takes 7.0 s, longer than the 2 s" in remark for remark in report.remarks(tree))
    assert "as many whole epochs as fit" in (tmp_path / "out" / "README.md").read_text()


def test_a_stopwatch_measures_from_its_first_mark_and_then_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 10.5, 11.0, 11.5, 12.5])
    monkeypatch.setattr(budget.time, "perf_counter", lambda: next(now))
    watch = budget.Stopwatch(2.0)
    watch.step(1, 9, 3, 4, 0.0, 0.0, 0.0)  # three quarters of an epoch by 10.0 s
    watch.epoch({"epoch": 1}, 9)
    watch.epoch({"epoch": 2}, 9)
    watch.step(3, 9, 1, 4, 0.0, 0.0, 0.0)
    with pytest.raises(budget.Enough):
        watch.step(3, 9, 3, 4, 0.0, 0.0, 0.0)
    assert watch.epoch_seconds() == pytest.approx(2.5 / 2)  # two epochs in 2.5 s


def test_measuring_leaves_no_trace_in_the_training_that_follows() -> None:
    import signal

    import torch

    handler, state = signal.getsignal(signal.SIGINT), torch.get_rng_state()
    each = budget.epoch_seconds(PAIRS, shapes(60), seed=0, device="cpu", limit=0.02)
    assert 0 < each < 10
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_values_of_queries_average_to_the_figures_of_an_evaluation(metric: Any) -> None:
    random = np.random.default_rng(2)
    gallery, queries = random.normal(size=(50, 4)).astype(np.float32), random.normal(size=(30, 4)).astype(np.float32)
    known, truth = random.integers(0, 3, 50), random.integers(0, 3, 30)
    section = SUPCON.with_changes({"evaluate.metric": metric, "evaluate.k": 7}).evaluate
    values, k = compare.query_values(gallery, known, queries, truth, section)
    tree = evaluate_embeddings(gallery, known, queries, truth, classes=["a", "b", "c"], metric=metric, k=7, bootstrap=0)
    assert k == 7
    assert values["accuracy"].mean() == pytest.approx(tree["classification"]["accuracy"])
    assert values["one_nn_accuracy"].mean() == pytest.approx(tree["classification"]["one_nn_accuracy"])
    for name in ("recall@1", "map@r"):
        assert values[name].mean() == pytest.approx(tree["retrieval"][name], rel=1e-6)
    lacking, k = compare.query_values(gallery[known < 2][:4], known[known < 2][:4], queries, truth, section)
    assert k == 4
    assert all(not lacking[name][truth == 2].any() for name in report.FIGURES)  # a class without images is not found


def test_paired_intervals_are_those_of_a_slow_loop() -> None:
    random = np.random.default_rng(5)
    tables = {name: random.random((3, 40)) < chance for name, chance in (("a", 0.9), ("b", 0.6), ("c", 0.8))}
    values = {name: table.astype(float) for name, table in tables.items()}
    values["c"][1] = np.nan
    found = paired_differences(values, samples=200, level=0.9, seed=7)
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]

    generator = np.random.default_rng(7)
    queries = generator.integers(0, 40, size=(200, 40))
    for (first, second), result in found.items():
        common = [seed for seed in range(3) if "c" not in (first, second) or seed != 1]
        gaps = values[first] - values[second]
        seeds = generator.integers(0, len(common), size=(200, len(common)))
        means = []
        for sample in range(200):
            drawn = [gaps[common[place], query] for place in seeds[sample] for query in queries[sample]]
            means.append(sum(drawn) / len(drawn))
        assert (result.low, result.high) == pytest.approx(tuple(np.quantile(means, [0.05, 0.95])))
        assert result.mean == pytest.approx(np.mean([gaps[seed].mean() for seed in common]))
        assert result.by_seed == pytest.approx([gaps[seed].mean() for seed in common])


def test_paired_intervals_in_cases_that_are_known() -> None:
    random = np.random.default_rng(1)
    base = random.random((1, 5000))
    same = paired_differences({"a": base, "b": base, "c": base - 0.25})
    assert same["a", "b"] == PairedDifference(0.0, 0.0, 0.0, (0.0,))
    assert (same["a", "c"].low, same["a", "c"].high) == pytest.approx((0.25, 0.25))  # the queries' own spread is gone
    other = random.random((1, 5000))
    one = paired_differences({"a": base, "b": other}, samples=4000)["a", "b"]
    plain = bootstrap_intervals({"gap": (base - other)[0]}, samples=4000)["gap"]
    assert plain is not None
    assert (one.low, one.high) == pytest.approx(plain, abs=1e-3)  # of one seed it is the plain bootstrap
    several = paired_differences({"a": np.repeat([[0.0], [1.0]], 50, axis=1), "b": np.zeros((2, 50))})["a", "b"]
    assert (several.low, several.mean, several.high) == (0.0, 0.5, 1.0)  # seeds that disagree make the interval wide
    missing = {"a": np.array([[0.5, 0.5], [np.nan, np.nan]]), "b": np.array([[np.nan, np.nan], [0.5, 0.5]])}
    assert paired_differences(missing) == {}


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ({}, {}, "shapes"),
        ({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))}, {}, r"\(2, 3\), \(2, 4\)"),
        ({"a": np.zeros(3)}, {}, "seeds, queries"),
        ({"a": np.zeros((2, 0))}, {}, "seeds, queries"),
        ({"a": np.array([[1.0, np.nan]])}, {}, "NaN in part"),
        ({"a": np.zeros((1, 2))}, {"samples": 0}, "samples is 0"),
        ({"a": np.zeros((1, 2))}, {"level": 1.0}, "level is 1.0"),
    ],
)
def test_paired_differences_refuse_what_does_not_fit(values: Any, options: Any, words: str) -> None:
    with pytest.raises(nf.InputError, match=words):
        paired_differences(values, **options)


def test_verdicts_say_who_is_ahead_and_when_nobody_is() -> None:
    row = {"images": 600, "fraction": 0.01, "figure": "accuracy", "first": "a", "second": "b"}
    ahead = report.verdict({**row, "mean": 0.03, "low": 0.01, "high": 0.05})
    assert ahead == "600 images (1 %): a does better than b by 3.00 points of k-NN accuracy (95 % interval 1.00 to 5.00)"
    behind = report.verdict({**row, "mean": -0.03, "low": -0.05, "high": -0.01})
    assert behind == ahead.replace("a does better than b", "b does better than a")
    assert "cannot be told apart, +1.00 points" in report.verdict({**row, "mean": 0.01, "low": -0.01, "high": 0.03})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipes": []}, "recipes is empty"),
        ({"recipes": [SUPCON, SUPCON]}, "'supcon' twice"),
        ({"recipes": ["supcom"]}, "unknown recipe 'supcom'"),
        ({"seeds": 0}, "seeds is 0"),
        ({"fractions": []}, "fractions is empty"),
        ({"fractions": [0.5, 1.5]}, "fractions has 1.5"),
        ({"fractions": [0.5, 0.501]}, r"make \[24, 24\] images"),
        ({"fractions": [0.001]}, "0.001 makes 0"),
        ({"epochs": 1, "seconds": 3.0}, "epochs is 1 and seconds is 3"),
        ({"seconds": -1.0}, "seconds is -1"),
        ({"changes": {"data.fraction": 0.5}}, "data.fraction; give the shares"),
        ({"changes": {"data.test": 0.0}}, "no test images.*data.test"),
        ({"changes": {"loss.margn": 0.5}, "recipes": [PAIRS]}, "margn"),
        ({"resume": True, "out": None}, "--out FOLDER"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    how: dict[str, Any] = {"recipes": [SUPCON], "seeds": 1, "out": tmp_path / "out", **change}
    with pytest.raises(nf.InputError, match=words) as caught:
        compare.compare(shapes(60), **how)
    assert "\n" not in str(caught.value)


def test_images_without_labels_cannot_be_compared_on(tmp_path: Path) -> None:
    with pytest.raises(nf.InputError, match="no labels"):
        compare.compare(ImageSet(images=shapes(60).images), recipes=[SUPCON], out=tmp_path / "out")


def test_the_command_line_compares_and_leaves_tables_and_plots(
    folder_of_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, loss in (("one", "supcon"), ("two", "cross-entropy")):
        Path(f"{name}.toml").write_text(
            f'[data]\nsize = [12, 12]\nchannels = 1\n[encoder]\nkind = "mlp"\nhidden = [16]\ndim = 4\n[loss]\nkind = "{loss}"\n'
        )

    def cli(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    options = ["images", "--recipes", "one.toml, two.toml", "--seeds", "2", "--fractions", "0.5,1", "--epochs", "2"]
    code, out, err = cli(*options)
    assert code == 0, err
    assert err.count("\n") == 8
    folder = tmp_path / "runs" / "compare-images"
    assert "points of k-NN accuracy" in out
    assert f"{folder.relative_to(tmp_path)}/README.md" in out
    drawn = {"sample_efficiency", "scores-30", "scores-60", "differences-30", "differences-60"}
    assert {path.name for path in (folder / "plots").iterdir()} == {f"{n}.{end}" for n in drawn for end in ("png", "svg")}
    text = (folder / "README.md").read_text()
    assert all(f"](plots/{name}.png)" in text for name in drawn)
    assert "| 60 | two | 2 |" in text
    code, out, err = cli(*options, "--out", str(folder), "--resume", "--json")
    assert code == 0, err
    assert json.loads(out)["summary"][0]["recipe"] == "one"
    for wrong, word in ((["--fractions", "1,x"], "'1,x'"), (["--recipes", " ,"], "recipes is empty")):
        code, out, err = cli("images", *(["--recipes", "one.toml"] if "--fractions" in wrong else []), *wrong)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert word in err


def test_an_interruption_at_the_command_line_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "compare", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["compare", "digits", "--recipes", "decoupled"])
    assert ended.value.code == 130
    assert "--resume" in capsys.readouterr().err


def test_names_are_never_read_as_markup() -> None:
    row = {"fraction": 1.0, "images": 9, "figure": "accuracy", "first": "a|b", "second": "<i>"}
    rows = report._markdown([["images", "recipe"], ["9", f"{row['first']} {row['second']}\nnew"]])
    assert rows == ["| images | recipe |", "|---|---|", "| 9 | a/b (i) new |"]
