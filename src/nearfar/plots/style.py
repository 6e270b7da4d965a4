"""How every plot looks: width, fonts, colours that colour-blind readers tell apart, and class names made safe to draw.

Knows nothing of what is plotted. Matplotlib is imported inside the functions, and never through pyplot: a figure here
belongs to whoever holds it, and no global list of open figures grows.
"""

from __future__ import annotations

import colorsys
import contextlib
import functools
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

WIDTH = 7.0  # inches: the text width of a page
FONT = 9.0  # points
SMALL = 7.5  # points: legends, and the lines under pictures
SMALLEST = 5.5  # points: numbers in matrix cells; what would be smaller is left out
LEGEND_LIMIT = 20  # classes; beyond, colours can no longer be told apart by name

RIGHT = "#009E73"  # green, clearly lighter than the red, so that the two differ even without hue
WRONG = "#A81E2B"  # red
INK = "#222222"
MUTED = "#6B6B6B"
PALE = "#E4E4E4"

# The ten colours of seaborn's "colorblind" palette, an extension of Okabe and Ito (2008).
_TEN = ("#0173B2", "#DE8F05", "#029E73", "#D55E00", "#CC78BC", "#CA9161", "#FBAFE4", "#949494", "#ECE133", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")

# Families with letters that DejaVu Sans lacks, tried in this order where they are installed.
_WIDER_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "PingFang SC",
    "Yu Gothic",
    "Microsoft YaHei",
    "Malgun Gothic",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans Symbols2",
)
_UNPRINTABLE = ("Cc", "Cn", "Cs", "Zl", "Zp")
_BLANK = "(blank)"
_MISSING = "\N{WHITE SQUARE}"
_STYLE_LOCK = threading.RLock()


@contextlib.contextmanager
def plot_style() -> Iterator[None]:
    """Matplotlib's defaults with the settings below, whatever the user's settings file says; undone afterwards."""
    import matplotlib.style
    from cycler import cycler

    settings: dict[str, Any] = {
        "font.family": list(_families()),
        "font.size": FONT,
        "axes.titlesize": FONT,
        "axes.labelsize": FONT,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "legend.fontsize": SMALL,
        "legend.frameon": False,
        "figure.dpi": 150,
        "text.hinting": "no_hinting",  # letters as wide at every resolution: what fits in one file fits in all
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.6,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "grid.color": PALE,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=list(_TEN)),
        "lines.linewidth": 1.4,
        "text.parse_math": False,  # a "$" in a class name is a dollar sign
        "axes.formatter.use_mathtext": False,
        "svg.fonttype": "path",  # drawn letters: the file looks the same where the font is missing
    }
    with _STYLE_LOCK, matplotlib.style.context(["default", settings]):
        yield


def new_figure(width: float = WIDTH, height: float = 4.0) -> Figure:
    """An empty figure of ``width`` x ``height`` inches that lays itself out; call it inside ``plot_style()``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    FigureCanvasAgg(figure)
    return figure


def class_colors(count: int) -> list[str]:
    """``count`` colours "#RRGGBB": colour-blind safe up to 10, each hue light and dark up to 20, then just different."""
    if count <= len(_TEN):
        return list(_TEN[:count])
    if count <= 2 * len(_TEN):
        return [*_TEN, *(_darker(color) for color in _TEN)][:count]
    colors = []
    for number in range(count):  # golden-ratio steps around the hues keep classes of neighbouring number apart
        red, green, blue = colorsys.hls_to_rgb(number * 0.618034 % 1.0, (0.32, 0.47, 0.62)[number % 3], 0.65)
        colors.append(f"#{round(red * 255):02X}{round(green * 255):02X}{round(blue * 255):02X}")
    return colors


def _darker(color: str) -> str:
    return "#" + "".join(f"{round(int(color[at : at + 2], 16) * 0.55):02X}" for at in (1, 3, 5))


def clean(text: object, limit: int = 24) -> str:
    """``text`` fit to be drawn on one line: at most ``limit`` characters, with its beginning and its end kept.

    Control characters become spaces, a letter that no installed font has becomes a square, which is what a reader
    would see anyhow, without a warning per letter, and a text with nothing to be seen becomes "(blank)".
    """
    known = _known_letters()
    letters = []
    for letter in unicodedata.normalize("NFC", printable(str(text))):
        if unicodedata.category(letter) != "Cf":  # invisible joiners and direction marks have no glyph to miss
            letters.append(letter if letter == " " or ord(letter) in known else _MISSING)
    return shorten(" ".join("".join(letters).split()) or _BLANK, limit)


def printable(text: str) -> str:
    """``text`` with a space for every control character, line end and broken letter: one line that any file can hold."""
    return "".join(" " if unicodedata.category(letter) in _UNPRINTABLE else letter for letter in text)


def shorten(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` characters; an ellipsis stands for what was cut out of its middle."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 3
    return text[: limit - 1 - tail] + "\N{HORIZONTAL ELLIPSIS}" + (text[-tail:] if tail else "")


def text_width(text: str, size: float) -> float:
    """Width in inches of ``text`` drawn at ``size`` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    if not text:
        return 0.0
    font = FontProperties(family=list(_families()), size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72.0


def fit(text: object, inches: float, size: float) -> str:
    """``text`` cleaned and shortened until it is at most ``inches`` wide at ``size`` points."""
    whole = clean(text, limit=200)
    short, limit = whole, len(whole)
    while limit > 1 and text_width(short, size) > inches:
        limit -= 1
        short = shorten(whole, limit)
    return short


def add_legend(target: Axes | Figure, handles: Sequence[Any], names: Sequence[str], **options: Any) -> Legend:
    """A legend with ``names`` as they are: Matplotlib itself would drop every name that begins with an underscore."""
    legend = target.legend(list(handles), [str(number) for number in range(len(names))], **options)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
    return legend


def name_ticks(axes: Axes, axis: str, names: Sequence[str], inches: float, limit: int = 18) -> None:
    """Write class names at 0, 1, 2, ... along ``axis`` ("x" or "y") of ``inches`` length, as many as can be read."""
    most = max(2, int(inches / 0.15))  # a line of 7.5-point text, and some air
    step = -(-len(names) // most)
    shown = list(range(0, len(names), step))
    texts = [clean(names[number], limit) for number in shown]
    if axis == "y":
        axes.set_yticks(shown, labels=texts)
        return
    widest = max((text_width(text, SMALL) for text in texts), default=0.0)
    if widest <= 0.9 * inches / len(shown):
        axes.set_xticks(shown, labels=texts)
    else:
        axes.set_xticks(shown, labels=texts, rotation=90)


@functools.cache
def _families() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ("DejaVu Sans", *(name for name in _WIDER_FONTS if name in installed))


@functools.cache
def _known_letters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known: set[int] = set()
    for family in _families():
        known.update(get_font(findfont(FontProperties(family=[family]))).get_charmap())
    return frozenset(known)
