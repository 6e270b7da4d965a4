"""Samplers and splits against counting, slow loops and closed forms."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.sampling import (
    Batch,
    ClassBatches,
    Epoch,
    Pairs,
    Sampler,
    Shuffle,
    split_classes,
    split_validation,
    subset_stratified,
)

LABELS = np.random.default_rng(5).choice([0, 1, 2, 4, -1], size=403, p=[0.5, 0.2, 0.1, 0.1, 0.1])
LABELLED = np.flatnonzero(LABELS >= 0)

SAMPLERS = [
    pytest.param(lambda seed: Shuffle(np.arange(3, 103), batch_size=16, seed=seed), id="shuffle"),
    pytest.param(lambda seed: Shuffle(np.arange(3, 103), batch_size=16, seed=seed, drop_last=True), id="shuffle-drop"),
    pytest.param(lambda seed: Pairs(LABELS, batch_size=50, seed=seed), id="pairs"),
    pytest.param(lambda seed: Pairs(LABELS, batch_size=50, seed=seed, partner="fixed"), id="pairs-fixed"),
    pytest.param(lambda seed: Pairs(LABELS, batch_size=50, seed=seed, pairing="both"), id="pairs-both"),
    pytest.param(lambda seed: Pairs(LABELS, batch_size=50, seed=seed, partner="fixed", pairing="both"), id="pairs-fixed-both"),
    pytest.param(lambda seed: Pairs(LABELS, batch_size=50, seed=seed, linked=8), id="pairs-linked"),
    pytest.param(lambda seed: ClassBatches(LABELS, classes=4, per_class=4, seed=seed), id="classes"),
    pytest.param(lambda seed: ClassBatches(LABELS, classes=3, per_class=4, seed=seed), id="classes-straddling"),
]


def arrays(batch: Batch | Epoch) -> list[np.ndarray]:
    return [a for a in (batch.rows, batch.partners, batch.same) if a is not None]


def assert_equal(one: Batch | Epoch, other: Batch | Epoch) -> None:
    assert len(arrays(one)) == len(arrays(other))
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)


def expect_uniform(counts: np.ndarray, categories: int) -> None:
    """Chi-squared within five standard deviations of its mean."""
    expected = counts.sum() / categories
    chi = ((counts - expected) ** 2 / expected).sum() + expected * (categories - len(counts))
    assert abs(chi - (categories - 1)) < 5 * np.sqrt(2 * (categories - 1))


# ---- all samplers


@pytest.mark.parametrize("make", SAMPLERS)
def test_an_epoch_depends_on_seed_and_number_alone(make: Any) -> None:
    sampler: Sampler = make(7)
    first = sampler.epoch(2)
    sampler.epoch(0)
    sampler.epoch(9)
    assert_equal(first, sampler.epoch(2))
    assert_equal(first, make(7).epoch(2))
    assert not np.array_equal(first.rows, make(8).epoch(2).rows)
    assert not np.array_equal(first.rows, sampler.epoch(3).rows)


@pytest.mark.parametrize("make", SAMPLERS)
def test_the_batches_are_the_epoch_cut_in_order(make: Any) -> None:
    sampler = make(0)
    epoch = sampler.epoch(1)
    batches = [epoch.batch(i) for i in range(len(epoch))]
    assert len(sampler) == len(epoch)
    assert {a.dtype for a in arrays(epoch)} <= {np.dtype(np.int64), np.dtype(bool)}
    for whole, parts in zip(arrays(epoch), zip(*(arrays(b) for b in batches), strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert {len(b.rows) for b in batches[:-1]} <= {epoch.batch_size}
    assert 0 < len(batches[-1].rows) <= epoch.batch_size


@pytest.mark.parametrize("make", SAMPLERS)
def test_processes_divide_every_batch_equally(make: Any) -> None:
    epoch = make(0).epoch(0)
    world = 2
    for i in range(len(epoch)):
        whole, parts = epoch.batch(i), [epoch.batch(i, rank, world) for rank in range(world)]
        assert len({len(part.rows) for part in parts}) == 1
        for a, b in zip(arrays(whole), zip(*(arrays(part) for part in parts), strict=True), strict=True):
            joined = np.concatenate(b)
            np.testing.assert_array_equal(joined[: len(a)], a)
            assert len(joined) - len(a) < world


def test_a_last_batch_that_cannot_be_divided_is_filled_from_the_start_of_the_epoch() -> None:
    epoch = Shuffle(np.arange(13), batch_size=8, seed=0).epoch(0)
    parts = [epoch.batch(1, rank, 4).rows for rank in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts), np.concatenate([epoch.rows[8:], epoch.rows[:3]]))
    tiny = Shuffle(np.arange(1), batch_size=4, seed=0).epoch(0)
    assert [tiny.batch(0, rank, 4).rows.tolist() for rank in range(4)] == [[0]] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7,), "batch 7 does not exist: the epoch has batches 0 to 6"),
        ((-1,), "batch -1 does not exist"),
        ((0, 2, 2), "rank 2 of 2 does not exist"),
        ((0, 0, 3), "batch_size 16 cannot be divided among 3 processes; use a multiple of 3"),
    ],
)
def test_a_batch_that_does_not_exist(arguments: tuple[int, ...], message: str) -> None:
    epoch = Shuffle(np.arange(100), batch_size=16, seed=0).epoch(0)
    with pytest.raises(InputError, match=message):
        epoch.batch(*arguments)


@pytest.mark.parametrize("make", SAMPLERS)
def test_an_epoch_number_is_not_negative(make: Any) -> None:
    with pytest.raises(InputError, match="epoch is -1; expected a whole number of at least 0"):
        make(0).epoch(-1)


# ---- shuffling


def test_shuffle_visits_every_row_once() -> None:
    rows = np.array([5, 9, 11, 2, 40])
    sampler = Shuffle(rows, batch_size=2, seed=1)
    assert sorted(sampler.epoch(0).rows) == sorted(rows)
    assert len(sampler) == 3
    firsts = np.array([sampler.epoch(e).rows[0] for e in range(1000)])
    expect_uniform(np.unique(firsts, return_counts=True)[1], 5)


def test_drop_last_leaves_out_other_rows_every_time() -> None:
    sampler = Shuffle(np.arange(10), batch_size=4, seed=0, drop_last=True)
    left_out = {tuple(np.setdiff1d(np.arange(10), sampler.epoch(e).rows)) for e in range(8)}
    assert len(sampler) == len(sampler.epoch(0)) == 2
    assert len(left_out) > 3


# ---- pairs


@pytest.mark.parametrize("partner", ["fixed", "fresh"])
@pytest.mark.parametrize("pairing", ["half", "both"])
def test_pairs_tell_the_truth(partner: Any, pairing: Any) -> None:
    epoch = Pairs(LABELS, batch_size=64, seed=3, partner=partner, pairing=pairing).epoch(1)
    assert epoch.partners is not None
    assert epoch.same is not None
    np.testing.assert_array_equal(epoch.same, LABELS[epoch.rows] == LABELS[epoch.partners])
    assert (epoch.rows != epoch.partners).all()
    assert (LABELS[epoch.partners] >= 0).all()
    visits = Counter(epoch.rows.tolist())
    assert visits == dict.fromkeys(LABELLED.tolist(), 2 if pairing == "both" else 1)
    if pairing == "both":
        assert Counter(zip(epoch.rows, epoch.same, strict=True)) == {(r, s): 1 for r in LABELLED for s in (True, False)}


def test_half_of_the_pairs_are_of_one_class() -> None:
    labels = np.repeat(np.arange(10), 1000)
    same = Pairs(labels, batch_size=64, seed=0).epoch(0).same
    assert same is not None
    assert abs(same.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(labels))


def test_partners_are_uniform() -> None:
    labels = np.array([2, 0, 2, 0, 2, 7, 7, 2])  # classes interleaved, with gaps
    sampler = Pairs(labels, batch_size=64, seed=1, pairing="both")
    positive, negative = np.zeros((8, 8)), np.zeros((8, 8))
    for e in range(1500):
        epoch = sampler.epoch(e)
        np.add.at(positive, (epoch.rows[epoch.same], epoch.partners[epoch.same]), 1)
        np.add.at(negative, (epoch.rows[~epoch.same], epoch.partners[~epoch.same]), 1)
    for i in range(8):
        mates = (labels == labels[i]) & (np.arange(8) != i)
        assert not positive[i, ~mates].any()
        assert not negative[i, labels == labels[i]].any()
        if mates.sum() > 1:
            expect_uniform(positive[i, mates], int(mates.sum()))
        expect_uniform(negative[i, labels != labels[i]], int((labels != labels[i]).sum()))


def test_fixed_partners_stay_and_fresh_ones_change() -> None:
    def pairs(partner: Any, e: int) -> set[tuple[int, int]]:
        epoch = Pairs(LABELS, batch_size=64, seed=0, partner=partner).epoch(e)
        return set(zip(epoch.rows.tolist(), epoch.partners.tolist(), strict=True))

    assert pairs("fixed", 0) == pairs("fixed", 1)
    assert len(pairs("fresh", 0) & pairs("fresh", 1)) < 0.1 * len(LABELLED)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(0, 100))
def test_pairs_hold_for_any_labels(values: list[int], seed: int) -> None:
    labels = np.array(values)
    counts = Counter(values)
    if len(counts) < 2 or 1 in counts.values():
        with pytest.raises(InputError, match=r"one class only|one image only"):
            Pairs(labels, batch_size=8, seed=seed)
        return
    for pairing in ("half", "both"):
        epoch = Pairs(labels, batch_size=8, seed=seed, pairing=pairing).epoch(0)
        np.testing.assert_array_equal(epoch.same, labels[epoch.rows] == labels[epoch.partners])
        assert (epoch.rows != epoch.partners).all()


def test_a_class_of_one_image_is_named() -> None:
    with pytest.raises(InputError, match=r"^class 3 has one image only.*remove the class"):
        Pairs([0, 0, 1, 1, 3], batch_size=2, seed=0)
    with pytest.raises(InputError, match=r"^class 'dog' and 1 more have one image only"):
        Pairs([0, 0, 1, 2], batch_size=2, seed=0, names=["cat", "dog", "eel"])


@pytest.mark.parametrize("make", [Pairs, ClassBatches])
def test_one_class_only_is_named(make: Any) -> None:
    sizes = {"batch_size": 4} if make is Pairs else {"classes": 2, "per_class": 2}
    with pytest.raises(InputError, match=r"one class only \(class 'cat'\).*at least two"):
        make([0, 0, 0, -1], seed=0, names=["cat"], **sizes)


def pairs_of(epoch: Epoch) -> Counter[tuple[int, int, bool]]:
    assert epoch.partners is not None
    assert epoch.same is not None
    return Counter(zip(epoch.rows.tolist(), epoch.partners.tolist(), epoch.same.tolist(), strict=True))


@pytest.mark.parametrize("partner", ["fixed", "fresh"])
@pytest.mark.parametrize("pairing", ["half", "both"])
def test_linked_pairs_are_the_same_pairs_in_another_order(partner: Any, pairing: Any) -> None:
    options: dict[str, Any] = {"batch_size": 64, "seed": 3, "partner": partner, "pairing": pairing}
    linked, free = Pairs(LABELS, linked=8, **options), Pairs(LABELS, **options)
    for number in range(2):
        assert pairs_of(linked.epoch(number)) == pairs_of(free.epoch(number))
    assert not np.array_equal(linked.epoch(0).rows, linked.epoch(1).rows)
    np.testing.assert_array_equal(linked.epoch(1).rows, Pairs(LABELS, linked=8, **options).epoch(1).rows)


@pytest.mark.parametrize(("pairing", "most"), [("half", 10.2), ("both", 11)])
def test_eight_linked_pairs_are_of_few_images_and_in_another_group_every_time(pairing: Any, most: float) -> None:
    sampler = Pairs(np.arange(4000) % 10, batch_size=64, seed=0, partner="fixed", pairing=pairing, linked=8)
    beside = []
    for number in range(2):
        epoch = sampler.epoch(number)
        groups = np.stack([epoch.rows, epoch.partners]).reshape(2, -1, 8).swapaxes(0, 1).reshape(-1, 16)
        assert np.mean([len(np.unique(group)) for group in groups]) < most
        beside.append({frozenset(zip(*group.reshape(2, 8).tolist(), strict=True)) for group in groups})
    assert len(beside[0] & beside[1]) < 0.05 * len(beside[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.lists(st.tuples(st.integers(0, 6), st.integers(7, 13)), min_size=1, max_size=30))
def test_an_image_is_embedded_once_for_linked_pairs(linked: int, pairs: list[tuple[int, int]]) -> None:
    rows, partners = np.array(pairs).T
    batch = Batch(rows, partners, np.ones(len(rows), dtype=bool), linked=linked)
    first, second = batch.sides()
    images = batch.images()
    np.testing.assert_array_equal(images[first], rows)
    np.testing.assert_array_equal(images[second], partners)
    slow: list[tuple[int, int]] = []
    for side in (rows, partners):
        for place, image in enumerate(side.tolist()):
            if (place // linked, image) not in slow:
                slow.append((place // linked, image))
    assert images.tolist() == [image for _, image in slow]


# ---- classes x images


@pytest.mark.parametrize(("classes", "per_class"), [(2, 3), (3, 4), (4, 2), (5, 2), (7, 5)])
def test_class_batches_have_their_form(classes: int, per_class: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(7) * 3, 30))
    sampler = ClassBatches(labels, classes=classes, per_class=per_class, seed=2)
    epoch = sampler.epoch(0)
    assert len(sampler) == len(epoch) == -(-len(labels) // (classes * per_class))
    for i in range(len(epoch)):
        rows = epoch.batch(i).rows.reshape(classes, per_class)
        numbers = labels[rows]
        assert (numbers == numbers[:, :1]).all()
        assert len(np.unique(numbers[:, 0])) == classes
        assert len(np.unique(rows)) == classes * per_class


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 30), st.integers(0, 1000))
def test_classes_are_seen_equally_often(known: int, classes: int, batches: int, seed: int) -> None:
    classes = min(known, classes)
    labels = np.repeat(np.arange(known), np.arange(1, known + 1) * 5)
    epoch = ClassBatches(labels, classes=classes, per_class=2, seed=seed, batches=batches).epoch(0)
    numbers = labels[epoch.rows].reshape(batches, classes, 2)[:, :, 0]
    assert all(len(set(batch)) == classes for batch in numbers.tolist())
    visits = np.bincount(numbers.ravel(), minlength=known)
    assert visits.max() - visits.min() <= 1


def test_dealing_favours_no_class_in_any_place() -> None:
    labels = np.repeat(np.arange(5), 4)
    places = np.zeros((6, 5))  # 2 batches of 3 classes out of 5: the second straddles two rounds
    for e in range(3000):
        epoch = ClassBatches(labels, classes=3, per_class=2, seed=0, batches=2).epoch(e)
        places[np.arange(6), labels[epoch.rows[::2]]] += 1
    for place in places:
        expect_uniform(place, 5)


def test_an_image_comes_again_only_after_all_others_of_its_class() -> None:
    labels = np.repeat([0, 1, 2], [40, 10, 25])
    epoch = ClassBatches(labels, classes=3, per_class=4, seed=0).epoch(0)
    for number in range(3):
        seen = epoch.rows[labels[epoch.rows] == number]
        size = int((labels == number).sum())
        for start in range(0, len(seen), size):
            lap = seen[start : start + size]
            assert len(np.unique(lap)) == len(lap)


def test_classes_of_equal_size_show_every_image_once() -> None:
    labels = np.repeat(np.arange(6), 20)
    epoch = ClassBatches(labels, classes=3, per_class=5, seed=0).epoch(4)
    np.testing.assert_array_equal(np.sort(epoch.rows), np.arange(120))


def test_large_classes_show_all_their_images_over_the_epochs() -> None:
    labels = np.repeat([0, 1], [90, 10])
    sampler = ClassBatches(labels, classes=2, per_class=5, seed=0)
    seen = np.unique(np.concatenate([sampler.epoch(e).rows for e in range(12)]))
    np.testing.assert_array_equal(seen, np.arange(100))


def test_a_small_class_repeats_its_images_evenly() -> None:
    epoch = ClassBatches([0] * 20 + [1, 1, 1, 2], classes=3, per_class=8, seed=0, batches=1).epoch(0)
    times = np.bincount(epoch.rows, minlength=24)
    assert set(times[20:23]) <= {2, 3}
    assert times[23] == 8


@pytest.mark.parametrize("known", [300, 70_000])
def test_more_classes_than_eight_and_sixteen_bits_can_number(known: int) -> None:
    labels = np.repeat(np.arange(known), 2 + np.arange(known) % 2)
    epoch = ClassBatches(labels, classes=100, per_class=2, seed=0, batches=3).epoch(0)
    assert (labels[epoch.rows[::2]] == labels[epoch.rows[1::2]]).all()
    assert len(np.unique(epoch.rows)) == 600


def test_sampling_needs_no_torch() -> None:
    code = "import sys, nearfar.sampling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- splits


@pytest.mark.parametrize("how", ["random", "stratified", "first", "last"])
@pytest.mark.parametrize("size", [0.2, 25, np.int64(25)])
def test_a_validation_split_divides_the_rows(how: Any, size: Any) -> None:
    train, validation = split_validation(LABELS, len(LABELS), size=size, how=how, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(len(LABELS)))
    total = len(LABELLED) if how == "stratified" else len(LABELS)
    assert len(validation) == (round(0.2 * total) if size == 0.2 else 25)
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    assert train.dtype == validation.dtype == np.int64


def test_first_and_last_and_random() -> None:
    assert split_validation(None, 5, size=2, how="first", seed=0)[1].tolist() == [0, 1]
    assert split_validation(None, 5, size=2, how="last", seed=0)[1].tolist() == [3, 4]
    times = np.zeros(10)
    for seed in range(1000):
        times[split_validation(None, 10, size=3, how="random", seed=seed)[1]] += 1
    assert abs(times - 300).max() < 5 * np.sqrt(1000 * 0.3 * 0.7)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 5), min_size=4, max_size=60), st.floats(0.05, 0.9), st.integers(0, 50))
def test_stratified_parts_are_in_proportion(values: list[int], size: float, seed: int) -> None:
    labels = np.array(values)
    counts = np.bincount(labels[labels >= 0], minlength=6)
    free = np.maximum(counts - 1, 0).sum()
    held = round(size * counts.sum())
    if not 1 <= held <= free:
        with pytest.raises(InputError):
            split_validation(labels, len(labels), size=size, how="stratified", seed=seed)
        return
    train, validation = split_validation(labels, len(labels), size=size, how="stratified", seed=seed)
    assert len(validation) == held
    assert (labels[validation] >= 0).all()
    kept = np.bincount(labels[train][labels[train] >= 0], minlength=6)
    assert (kept[counts > 0] >= 1).all()


@pytest.mark.parametrize("size", [0.1, 0.33])
def test_each_class_is_held_out_in_proportion_and_every_image_equally_often(size: float) -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    times = np.zeros(100)
    for seed in range(600):
        _, validation = split_validation(labels, 100, size=size, how="stratified", seed=seed)
        shares = np.bincount(labels[validation], minlength=3)
        assert abs(shares - size * np.array([60, 30, 10])).max() < 2
        times[validation] += 1
    assert abs(times / 600 - size).max() < 0.1


def test_unseen_classes_are_on_one_side_only() -> None:
    seen, unseen = split_classes(LABELS, unseen=0.25, seed=3)
    assert len(np.unique(LABELS[unseen])) == 1
    assert not set(LABELS[seen]) & set(LABELS[unseen])
    np.testing.assert_array_equal(np.sort(np.concatenate([seen, unseen])), LABELLED)
    assert set(LABELS[split_classes(LABELS, unseen=[4, 1], seed=0)[1]]) == {1, 4}
    assert len(set(LABELS[split_classes(LABELS, unseen=3, seed=0)[1]])) == 3
    assert len({tuple(split_classes(LABELS, unseen=1, seed=seed)[1]) for seed in range(20)}) == 4


def test_subsets_are_nested_and_in_proportion() -> None:
    labels = np.repeat(np.arange(10), np.arange(10, 110, 10))
    before: set[int] = set()
    for size in (10, 0.05, 0.1, 100, 0.5, 1.0):
        rows = subset_stratified(labels, size=size, seed=1)
        assert (np.diff(rows) > 0).all()
        assert len(rows) == (round(size * 550) if isinstance(size, float) else size)
        counts = np.bincount(labels[rows], minlength=10)
        assert counts.min() >= 1
        if len(rows) > 100:
            assert abs(counts - len(rows) * np.arange(10, 110, 10) / 550).max() < 2
        assert before <= set(rows.tolist())
        before = set(rows.tolist())
    assert not np.array_equal(subset_stratified(labels, size=50, seed=1), subset_stratified(labels, size=50, seed=2))
    assert (LABELS[subset_stratified(LABELS, size=1.0, seed=0)] >= 0).all()


# ---- wrong arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Shuffle([], batch_size=2, seed=0), "rows is empty"),
        (lambda: Shuffle([0.5], batch_size=2, seed=0), "rows has shape .1,. and type float64; expected a vector of integers"),
        (lambda: Shuffle([[1]], batch_size=2, seed=0), "rows has shape .1, 1."),
        (lambda: Shuffle([-1, 2], batch_size=2, seed=0), "rows holds -1"),
        (lambda: Shuffle([1], batch_size=0, seed=0), "batch_size is 0; expected a whole number of at least 1"),
        (lambda: Shuffle([1], batch_size=1, seed=-1), "seed is -1"),
        (lambda: Shuffle([1], batch_size=True, seed=0), "batch_size is True"),
        (lambda: Shuffle([1, 2], batch_size=3, seed=0, drop_last=True), "drop_last leaves no batch.*at most 2"),
        (lambda: Pairs([0, 0, 1, 1], batch_size=2, seed=0, partner="fixd"), "partner is 'fixd'; did you mean 'fixed'"),
        (lambda: Pairs([0, 0, 1, 1], batch_size=2, seed=0, pairing="all"), "pairing is 'all'; known are both, half"),
        (lambda: Pairs([0, -2], batch_size=2, seed=0), "labels holds -2 in row 1"),
        (lambda: Pairs([-1, -1], batch_size=2, seed=0), "no labelled row"),
        (lambda: Pairs([], batch_size=2, seed=0), "no labelled row"),
        (lambda: ClassBatches([0, 1], classes=3, per_class=2, seed=0), "classes is 3, but the labels have 2 classes"),
        (lambda: ClassBatches([0, 1], classes=1, per_class=2, seed=0), "classes is 1; expected a whole number of at least 2"),
        (lambda: ClassBatches([0, 1], classes=2, per_class=1, seed=0), "per_class is 1"),
        (lambda: ClassBatches([0, 1], classes=2, per_class=2, seed=0, batches=0), "batches is 0"),
        (lambda: split_validation(None, 9, size=3, how="stratified", seed=0), "needs labels"),
        (lambda: split_validation([0, 1], 9, size=3, how="stratified", seed=0), "labels has 2 entries, n is 9"),
        (lambda: split_validation(None, 9, size=9, how="first", seed=0), "size 9 makes 9 of 9; expected 1 to 8"),
        (lambda: split_validation(None, 9, size=0.01, how="first", seed=0), "size 0.01 makes 0 of 9"),
        (lambda: split_validation(None, 9, size=1.5, how="first", seed=0), "size is 1.5; a share must lie between 0 and 1"),
        (lambda: split_validation(None, 9, size="3", how="first", seed=0), "size is '3'"),
        (lambda: split_validation(None, 9, size=3, how="frist", seed=0), "how is 'frist'; did you mean 'first'"),
        (lambda: split_validation(None, 1, size=1, how="first", seed=0), "n is 1; expected a whole number of at least 2"),
        (lambda: split_classes([0, 1], unseen=[2], seed=0), "unseen names class 2, which does not occur"),
        (lambda: split_classes([0, 1], unseen=[0, 1], seed=0), "unseen names 2 of 2 classes"),
        (lambda: split_classes([0, 1], unseen=[], seed=0), "unseen names 0 of 2 classes"),
        (lambda: split_classes([0, 1], unseen=1.0, seed=0), "unseen 1.0 makes 2 of 2; expected 1 to 1"),
        (lambda: split_classes([3, 3], unseen=0.5, seed=0), "one class only .class 3."),
        (lambda: subset_stratified([0, 1], size=3, seed=0), "size 3 makes 3 of 2"),
    ],
)
def test_wrong_arguments_end_in_one_clear_line(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_head_of_an_epoch_is_its_first_batches() -> None:
    for plan in (Shuffle(np.arange(100), batch_size=16, seed=0).epoch(1), Pairs(LABELS, batch_size=50, seed=0).epoch(1)):
        for batches in (1, 3, len(plan), len(plan) + 1):
            head = plan.head(batches)
            assert len(head) == min(batches, len(plan))
            for number in range(len(head)):
                ours, theirs = head.batch(number), plan.batch(number)
                assert np.array_equal(ours.rows, theirs.rows)
                assert (ours.partners is None) == (theirs.partners is None)
                if ours.partners is not None:
                    assert np.array_equal(ours.partners, theirs.partners)
                    assert np.array_equal(ours.same, theirs.same)  # type: ignore[arg-type]  # pairs have both
