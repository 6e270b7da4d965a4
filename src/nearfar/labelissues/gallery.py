"""The gallery: each suspicious image beside its nearest neighbours, as one HTML file that fetches nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearfar import __version__
from nearfar.report.markup import name, text, thumbnail

LIMIT = 3_000_000  # bytes of the page
MOST = 200  # images, and groups of copies, that are shown
_STYLE = Path(__file__).with_name("gallery.css")
_FRAME = 20_000  # bytes that are enough for the page without pictures
_LONGEST = 60  # letters of a label in a sentence

Shown = tuple[Any, str, str]  # uint8 [C, H, W], id, label


@dataclass(frozen=True)
class Card:
    """An image whose label is likely wrong, and its nearest neighbours."""

    image: Any  # uint8 [C, H, W]
    id: str
    given: str
    suggested: str
    score: float
    votes: Mapping[str, int]
    near: list[Shown]


def render(
    cards: Iterable[Card], groups: Iterable[tuple[float, list[Shown]]], *, likely: int, images: int, source: str, how: str
) -> tuple[str, int]:
    """The page, and how many of the ``cards`` it has room for: ``MOST``, in less than ``LIMIT`` bytes.

    Args:
        cards: the worst first.
        groups: copies with different labels, and how much alike they are.
        likely: how many cards there are.
        images: how many images were judged.
        source: what they are.
        how: in which embedding.
    """
    copies = _fill((_group(*group) for group in groups), LIMIT // 3)
    shown = _fill(map(_card, cards), LIMIT - sum(map(len, copies)) - _FRAME)
    rest = "" if len(shown) == likely else f" These are the {len(shown):,} most suspicious; the table issues.csv has all."
    none = "<p>None: no label is contradicted as clearly as that.</p>"
    parts = [
        "<h2>Labels that are likely wrong</h2>",
        f"<p>First the image, with its given and the suggested label, then its nearest neighbours and theirs.{rest}</p>",
        f"<ol>\n{chr(10).join(shown)}\n</ol>" if shown else none,
    ]
    if copies:
        parts += [
            "<h2>Copies with different labels</h2>",
            "<p>The same picture, or nearly, under several labels: at least one is wrong, or the picture fits both.</p>",
            f"<ol>\n{chr(10).join(copies)}\n</ol>",
        ]
    body = "\n".join(parts)
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="nearfar {text(__version__)}">
<title>{text(source)}: labels to look at</title>
<style>
{_STYLE.read_text()}</style>
</head>
<body>
<h1>{name(source)}: labels to look at</h1>
<p>{images:,} images were judged by their neighbours in {text(how)}; {likely:,} labels are likely wrong. The score is near 0
where the neighbours surely contradict the label, 0.1 where another label fits nine times as well, 0.5 where both fit alike.
Look before you change a label: the image may be unusual, not mislabelled.</p>
{body}
</body>
</html>
"""
    return page, len(shown)


def _fill(parts: Iterable[str], room: int) -> list[str]:
    """The first of ``parts`` that fit into ``room`` bytes, ``MOST`` at most."""
    taken: list[str] = []
    for part in parts:
        size = len(part.encode()) + 1
        if size > room or len(taken) == MOST:
            break
        taken.append(part)
        room -= size
    return taken


def _card(card: Card) -> str:
    voted = ", ".join(f"{count:,} for {name(label)}" for label, count in list(card.votes.items())[:4])
    near = "".join(_small(image, key, label, "suggested" if label == card.suggested else "") for image, key, label in card.near)
    return (
        f'<li class="card"><div class="said">{thumbnail(card.image, f"{card.id}, labelled {card.given}")}<div>'
        f'labelled <span class="given">{_short(card.given)}</span>, '
        f'rather <span class="suggested">{_short(card.suggested)}</span>'
        f"<small>{name(card.id)}</small><small>score {card.score:.3g}; neighbours: {voted}</small></div></div>"
        f'<div class="near">{near}</div></li>'
    )


def _group(likeness: float, shown: list[Shown]) -> str:
    alike = "all pixels equal" if likeness == 1.0 else f"correlation of the pixels {likeness:.4f}"
    few = "".join(_small(image, key, label, "") for image, key, label in shown[:8])
    more = f"<small>and {len(shown) - 8:,} more</small>" if len(shown) > 8 else ""
    return f'<li><small>{alike}</small><div class="near">{few}</div>{more}</li>'


def _small(image: Any, key: str, label: str, kind: str) -> str:
    shown = f'<span class="{kind}">{_short(label)}</span>' if kind else _short(label)
    drawn = thumbnail(image, f"{key}, labelled {label}")
    return f"<figure>{drawn}<figcaption>{shown}<small>{name(key)}</small></figcaption></figure>"


def _short(label: str) -> str:
    return name(label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}")
