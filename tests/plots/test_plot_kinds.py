"""Every plot, from two classes to a thousand, keeps the promises; and what it shows is what it was given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from plots.plot_samples import AWKWARD, check_promises, drawn_words, make_sample

from nearfar import plots
from nearfar.plots import Difference, sheets
from nearfar.plots.style import MUTED, RIGHT, WRONG, class_colors, clean

MINUS = "\N{MINUS SIGN}"


def cosines(z: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    table = np.zeros((classes, classes))
    for one in range(classes):
        for other in range(classes):
            table[one, other] = (unit[labels == one] @ unit[labels == other].T).mean()
    return table


@pytest.mark.parametrize("classes", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (10, 17)), 30])
def test_plots_by_class(classes: int) -> None:
    sample = make_sample(classes)
    predicted = np.roll(sample.labels, 1)
    counts = plots.count_confusions(sample.labels, predicted, sample.classes)
    flat, _ = plots.project_pca(sample.z, 2)
    table = cosines(sample.z, sample.labels, classes)
    for plot in (
        plots.confusion_matrix(counts, sample.classes),
        plots.confusion_matrix(counts, sample.classes, diagonal=False),
        plots.most_confused(counts, sample.classes),
        plots.class_cosines(table, sample.classes),
        plots.class_cosines(table, sample.classes, before=table / 2),
        plots.scatter_map(flat, sample.labels, sample.classes),
        plots.density_map(flat, sample.labels, sample.classes),
        plots.pca_map(sample.z, sample.labels, sample.classes, dimensions=3),
        plots.tsne_maps(flat, flat, sample.labels, sample.classes),
    ):
        check_promises(plot)


@pytest.mark.slow
def test_a_thousand_classes() -> None:
    sample = make_sample(1000, per_class=2)
    counts = plots.count_confusions(sample.labels, np.roll(sample.labels, 1), sample.classes)
    flat = sample.z[:, :2]
    for plot in (
        plots.confusion_matrix(counts, sample.classes, diagonal=False),
        plots.most_confused(counts, sample.classes),
        plots.class_cosines(np.eye(1000), sample.classes, before=np.eye(1000) / 2),
        plots.density_map(flat, sample.labels, sample.classes),
        plots.tsne_maps(None, flat, sample.labels, sample.classes),
    ):
        check_promises(plot)
        assert len(drawn_words(plot)) < 150


def test_unlabelled_points_have_no_legend() -> None:
    points = np.random.default_rng(0).normal(size=(40, 2))
    for plot in (plots.scatter_map(points), plots.pca_map(points), plots.tsne_maps(points, points)):
        check_promises(plot)
        assert not plot.figure.legends


def test_legends_name_every_class_as_it_is() -> None:
    sample = make_sample(10)
    plot = plots.scatter_map(sample.z[:, :2], sample.labels, sample.classes)
    named = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert named == [clean(name) for name in AWKWARD]
    assert named[:2] == ["$5 bill_under_score$", "_hidden"]


def test_scatter_puts_every_point_in_its_place_and_colour() -> None:
    sample = make_sample(3)
    plot = plots.scatter_map(sample.z[:, :2], sample.labels, sample.classes)
    cloud = plot.figure.axes[0].collections[0]
    shown = {(*np.round(at, 9), to_hex(color)) for at, color in zip(cloud.get_offsets(), cloud.get_facecolors(), strict=True)}
    colors = [color.lower() for color in class_colors(3)]
    assert shown == {(*np.round(at[:2], 9), colors[label]) for at, label in zip(sample.z, sample.labels, strict=True)}


# Matrices


def test_count_confusions_counts() -> None:
    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    slow = np.zeros((4, 4), dtype=int)
    for one, other in zip(truth, said, strict=True):
        slow[one, other] += 1
    assert (plots.count_confusions(truth, said, "abcd") == slow).all()


@pytest.mark.parametrize("diagonal", [True, False])
def test_the_cells_say_the_counts(diagonal: bool) -> None:
    counts = np.array([[50, 3, 0], [1, 40, 12], [0, 0, 1234]])
    axes = plots.confusion_matrix(counts, ["a", "b", "c"], diagonal=diagonal).figure.axes[0]
    written = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    expected = {
        (row, column): str(count) for (row, column), count in np.ndenumerate(counts) if diagonal or (row != column and count)
    }
    assert written == expected
    colors = np.ma.filled(axes.images[0].get_array().astype(float), np.nan)
    if diagonal:
        np.testing.assert_allclose(colors, counts / counts.sum(axis=1, keepdims=True))
    else:
        assert np.isnan(np.diag(colors)).all()
        off = ~np.eye(3, dtype=bool)
        assert (colors[off] == counts[off]).all()
        assert axes.images[0].get_clim() == (0, 12)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]


def test_pooling_a_large_matrix_loses_no_mistake() -> None:
    counts = np.diag(np.full(600, 9))
    counts[3, 597] = 2
    image = plots.confusion_matrix(counts, [str(number) for number in range(600)], diagonal=False).figure.axes[0].images[0]
    shown = np.ma.filled(image.get_array().astype(float), 0)
    assert shown.shape == (200, 200)
    assert list(zip(*np.nonzero(shown), strict=True)) == [(1, 199)]
    assert shown.max() == 2


def test_no_mistakes_at_all() -> None:
    counts = np.diag([5, 0, 7])
    for plot in (
        plots.most_confused(counts, "abc"),
        plots.confusion_matrix(counts, "abc", diagonal=False),
        plots.confusion_matrix(np.zeros((3, 3)), "abc"),
        plots.worst_mistakes(np.zeros((0, 1, 4, 4), np.uint8), [], [], [], "abc", total=12),
    ):
        check_promises(plot)
        assert "no mistakes" in plot.alt.lower()


def test_most_confused_lists_the_worst_first() -> None:
    counts = np.array([[9, 1, 4], [2, 8, 0], [0, 7, 3]])
    axes = plots.most_confused(counts, ["a", "b", "c"], limit=3).figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c → b", "a → c", "b → a"]
    assert [bar.get_width() for bar in axes.patches] == [7, 4, 2]
    assert axes.texts[0].get_text() == "7 (70.0% of its images)"


def test_cosine_matrices_share_one_scale_and_say_their_values() -> None:
    after = np.array([[0.976, -0.054], [-0.004, 1.0]])
    before = np.array([[np.nan, 0.5], [0.5, -1.0]])
    plot = plots.class_cosines(after, ["a", "b"], before=before)
    left, right = plot.figure.axes[:2]
    assert [text.get_text() for text in left.texts] == [".50", ".50", f"{MINUS}1.00"]
    assert [text.get_text() for text in right.texts] == [".98", f"{MINUS}.05", ".00", "1.0"]
    assert left.images[0].get_clim() == right.images[0].get_clim() == (-1, 1)
    assert left.get_title() == "before training"
    assert "after training: within 0.99 and between -0.03" in plot.alt


# Pictures


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (6, 14)), (1, (14, 6)), (3, (300, 400))])
def test_sheets_of_pictures(channels: int, size: tuple[int, int]) -> None:
    sample = make_sample(10, per_class=1, channels=channels, size=size)
    images, labels = sample.images, sample.labels
    wrong = (labels + 1) % 10
    found = images[:9].reshape(3, 3, *images.shape[1:])
    for plot in (
        plots.pair_grid(images, images[::-1], labels == labels[::-1]),
        plots.pair_grid(images, images[::-1], labels == labels[::-1], predicted=labels > 4, scores=labels * 1e3),
        plots.neighbor_grid(images[:3], labels[:3], found, labels[:9].reshape(3, 3), np.ones((3, 3)), sample.classes),
        plots.neighbor_grid(images[:3], None, found, None, np.ones((3, 3))),
        plots.pair_grid(images, images[::-1], None, scores=labels / 9),
        plots.missed_views(images, images[::-1], images, labels + 2, total=100),
        plots.worst_mistakes(images, labels, wrong, labels / 9, sample.classes),
        plots.worst_mistakes(images, labels, wrong, labels / 9, sample.classes, nearest=images[::-1]),
    ):
        check_promises(plot)


def test_what_nobody_knows_is_not_called_right_or_wrong() -> None:
    images = make_sample(4, per_class=1).images
    near = plots.neighbor_grid(images[:2], None, images.reshape(2, 2, *images.shape[1:]), None, [[0.9, 0.8], [0.7, 0.6]])
    assert drawn_words(near) == ["query", "nearest in the gallery, best first", "0.90", "0.80", "0.70", "0.60"]
    pairs = plots.pair_grid(images[:2], images[2:], None, scores=[0.25, 0.75], score_name="r")
    assert drawn_words(pairs) == ["r = 0.25", "r = 0.75"]
    for plot in (near, pairs):
        assert {to_hex(frame.get_edgecolor()) for frame in plot.figure.axes[0].patches} == {MUTED.lower()}
        assert "class" not in plot.caption + plot.alt


def test_views_that_miss_stand_between_their_image_and_what_they_found() -> None:
    images = make_sample(6, per_class=1, channels=3).images
    plot = plots.missed_views(images[:2], images[2:4], images[4:], [1234, 2], total=9)
    shown = [np.asarray(image.get_array()) for image in plot.figure.axes[0].images]
    for got, expected in zip(shown, images[[0, 2, 4, 1, 3, 5]], strict=True):
        assert (got == np.moveaxis(expected, 0, -1)).all()
    assert drawn_words(plot) == ["found in place 1,234", "found in place 2"]
    assert "of 9 views" in plot.caption


def test_pairs_show_both_images_and_colour_the_verdicts() -> None:
    images = make_sample(4, per_class=1, channels=3).images
    plot = plots.pair_grid(images[:2], images[2:], [True, False], predicted=[True, True], scores=[0.25, 0.75])
    axes = plot.figure.axes[0]
    shown = [image.get_array() for image in axes.images]
    for got, expected in zip(shown, images[[0, 2, 1, 3]], strict=True):
        assert (np.asarray(got) == np.moveaxis(expected, 0, -1)).all()
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [to_hex(frame.get_edgecolor()) for frame in frames] == [RIGHT.lower()] * 2 + [WRONG.lower()] * 2
    assert [frame.get_linestyle() == "-" for frame in frames] == [True, True, False, False]
    assert drawn_words(plot) == ["same, d = 0.25", "✓ said same", "different, d = 0.75", "✗ said same"]
    before = plots.pair_grid(images[:2], images[2:], [True, False])
    assert drawn_words(before) == ["same", "different"]
    assert drawn_words(plots.pair_grid(images[:2], images[2:], [True, False], limit=1)) == ["same"]


def test_neighbours_are_marked_right_or_wrong() -> None:
    sample = make_sample(3, per_class=2)
    images = sample.images
    plot = plots.neighbor_grid(
        images[:2],
        [0, 2],
        images[2:].reshape(2, 2, 1, 9, 12),
        [[0, 1], [2, 2]],
        [[0.91, 0.5], [3.25, 412.7]],
        ["cat", "dog", "eel"],
    )
    assert drawn_words(plot)[2:] == ["cat", "✓ 0.91", "✗ 0.50", "dog", "eel", "✓ 3.25", "✓ 413"]
    axes = plot.figure.axes[0]
    expected = images[[0, 2, 3, 1, 4, 5], 0]
    assert all((np.asarray(got.get_array()) == image).all() for got, image in zip(axes.images, expected, strict=True))
    colors = [to_hex(frame.get_edgecolor()) for frame in axes.patches]
    assert [color == WRONG.lower() for color in colors] == [False, False, True, False, False, False]
    assert [color == RIGHT.lower() for color in colors] == [False, True, False, False, True, True]
    assert "3 of 4" in plot.alt


def test_mistakes_say_what_it_is_what_was_said_and_how_sure() -> None:
    images = make_sample(2, per_class=1).images
    plot = plots.worst_mistakes(images, [0, 1], [1, 0], [0.98, 0.5], ["cat", "dog"], total=50)
    assert drawn_words(plot) == ["cat", "✗ dog, 98%", "dog", "✗ cat, 50%"]
    assert "among 50 images" in plot.alt


def test_worst_rows_are_the_surest_mistakes() -> None:
    rng = np.random.default_rng(0)
    labels, said, sure = rng.integers(0, 3, 60), rng.integers(0, 3, 60), np.round(rng.random(60), 1)
    expected = sorted((row for row in range(60) if labels[row] != said[row]), key=lambda row: (-sure[row], row))
    assert plots.worst_rows(labels, said, sure, 7).tolist() == expected[:7]
    assert plots.worst_rows(labels, labels, sure).tolist() == []


def test_one_per_class_finds_each_class_once() -> None:
    labels = np.array([5, 5, 2, 9, 2, 9, 9])
    assert labels[plots.one_per_class(labels)].tolist() == [2, 5, 9]
    few = plots.one_per_class(np.repeat(np.arange(100), 3), limit=6, seed=1)
    assert len(few) == len(set(few // 3)) == 6
    assert (few == plots.one_per_class(np.repeat(np.arange(100), 3), limit=6, seed=1)).all()
    assert {tuple(plots.one_per_class(labels, seed=seed)) for seed in range(20)} != {(2, 0, 3)}


def test_large_pictures_are_shrunk_in_proportion() -> None:
    large = np.full((3, 1000, 500), 77, dtype=np.uint8)
    small = sheets._thumbnail(large)
    assert small.shape == (160, 80, 3)
    assert (small == 77).all()
    assert sheets._thumbnail(np.zeros((1, 4000, 3), np.uint8)).shape == (160, 1)


# Curves and comparisons


def test_loss_curves_show_what_was_measured() -> None:
    plot = plots.loss_by_epoch([0.5, 0.25, 0.125], [None, 0.5, np.nan], [1e-3, 1e-3, 3e-4], epochs=[2, 4, 6])
    check_promises(plot)
    upper, lower = plot.figure.axes
    assert [line.get_xydata().tolist() for line in upper.get_lines()] == [[[2, 0.5], [4, 0.25], [6, 0.125]], [[4, 0.5]]]
    assert lower.get_lines()[0].get_ydata().tolist() == [1e-3, 1e-3, 3e-4]
    assert upper.get_yscale() == "linear"
    assert "learning rate" in plot.caption


@pytest.mark.parametrize(
    ("training", "scale"),
    [
        ([3.0, 0.1], "log"),
        ([3.0, 1.0], "linear"),
        ([30.0, 0.0], "linear"),
        ([-2.0, -5.0], "linear"),
        ([1e6, 1e-6], "log"),
        ([0.0], "linear"),
    ],
)
def test_loss_axis_is_logarithmic_only_where_it_helps(training: list[float], scale: str) -> None:
    plot = plots.loss_by_epoch(training)
    check_promises(plot)
    axes = plot.figure.axes[0]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low <= min(training) <= max(training) <= high
    assert ("logarithmic" in axes.get_ylabel()) == (scale == "log")
    assert not any("$" in text for text in drawn_words(plot))


def test_the_two_recalls_are_told_apart() -> None:
    plot = plots.recall_at_k({"a": [0.5, 0.7, 0.9]}, probability={"a": [0.4, 0.6, 0.7, 0.7, 0.8], "_b": [0.3] * 5})
    check_promises(plot)
    left, right = plot.figure.axes
    assert left.get_xlabel() == "k nearest images"
    assert right.get_xlabel() == "k most probable classes"
    assert left.get_lines()[0].get_xydata().tolist() == [[1, 50], [5, 70], [10, 90]]
    assert right.get_lines()[1].get_ydata().tolist() == [30] * 5
    assert left.get_lines()[0].get_color() == right.get_lines()[0].get_color()
    assert [text.get_text() for text in plot.figure.legends[0].get_texts()] == ["a", "_b"]
    assert "another figure" in plot.caption
    check_promises(plots.recall_at_k({"only": [0.99, 1.0, 1.0, 1.0]}, [1, 10, 100, 1000]))
    check_promises(plots.recall_at_k(probability={"only": [1.0]}, probability_k=[1]))


@pytest.mark.parametrize("measure", ["distance", "similarity"])
def test_histogram_shares_add_up_and_the_threshold_is_judged(measure: str) -> None:
    rng = np.random.default_rng(0)
    same, different = rng.normal(0.4, 0.1, 500), rng.normal(0.9, 0.2, 5000)
    if measure == "similarity":
        same, different = 1 - same, 1 - different
    threshold = 0.6 if measure == "distance" else 0.4
    plot = plots.distance_histogram(same, different, threshold, measure=measure, axis_name="$d$ of pairs")
    check_promises(plot)
    missed = np.mean(same >= threshold if measure == "distance" else same <= threshold)
    passed = np.mean(different < threshold if measure == "distance" else different > threshold)
    assert f"wrong for {missed:.1%} of the same and {passed:.1%} of the different pairs" in plot.caption
    heights = [patch.get_data().values for patch in plot.figure.axes[0].patches]
    assert len(heights) == 5
    assert all(values.sum() == pytest.approx(100) for values in heights)


def test_histogram_of_one_value() -> None:
    check_promises(plots.distance_histogram([0.0, 0.0], [0.0], 0.5))
    check_promises(plots.distance_histogram([1e-12], [2e-12]))


def test_sample_efficiency_draws_means_spread_and_every_seed() -> None:
    scores = {"_x": [[0.5, 0.7], [0.8, np.nan], [np.nan, np.nan]], "$y$": [[0.4, 0.4], [0.5, 0.5], [0.6, 0.7]]}
    plot = plots.sample_efficiency([600, 6_000, 60_000], scores)
    check_promises(plot)
    axes = plot.figure.axes[0]
    np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), [[600, 60], [6000, 80]])
    np.testing.assert_allclose(axes.get_lines()[2].get_ydata(), [40, 50, 65])
    seeds = np.asarray(axes.get_lines()[1].get_ydata())
    np.testing.assert_allclose(seeds[~np.isnan(seeds)], [50, 70, 80])
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (50, 80)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["600", "6,000", "60,000"]
    check_promises(plots.sample_efficiency([100], {"alone": [[0.5]]}))
    crowded = plots.sample_efficiency([1000, 1001, 1002, 9000], {"a": np.full((4, 1), 0.5)})
    assert [label.get_text() for label in crowded.figure.axes[0].get_xticklabels()] == ["1,000", "", "", "9,000"]


def test_score_dots_and_paired_differences() -> None:
    scores = plots.score_dots({name or "x": [0.5, 0.6, np.nan] for name in AWKWARD})
    check_promises(scores)
    axes = scores.figure.axes[0]
    assert axes.get_lines()[0].get_xdata().tolist() == [50, 60]
    assert {text.get_text() for text in axes.texts} == {"55.00"}
    rows = [Difference(AWKWARD[0], AWKWARD[5], 0.0123, 0.004, 0.02), Difference("b", "_a", -0.01, -0.03, 0.01)]
    forest = plots.paired_differences(rows)
    check_promises(forest)
    axes = forest.figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["+1.23 [+0.40, +2.00]", f"{MINUS}1.00 [{MINUS}3.00, +1.00]"]
    assert axes.get_lines()[1].get_xdata() == pytest.approx([0.4, 2.0])
    assert axes.get_yticklabels()[1].get_text() == f"b {MINUS} _a"
    assert "95% bootstrap interval" in forest.caption
