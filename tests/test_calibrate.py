from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.metrics import log_loss as their_log_loss

from nearfar import calibrate
from nearfar.calibrate import (
    Calibration,
    Curve,
    class_probabilities,
    cross_fitted,
    expected_calibration_error,
    fit_probabilities,
    label_probability,
    log_loss,
    precision_curve,
)
from nearfar.errors import InputError

ALL = Curve(threshold=(0.0,), answered=(1.0,), precision=(1.0,))
FITTED = Calibration(temperature=0.1, background=0.5, uniform=0.02, classes=4, curve=ALL)


def neighbours(count: int, k: int = 6, classes: int = 4, seed: int = 0) -> tuple[Any, Any, Any]:
    """Classes and similarities of neighbours, and true classes drawn from the probabilities of `FITTED`."""
    random = np.random.default_rng(seed)
    similarity = -np.sort(-random.uniform(0.2, 1.0, (count, 1)) * random.uniform(0.8, 1.0, (count, k)), axis=1)
    codes = np.where(random.random((count, k)) < 0.75, random.integers(classes, size=(count, 1)), 0)
    chances = class_probabilities(codes, similarity, classes, FITTED)
    truth = (random.random((count, 1)) > np.cumsum(chances, axis=1)).sum(axis=1)
    return codes, similarity, truth


def slow_probability(codes: list[int], similarity: list[float], label: int, fitted: Calibration) -> float:
    """The formula as it is stated, one neighbour after the other."""
    background = math.exp(fitted.background / fitted.temperature)
    own, whole = background / fitted.classes, background
    for code, near in zip(codes, similarity, strict=True):
        weight = math.exp(near / fitted.temperature)
        own, whole = own + weight * (code == label), whole + weight
    return (1 - fitted.uniform) * own / whole + fitted.uniform / fitted.classes


def slow_loss(numbers: Any, own: Any, similarity: Any, classes: int) -> float:
    """The log loss that is fitted, with the mistake not yet seen, as stated."""
    temperature, background, uniform = math.exp(numbers[0]), numbers[1], 1 / (1 + math.exp(-numbers[2]))
    fitted = Calibration(temperature=temperature, background=background, uniform=uniform, classes=classes, curve=ALL)
    rows = [*zip(own.tolist(), similarity.tolist(), strict=True)]
    rows.append(([False] * own.shape[1], np.median(similarity, axis=0).tolist()))
    return float(-np.mean([math.log(slow_probability(mine, near, True, fitted)) for mine, near in rows]))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.tuples(st.integers(0, 3), st.floats(-1, 1)), min_size=5, max_size=5), min_size=1, max_size=4),
    temperature=st.floats(0.05, 5.0),
    background=st.floats(-1.0, 1.0),
    uniform=st.floats(0.0, 1.0),
)
def test_probabilities_follow_the_stated_formula(rows: Any, temperature: float, background: float, uniform: float) -> None:
    codes = np.array([[pair[0] for pair in row] for row in rows])
    similarity = np.array([[pair[1] for pair in row] for row in rows])
    fitted = Calibration(temperature=temperature, background=background, uniform=uniform, classes=4, curve=ALL)
    chances = class_probabilities(codes, similarity, 4, fitted)
    np.testing.assert_allclose(chances.sum(axis=1), 1.0, rtol=1e-12)
    for label in range(4):
        labels = np.full(len(codes), label)
        expected = [slow_probability(*row, label, fitted) for row in zip(codes.tolist(), similarity.tolist(), strict=True)]
        np.testing.assert_allclose(label_probability(codes, similarity, labels, fitted), expected, rtol=1e-10)
        np.testing.assert_allclose(chances[:, label], expected, rtol=1e-10)


def test_probabilities_do_not_overflow_and_fall_to_chance_far_away() -> None:
    cold = replace(FITTED, temperature=1e-6)
    codes, near, far = np.array([[1, 1, 1]]), np.array([[0.9, 0.8, 0.7]]), np.array([[0.4, 0.3, 0.2]])
    assert label_probability(codes, near, np.array([1]), cold) == pytest.approx(0.98 + 0.02 / 4)
    assert label_probability(codes, far, np.array([1]), cold) == pytest.approx(0.25)


def test_the_fit_is_as_good_as_that_of_a_general_search() -> None:
    codes, similarity, truth = neighbours(400)
    own = codes == truth[:, None]
    temperature, background, uniform = fit_probabilities(own, similarity, 4)
    found = [math.log(temperature), background, math.log(uniform / (1 - uniform))]
    ours = slow_loss(found, own, similarity, 4)
    starts = [[math.log(0.1), 0.5, -4.0], [math.log(0.3), 0.2, -2.0], found]
    least = 1 / (402 * (1 - 1 / 4))  # no probability above 401 / 402
    search = {
        "method": "Nelder-Mead",
        "bounds": [(-9, 9), (-9, 9), (math.log(least / (1 - least)), 9)],
        "options": {"maxiter": 150},
    }
    theirs = min(minimize(slow_loss, start, (own, similarity, 4), **search).fun for start in starts)
    assert ours <= theirs + 1e-4


def test_the_fit_finds_the_numbers_that_labels_were_drawn_by() -> None:
    codes, similarity, truth = neighbours(20_000)
    temperature, background, uniform = fit_probabilities(codes == truth[:, None], similarity, 4)
    assert temperature == pytest.approx(0.1, rel=0.15)
    assert background == pytest.approx(0.5, abs=0.05)
    assert uniform == pytest.approx(0.02, abs=0.02)


@pytest.mark.parametrize(("scale", "shift"), [(100.0, 0.0), (0.01, -3.0), (1.0, 50.0)])
def test_the_fit_goes_with_the_unit_of_the_similarities(scale: float, shift: float) -> None:
    codes, similarity, truth = neighbours(500)
    own = codes == truth[:, None]
    temperature, background, uniform = fit_probabilities(own, similarity, 4)
    other = fit_probabilities(own, similarity * scale + shift, 4)
    assert other == pytest.approx((temperature * scale, background * scale + shift, uniform), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("right", [True, False])
def test_votes_that_are_always_right_or_never_are_not_believed_without_end(right: bool) -> None:
    own, similarity = np.full((50, 5), right), np.full((50, 5), 0.9)
    fitted = replace(
        FITTED, **dict(zip(("temperature", "background", "uniform"), fit_probabilities(own, similarity, 4), strict=True))
    )
    said = label_probability(np.zeros((1, 5), dtype=np.int64), similarity[:1], np.zeros(1, dtype=np.int64), fitted)
    # 50 right and one wrong: a wrong one in 51; or never right, where the best is to spread it evenly.
    assert said == (pytest.approx(50 / 51, abs=0.01) if right else pytest.approx(1 / 4, abs=0.02))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 60), classes=st.integers(2, 40), seed=st.integers(0, 99))
def test_a_few_queries_are_not_believed_for_much(count: int, classes: int, seed: int) -> None:
    """However near the neighbours, and all of one mind: (N + 1) / (N + 2) at most, the rule of succession."""
    similarity = np.random.default_rng(seed).uniform(0.9, 1.0, (count, 5))
    fitted = fit_probabilities(np.ones((count, 5), dtype=bool), similarity, classes)
    known = replace(FITTED, **dict(zip(("temperature", "background", "uniform"), fitted, strict=True)), classes=classes)
    nearest = np.full((1, 5), 1e6 * fitted[0])
    said = label_probability(np.zeros((1, 5), dtype=np.int64), nearest, np.zeros(1, dtype=np.int64), known)
    assert said <= (count + 1) / (count + 2) + 1e-12


def test_cross_fitted_rows_are_unseen_by_their_fit() -> None:
    codes, similarity, truth = neighbours(100)
    own, won = codes == truth[:, None], codes == codes[:, :1]
    _, before = cross_fitted(own, won, similarity, 4)
    turned = own.copy()
    turned[7] = ~turned[7]
    _, after = cross_fitted(turned, won, similarity, 4)
    assert after[7] == before[7]
    assert (after != before).sum() > 50
    alone, _ = cross_fitted(own[:1], won[:1], similarity[:1], 4)
    assert 0 < alone[0] < 1


def test_calibration_brings_confidence_to_accuracy() -> None:
    codes, similarity, truth = neighbours(4000, seed=1)
    own, won = codes == truth[:, None], codes == codes[:, :1]
    of_truth, of_label = cross_fitted(own, won, similarity, 4)
    right, shares = codes[:, 0] == truth, won.mean(axis=1)
    assert expected_calibration_error(of_label, right) < 0.03 < expected_calibration_error(shares, right)
    assert log_loss(of_truth) < log_loss(own.mean(axis=1))


def test_log_loss_is_that_of_scikit_learn() -> None:
    codes, similarity, truth = neighbours(200)
    chances = class_probabilities(codes, similarity, 4, FITTED)
    own = np.take_along_axis(chances, truth[:, None], axis=1)[:, 0]
    assert log_loss(own) == pytest.approx(their_log_loss(truth, chances, labels=range(4)), rel=1e-12)
    assert log_loss(np.zeros(1)) == pytest.approx(their_log_loss([0], [[0.0, 1.0]], labels=[0, 1]), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
def test_calibration_error_as_stated(pairs: list[tuple[int, bool]], bins: int) -> None:
    confidence, right = np.array([pair[0] / 30 for pair in pairs]), np.array([pair[1] for pair in pairs])
    expected = 0.0
    for number in range(bins):
        here = [i for i, each in enumerate(confidence) if number / bins < each <= (number + 1) / bins or each == number == 0]
        if here:
            gap = abs(float(np.mean(right[here])) - float(np.mean(confidence[here])))
            expected += gap * len(here) / len(confidence)
    edges = np.abs(confidence * bins - np.round(confidence * bins)) < 1e-9
    if not edges[confidence > 0].any() or bins == 1:  # at an edge, rounding decides
        assert expected_calibration_error(confidence, right, bins) == pytest.approx(expected, abs=1e-12)
    assert 0 <= expected_calibration_error(confidence, right, bins) <= 1


def test_calibration_error_of_plain_cases() -> None:
    assert expected_calibration_error(np.full(10, 0.8), np.arange(10) < 8) == pytest.approx(0.0, abs=1e-12)
    assert expected_calibration_error(np.ones(10), np.arange(10) < 5) == pytest.approx(0.5)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([True, False])) == pytest.approx(1.0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60), st.sampled_from([0.3, 0.5, 0.8, 0.95]))
def test_lines_and_what_they_answer(pairs: list[tuple[int, bool]], wanted: float) -> None:
    scores, right = np.array([pair[0] / 12 for pair in pairs]), np.array([pair[1] for pair in pairs])
    curve = precision_curve(scores, right)
    table = {t: (float((scores >= t).mean()), float(right[scores >= t].mean())) for t in sorted(set(scores.tolist()))[::-1]}
    assert curve.threshold == tuple(table)
    assert curve.answered == pytest.approx([each[0] for each in table.values()])
    assert curve.precision == pytest.approx([each[1] for each in table.values()])
    fitted = replace(FITTED, curve=curve)
    line = fitted.threshold(wanted)
    assert fitted.at(line) == pytest.approx(table[line])
    good = [t for t, (answered, precision) in table.items() if precision >= wanted and answered >= 0.5]
    kept = max(t for t, (answered, _) in table.items() if answered >= calibrate.KEPT)
    if good:
        assert line == max(min(good), kept)
    else:  # not to be had: the best there is, that still answers half
        most = max(precision for answered, precision in table.values() if answered >= 0.5)
        assert table[line][1] == pytest.approx(most) or line == kept


def test_many_queries_are_drawn_at_200_lines() -> None:
    random = np.random.default_rng(0)
    scores = random.random(5000)
    right = random.random(5000) < scores
    curve = precision_curve(scores, right)
    assert len(curve.threshold) == 200
    assert curve.answered[-1] == 1.0
    for threshold, answered, precision in zip(curve.threshold, curve.answered, curve.precision, strict=True):
        assert answered == pytest.approx((scores >= threshold).mean())
        assert precision == pytest.approx(right[scores >= threshold].mean())
    # Ever so many equal scores are one line.
    assert len(precision_curve(np.ones(5000), right).threshold) == 1


def test_a_precision_of_zero_answers_everything() -> None:
    assert FITTED.threshold(0.0) == -math.inf
    assert FITTED.at(2.0) == (0.0, 0.0)


def test_kept_as_json_and_damaged_in_every_way() -> None:
    curve = precision_curve(np.array([0.1, 0.5, 0.9]), np.array([False, True, True]))
    whole = replace(FITTED, curve=curve)
    tree = json.loads(json.dumps(whole.to_dict()))
    assert Calibration.from_dict(tree) == whole
    damaged: list[dict[str, Any]] = [{**tree, "curve": None}, {**tree, "curve": []}]
    for name in ("temperature", "background", "uniform", "classes"):
        damaged += [{**tree, name: value} for value in (None, "1", math.nan, math.inf, True)]
        damaged.append({key: value for key, value in tree.items() if key != name})
    damaged += [{**tree, "temperature": 0.0}, {**tree, "uniform": 1.5}, {**tree, "classes": 0}]
    for name in ("threshold", "answered", "precision"):
        damaged += [
            {**tree, "curve": {**tree["curve"], name: value}} for value in (None, [], [1.0], [None] * 3, [math.nan] * 3)
        ]
    for each in damaged:
        with pytest.raises(InputError, match=r"^calibration\.json is damaged") as caught:
            Calibration.from_dict(each, "calibration.json")
        assert "\n" not in str(caught.value)


def test_wrong_input_is_refused_in_one_line() -> None:
    flags, numbers = np.ones((3, 2), dtype=bool), np.ones((3, 2))
    for call, message in [
        (lambda: FITTED.threshold(1.0), "precision is 1.0, expected a share from 0"),
        (lambda: FITTED.threshold(-0.1), "precision is -0.1"),
        (lambda: FITTED.threshold(math.nan), "precision is nan"),
        (lambda: fit_probabilities(flags[:2], numbers, 3), r"own has shape \(2, 2\), similarity \(3, 2\)"),
        (lambda: fit_probabilities(flags[:0], numbers[:0], 3), "N >= 1"),
        (lambda: expected_calibration_error(numbers[:, 0], flags[:2, 0]), "confidence has 3 entries, right has 2"),
        (lambda: precision_curve(numbers[:0, 0], flags[:0, 0]), "scores has 0 entries"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
