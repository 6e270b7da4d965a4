"""Retrieval figures against a loop that sorts every row and counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from nearfar.errors import InputError
from nearfar.evaluation import ranking
from nearfar.evaluation.retrieval import rank_queries, summarize

KS = (1, 5, 10)


def slow(
    queries: np.ndarray, query_labels: np.ndarray, gallery: np.ndarray, labels: np.ndarray, metric: str, exclude: np.ndarray
) -> dict[str, list[float]]:
    """One query after the other: sort by (score, wrong before right), then count."""
    names = [*(f"recall@{k}" for k in KS), *(f"precision@{k}" for k in KS), "map@r", "r_precision", "mrr"]
    out: dict[str, list[float]] = {name: [] for name in names}
    for i, query in enumerate(queries.astype(np.float64)):
        scores = -((gallery - query) ** 2).sum(1) if metric == "euclidean" else gallery @ query
        keep = np.arange(len(gallery)) != exclude[i]
        scores, right = scores[keep], (labels == query_labels[i])[keep]
        total = int(right.sum())
        hits = right[sorted(range(len(scores)), key=lambda j: (-scores[j], right[j]))]
        values = dict.fromkeys(names, np.nan)
        if total:
            values = {f"recall@{k}": float(hits[:k].any()) for k in KS}
            values |= {f"precision@{k}": hits[:k].sum() / k for k in KS}
            values["r_precision"] = hits[:total].mean()
            values["map@r"] = sum(hits[: j + 1].mean() for j in range(total) if hits[j]) / total
            values["mrr"] = 1.0 / (1 + np.flatnonzero(hits)[0])
        for name, value in values.items():
            out[name].append(value)
    return out


def go_sparingly(patch: pytest.MonkeyPatch, sample: int = 150) -> None:
    """Make small evaluations go through the gallery as large ones do, in several parts."""
    for name, value in {"_MANY_ROWS": 1, "_MANY_QUERIES": 1, "_SAMPLE": sample, "_DRAWN": 60, "_CHUNK": 112}.items():
        patch.setattr(ranking, name, value)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    queries=st.integers(1, 25),
    rows=st.integers(2, 50),
    classes=st.integers(1, 7),
    metric=st.sampled_from(["dot", "euclidean"]),
    leave_out=st.booleans(),
    tile=st.sampled_from([1, 100, 1 << 22]),
    sparingly=st.booleans(),
)
def test_equals_the_slow_loop_ties_included(
    seed: int, queries: int, rows: int, classes: int, metric: str, leave_out: bool, tile: int, sparingly: bool
) -> None:
    """Small integers, of which float32 products are exact, so that ties are ties on both sides."""
    generator = np.random.default_rng(seed)
    q = generator.integers(-2, 3, size=(queries, 2)).astype(np.float64)
    g = generator.integers(-2, 3, size=(rows, 2)).astype(np.float64)
    q_labels, labels = generator.integers(classes + 1, size=queries), generator.integers(classes, size=rows)
    exclude = generator.integers(-1, rows, size=queries) if leave_out else np.full(queries, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_TILE", tile)
        if sparingly:
            go_sparingly(patch, sample=rows)
        found = rank_queries(q, q_labels, g, labels, metric=metric, ks=KS, exclude=exclude if leave_out else None)
    expected = slow(q, q_labels, g, labels, metric, exclude)
    figures = found.figures()
    assert figures.keys() == expected.keys()
    for name, values in figures.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-12, err_msg=name)


def test_cosine_leave_one_out_on_real_numbers() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(6, size=150)
    z = (generator.normal(size=(6, 5))[labels] + generator.normal(size=(150, 5))).astype(np.float32)
    unit = z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=1)[:, None]
    found = rank_queries(z, labels, z, labels, exclude=np.arange(150))
    expected = slow(unit, labels, unit, labels, "cosine", np.arange(150))
    for name, values in found.figures().items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-12, err_msg=name)
    # Where R is all there is, average precision at R is scikit-learn's average precision.
    two = rank_queries(z[:1], [0], z[1:4], [0, 0, 0])
    assert two.average_precision[0] == average_precision_score([1, 1, 1], [0.1, 0.2, 0.3])


def test_a_large_class_beside_small_ones_and_k_beyond_all() -> None:
    generator = np.random.default_rng(1)
    labels = np.array([0] * 90 + [1] * 5 + [2])
    z = generator.integers(-2, 3, size=(96, 3)).astype(np.float64)
    found = rank_queries(z, labels, z, labels, metric="dot", ks=(1, 5, 10, 200), exclude=np.arange(96))
    expected = slow(z, labels, z, labels, "dot", np.arange(96))
    np.testing.assert_allclose(found.average_precision, expected["map@r"])
    assert np.isnan(found.rank[95])  # alone in its class: left out
    assert found.answerable.sum() == 95
    np.testing.assert_allclose(found.precision[200][:95], np.array([89] * 90 + [4] * 5) / 200)


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("sizes", ["even", "uneven", "alone"])
@pytest.mark.parametrize("sparingly", [False, True])
def test_groups_of_columns_lose_no_place(spread: float, sizes: str, sparingly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes so small beside the gallery that maxima of groups stand for it; whole numbers, so that ties abound."""
    if sparingly:
        go_sparingly(monkeypatch)
    generator = np.random.default_rng(4)
    count = 1500
    shares = {
        "even": np.arange(count) % 30,
        "uneven": np.minimum(generator.geometric(0.1, count), 40),
        "alone": np.arange(count),
    }
    labels = generator.permutation(shares[sizes])
    centres = generator.integers(-9, 10, size=(count + 1, 3))
    z = np.round(centres[labels] + spread * generator.normal(size=(count, 3)))
    own = generator.permutation(count)[:60]
    for metric in ("dot", "euclidean"):
        for exclude in (own, np.full(60, -1)):
            found = rank_queries(z[own], labels[own], z, labels, metric=metric, ks=KS, exclude=exclude).figures()
            for name, values in slow(z[own], labels[own], z, labels, metric, exclude).items():
                np.testing.assert_allclose(found[name], values, rtol=1e-11, err_msg=f"{name} {metric}")


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("sample", ["fair", "without the wrong ones that matter"])
def test_what_is_gone_through_sparingly_is_what_is_computed_as_a_whole(
    metric: str, sample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overlapping clouds and some wrong labels in float32; thresholds that an unfair sample misplaces are noticed."""
    generator = np.random.default_rng(7)
    labels = generator.integers(5, size=3000)
    z = (2.0 * generator.normal(size=(5, 24))[labels] + generator.normal(size=(3000, 24))).astype(np.float32)
    labels[:60] = generator.integers(5, size=60)
    queries, exclude = np.arange(0, 3000, 5), generator.integers(3000, size=600)
    exclude[::2] = queries[::2]
    expected = rank_queries(z[queries], labels[queries], z, labels, metric=metric, exclude=exclude)

    go_sparingly(monkeypatch, sample=700)
    if sample != "fair":
        in_order = np.argsort(labels, kind="stable")  # as the gallery lies
        monkeypatch.setattr(ranking, "spread_places", lambda count, size: np.flatnonzero(in_order >= 60)[: count // 2])
    done = []
    block = ranking.Ranking._block
    monkeypatch.setattr(ranking.Ranking, "_block", lambda *given: done.append(block(*given)) or done[-1])
    found = rank_queries(z[queries], labels[queries], z, labels, metric=metric, exclude=exclude)
    assert np.concatenate(done).mean() > (0.9 if sample == "fair" else 0.05)
    for name, values in expected.figures().items():
        np.testing.assert_allclose(found.figures()[name], values, rtol=1e-12, err_msg=name)


def test_a_collapsed_embedding_finds_nothing() -> None:
    labels = np.arange(40) % 4
    found = rank_queries(np.ones((40, 3)), labels, np.ones((40, 3)), labels, exclude=np.arange(40)).figures()
    assert found["recall@1"].max() == 0.0
    assert found["map@r"].max() == 0.0
    np.testing.assert_allclose(found["mrr"], 1.0 / 31.0)  # 30 of other classes come first


def test_figures_do_not_depend_on_the_order_of_the_gallery() -> None:
    generator = np.random.default_rng(2)
    labels = generator.choice(["a", "b", "c"], size=80)
    z = generator.integers(-1, 2, size=(80, 2)).astype(np.float64)
    order = generator.permutation(80)
    one = rank_queries(z, labels, z, labels, metric="dot", exclude=np.arange(80)).figures()
    place = np.argsort(order)
    other = rank_queries(z, labels, z[order], labels[order], metric="dot", exclude=place).figures()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])


def test_several_threads_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    labels, z = generator.integers(5, size=200), generator.normal(size=(200, 4))
    one = rank_queries(z, labels, z, labels, exclude=np.arange(200)).figures()
    monkeypatch.setattr(ranking.torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(ranking, "_TILE", 2000)
    for name, values in rank_queries(z, labels, z, labels, exclude=np.arange(200)).figures().items():
        np.testing.assert_allclose(values, one[name], rtol=1e-13)


def test_micro_macro_and_by_class() -> None:
    values = {"x": np.array([1.0, 0.0, 1.0, np.nan, np.nan]), "none": np.full(5, np.nan)}
    micro, macro, by_class = summarize(values, np.array(["a", "a", "b", "b", "c"]))
    assert micro == {"x": pytest.approx(2 / 3), "none": None}
    assert macro == {"x": 0.75, "none": None}
    assert by_class == {"a": {"x": 0.5, "none": None}, "b": {"x": 1.0, "none": None}, "c": {"x": None, "none": None}}


def test_wrong_input_is_refused_in_one_line() -> None:
    z, labels = np.ones((4, 2)), np.arange(4)
    for arguments, options, message in [
        ((z, labels[:3], z, labels), {}, r"query_labels has shape \(3,\), expected \(4,\)"),
        ((z, labels, z, labels[:3]), {}, r"gallery_labels has shape \(3,\)"),
        ((z, labels, z, labels.astype(str)), {}, "expected one kind"),
        ((z[:, :1], labels, z, labels), {}, "queries has 1 features, but gallery is expecting 2"),
        ((z, labels, z, labels), {"ks": (0,)}, "ks is"),
        ((z, labels, z, labels), {"metric": "cos"}, "metric is 'cos'"),
        ((z, labels, z, labels), {"exclude": [4, 0, 0, 0]}, "outside 0 to 3"),
        ((z * 0, labels, z, labels), {}, "all zeros"),
    ]:
        with pytest.raises(InputError, match=message):
            rank_queries(*arguments, **options)
