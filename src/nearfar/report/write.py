"""The verb: judge a run, measure it, draw it, and leave ``report.html``, ``plots/``, ``metrics.json`` and the model card."""

from __future__ import annotations

import datetime
import shlex
import time
from pathlib import Path
from typing import Any

from nearfar import runs
from nearfar.data import ImageSet
from nearfar.encoders.summary import summary
from nearfar.errors import InputError
from nearfar.files import explain_os_errors, write_bytes, write_json, write_text
from nearfar.inference import find_device
from nearfar.measuring.certainty import keep_calibration
from nearfar.measuring.figures import beside_it, figures
from nearfar.measuring.judging import Judged, Source, gallery_or_reason, judge
from nearfar.measuring.unlabelled import figures_of_views, look_for_views
from nearfar.report import unlabelled
from nearfar.report.gather import Answers, answer
from nearfar.report.page import Content, Mistake, render
from nearfar.report.pictures import GROUPS, MISTAKES, Album, draw_plots
from nearfar.runs.card import write_card
from nearfar.runs.reproduce import machine

REPORT = "report.html"


def report(
    run: str | Path,
    data: Source | None = None,
    *,
    baseline: str | None = None,
    device: str = "auto",
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Measure a run and leave a report of it in its folder.

    Written are ``metrics.json`` and the model card as `nearfar.measuring.figures.evaluate` writes them; every plot that fits
    the run in ``plots/``, as PNG and SVG; and ``report.html``, one page of less than 5 MB that loads nothing. Plots of an
    earlier report that no longer fit are removed, all else in the folder is left as it is. Nothing is written before all is
    computed.

    Args:
        run: the run folder.
        data: name, path or `ImageSet` to judge the run by; None: what it was trained on. See `nearfar.measuring.judging.judge`.
        baseline: another run folder, or a model of timm, to stand beside; None: none does.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read instead of refusing.

    Returns:
        ``run``, ``report`` (the page), ``plots`` (names), ``left_out`` (why there are no others, by name), ``bytes`` (of the
        page), ``seconds`` and ``figures`` (the tree of ``metrics.json``).

    Raises:
        InputError: the run or the data cannot be used, or the folder cannot be written to.
    """
    clock = _Clock()
    other = beside_it(baseline, device)
    judged = judge(run, data, device=device, skip_bad=skip_bad)
    clock.lap("reading and embedding")
    gallery = gallery_or_reason(judged, skip_bad=skip_bad)
    wrong, mistakes = 0, list[Mistake]()
    if judged.told:
        tree = figures(judged, other=other, skip_bad=skip_bad)
        clock.lap("figures, copies and baselines")
        answers = answer(judged, tree["classification"]["k"])
        drawn = draw_plots(judged, tree, answers, gallery)
        wrong, mistakes = int((answers.predicted != judged.labels).sum()), _mistakes(judged, answers, gallery)
    else:
        found = look_for_views(judged)
        tree = figures_of_views(judged, found, other)
        clock.lap("views, figures, copies and baselines")
        drawn = unlabelled.draw_plots(judged, tree, found, gallery)
    album = Album(drawn.plots, {**tree.get("left_out", {}), **drawn.left_out}, drawn.files)
    clock.lap("plots")

    where = find_device(device)
    content = Content(
        folder=judged.folder.resolve().name,
        config=judged.config,
        figures=tree,
        summary=summary(judged.model.encoder_, (judged.model.channels_, *judged.model.size_)),
        wrong=wrong,
        mistakes=mistakes,
        album=album,
        machine=machine(where),
        seconds=dict(clock.laps),
        made=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=_command(judged, data),
    )
    page = render(content, {name: png for name, (png, _) in album.files.items()})
    folder = judged.folder
    keep_calibration(judged, tree)
    write_json(folder / runs.METRICS, tree)
    write_card(folder)
    for name, (png, svg) in album.files.items():
        write_bytes(folder / runs.PLOTS / f"{name}.png", png)
        write_text(folder / runs.PLOTS / f"{name}.svg", svg)
    _remove_others(folder / runs.PLOTS, set(album.files))
    write_text(folder / REPORT, page)
    return {
        "run": str(folder),
        "report": str(folder / REPORT),
        "plots": list(album.files),
        "left_out": album.left_out,
        "bytes": len(page.encode()),
        "seconds": round(clock.total(), 3),
        "figures": tree,
    }


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._first = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now

    def total(self) -> float:
        return time.perf_counter() - self._first


def _mistakes(judged: Judged, answers: Answers, gallery: ImageSet | InputError) -> list[Mistake]:
    rows = answers.worst(judged.labels, MISTAKES)
    near = answers.nearest_of_predicted(rows)
    images = judged.queries.images[rows]
    there = not isinstance(gallery, InputError)
    found = gallery.images[near] if isinstance(gallery, ImageSet) else [None] * len(rows)
    names = judged.queries.ids.tolist() if judged.same else judged.index.names["images"]
    return [
        Mistake(
            image=images[at],
            id=str(judged.queries.ids[row]),
            label=judged.classes[judged.labels[row]],
            predicted=judged.classes[answers.predicted[row]],
            votes=float(answers.votes[row]),
            nearest=found[at],
            nearest_id=names[near[at]] if there else None,
        )
        for at, row in enumerate(rows.tolist())
    ]


def _command(judged: Judged, data: Source | None) -> str:
    words = ["nearfar", "report", judged.folder.resolve().name]
    if data is not None:
        words.append(judged.source)
    return shlex.join(" ".join(word.split()) for word in words)


def _remove_others(folder: Path, names: set[str]) -> None:
    """Remove the files of plots that a report makes but this one did not; files of other names are somebody else's."""
    for name in {name for group in GROUPS.values() for name in group} - names:
        for ending in ("png", "svg"):
            with explain_os_errors(folder):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
