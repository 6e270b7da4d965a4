"""The plot as a thing: bytes that do not change, files written whole, and nothing of Matplotlib's state touched."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from plots.plot_samples import recorded_texts

from nearfar.errors import InputError
from nearfar.plots import Plot, confusion_matrix, loss_by_epoch, save, scatter_map, score_dots
from nearfar.plots.style import class_colors, clean, fit, plot_style, printable, shorten, text_width


def small_plot() -> Plot:
    return score_dots({"one_two": [0.91, 0.93], "$x$": [0.88, 0.9]})


def test_the_same_data_gives_the_same_bytes() -> None:
    first, second = small_plot(), small_plot()
    png, svg = first.png_bytes(), first.svg_text()
    assert second.svg_text() == svg  # other order: neither moves anything
    assert second.png_bytes() == png
    assert first.png_bytes() == png
    assert "<dc:date>" not in svg


def test_another_process_gives_the_same_bytes_without_pyplot_or_early_imports() -> None:
    code = (
        "import sys, hashlib, nearfar.plots as p\n"
        "assert not {'matplotlib', 'sklearn', 'seaborn', 'scipy', 'pyarrow', 'torch', 'PIL'} & set(sys.modules)\n"
        "plot = p.score_dots({'one_two': [0.91, 0.93], '$x$': [0.88, 0.9]})\n"
        "print(hashlib.sha256(plot.png_bytes() + plot.svg_text().encode()).hexdigest())\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    plot = small_plot()
    assert run.stdout.strip() == hashlib.sha256(plot.png_bytes() + plot.svg_text().encode()).hexdigest()


def test_save_writes_both_files_at_150_dpi(tmp_path: Path) -> None:
    plot = confusion_matrix([[5, 1], [0, 4]], ["cat", "dog"])
    paths = save(plot, tmp_path / "new" / "plots")
    assert [path.name for path in paths] == ["confusion.png", "confusion.svg"]
    with Image.open(paths[0]) as picture:
        assert picture.size == (1050, 900)
    assert ElementTree.parse(paths[1]).getroot().attrib["width"] == "504pt"
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["confusion.png", "confusion.svg"]


def test_a_folder_that_is_a_file_is_said_in_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(InputError, match=r"cannot write .*file"):
        save(small_plot(), blocked)


@pytest.mark.parametrize("name", ["", "Loss", "a/b", "../x", "a b", "-x"])
def test_a_name_must_be_a_plain_file_name(name: str) -> None:
    with pytest.raises(InputError, match="lower-case letters"):
        score_dots({"a": [0.5]}, name=name)


@pytest.mark.parametrize("dpi", [0, 9, 5000, float("nan")])
def test_dpi_must_be_sensible(dpi: float) -> None:
    with pytest.raises(InputError, match="dpi"):
        small_plot().png_bytes(dpi)


def test_settings_of_the_user_neither_matter_nor_change() -> None:
    plain = small_plot().png_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 20, "text.usetex": False}):
        before = dict(matplotlib.rcParams)
        assert small_plot().png_bytes() == plain
        assert dict(matplotlib.rcParams) == before


def test_plots_may_be_made_in_several_threads() -> None:
    expected = small_plot().png_bytes()
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(small_plot().png_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 3


def test_many_points_do_not_make_a_large_svg() -> None:
    rng = np.random.default_rng(0)
    plot = scatter_map(rng.normal(size=(30_000, 2)), rng.integers(0, 10, 30_000), [str(digit) for digit in range(10)])
    assert len(plot.svg_text()) < 1_500_000
    assert plot.svg_text().count("<use") < 400  # letters and ticks, not thirty thousand dots
    few = scatter_map(rng.normal(size=(300, 2)), rng.integers(0, 10, 300), [str(digit) for digit in range(10)])
    assert few.svg_text().count("<use") >= 300


def test_svg_of_awkward_names_parses_and_carries_the_description() -> None:
    plot = loss_by_epoch([0.5, 0.25])
    assert plot.alt in plot.svg_text()
    odd = score_dots({"a & b < c --> \x00\ud800 $": [0.5]})
    text = odd.svg_text()
    assert ElementTree.fromstring(text) is not None
    assert "a &amp; b &lt; c --&gt;" in text


def test_class_names_are_never_read_as_formulas() -> None:
    names = ["$\\frac{$", "$a_b_c^d^e$", "100 $"]  # the first two are no valid formulas and would raise
    plot = confusion_matrix(np.eye(3), names)
    assert plot.svg_text()
    assert not any(text.get_parse_math() for text in plot.figure.findobj(Text) if text.get_text())
    assert [label.get_text() for label in plot.figure.axes[0].get_yticklabels()] == names


def test_texts_take_the_same_room_at_every_resolution() -> None:
    plot = score_dots({"fashion-cross-entropy, a long one": [0.5, 0.51], "short": [0.6]})
    boxes = []
    for dpi in (60, 100, 150, 300):
        with recorded_texts() as texts:
            plot.png_bytes(dpi)
        boxes.append({text: box for text, box in texts})
    for text, box in boxes[-1].items():
        for other in boxes[:-1]:
            assert other[text][2] - other[text][0] == pytest.approx(box[2] - box[0], abs=0.004), text


def test_colours_are_distinct_and_repeatable() -> None:
    for count in (1, 2, 10, 20, 21, 1000):
        colors = class_colors(count)
        assert len(colors) == count
        assert colors == class_colors(count)
        assert all(len(color) == 7 and int(color[1:], 16) >= 0 for color in colors)
    assert len(set(class_colors(20))) == 20
    assert len(set(class_colors(60))) == 60


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", "cat"),
        ("$5_x", "$5_x"),
        ("a\tb\n\nc", "a b c"),
        ("", "(blank)"),
        (" \n", "(blank)"),
        ("\u200d", "(blank)"),
        ("e\u0301", "é"),
        ("\U000f0000", "□"),
        ("abcdefghij" * 3, "abcdefghijabcdef…defghij"),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_shortened_texts_keep_both_ends_and_the_limit() -> None:
    for limit in range(1, 12):
        assert len(shorten("0123456789", limit)) == min(limit, 10)
    assert shorten("0123456789", 7) == "0123…89"
    assert shorten("0123456789", 10) == "0123456789"


def test_fit_stays_within_the_width() -> None:
    for inches in (0.2, 0.5, 1.0):
        short = fit("a rather long class name", inches, 7.5)
        assert text_width(short, 7.5) <= inches
    assert fit("cat", 1.0, 7.5) == "cat"
    assert len(fit("cat", 0.0, 7.5)) == 1


def test_text_width_is_what_is_drawn() -> None:
    plot = small_plot()
    with plot_style():
        text = plot.figure.text(0.5, 0.5, "a rather long name", fontsize=7.5)
        drawn = text.get_window_extent(plot.figure.canvas.get_renderer()).width / plot.figure.dpi
    assert text_width("a rather long name", 7.5) == pytest.approx(drawn, rel=0.03)


def test_printable_keeps_letters() -> None:
    assert printable("aé日\x00\ud800\u2028b") == "aé日   b"
