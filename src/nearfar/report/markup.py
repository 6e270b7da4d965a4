"""HTML by hand: text made safe, tables that scroll on a narrow screen, pictures inside the page. Knows nothing of runs."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.plots.style import printable

THUMBNAIL = 96  # pixels along the longer edge of a small picture; the page shows it at no more


def text(value: Any) -> str:
    """``value`` as text that is shown as it stands, whatever it holds; safe between tags and inside quoted attributes."""
    return html.escape(printable(str(value)), quote=True)


def name(value: Any) -> str:
    """A name that others chose: as ``text``, kept from turning the direction of what stands around it."""
    return f"<bdi>{text(value)}</bdi>"


def code(value: Any) -> str:
    """A short piece of code or a path in a line of text."""
    return f"<code>{text(value)}</code>"


def block(value: str, label: str, kind: str = "") -> str:
    """Lines of code as they are, with a label for those who do not see them and a class for the style sheet."""
    lines = "\n".join(text(line) for line in value.rstrip("\n").split("\n"))
    return f'<pre{_class(kind)} tabindex="0" role="region" aria-label="{text(label)}"><code>{lines}</code></pre>'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table with a heading for each column and each row; ``caption``, ``head`` and the cells are HTML already.

    Args:
        caption: what it shows.
        head: of the columns.
        rows: of each row the heading, then the cells.
        kind: a class for the style sheet.
    """
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table{_class(kind)}>\n<caption><span>{caption}</span></caption>\n'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and what belongs to them; the latter are HTML already."""
    return "<dl>\n" + "\n".join(f"<div><dt>{text(key)}</dt><dd>{value}</dd></div>" for key, value in pairs) + "\n</dl>"


def picture(png: bytes, alt: str, size: tuple[int, int], kind: str = "") -> str:
    """A PNG inside the page.

    Args:
        png: the file.
        alt: what it shows, for those who do not see it.
        size: width and height at which it is laid out, in CSS pixels.
        kind: a class for the style sheet.
    """
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return f'<img{_class(kind)} src="{source}" alt="{text(alt)}" width="{size[0]}" height="{size[1]}">'


def thumbnail(image: npt.NDArray[np.uint8], alt: str) -> str:
    """A small picture of ``image`` uint8 [C, H, W]; what is smaller than it shows its pixels."""
    from PIL import Image

    drawn = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(np.moveaxis(image, 0, -1)))
    drawn.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    buffer = io.BytesIO()
    drawn.save(buffer, format="PNG", optimize=True)
    scale = THUMBNAIL / max(drawn.size)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    return picture(buffer.getvalue(), alt, size, "pixels")


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
