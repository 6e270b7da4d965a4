"""The five reference systems on the real data, three seeds each, into docs/reference-systems.md with pictures.

    python benchmarks/reproduce.py --compare                            everything; hours on two cores, which should be idle
    python benchmarks/reproduce.py --recipes margin-plane --seeds 0     one system, one seed
    python benchmarks/reproduce.py --finished                            nothing new is trained; the page is of what there is
    python benchmarks/reproduce.py --runs /tmp/runs --docs /tmp/docs --set train.epochs=1 data.rows=3000    a trial

A finished run folder is used again and an interrupted one is gone on with, so the command may be broken off and repeated.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from systems import SYSTEMS, Figure, System, Values

import nearfar
from nearfar import runs, verbs
from nearfar.compare import compare
from nearfar.comparison_report import table
from nearfar.errors import InputError
from nearfar.files import read_json, write_bytes, write_text
from nearfar.measuring.judging import judge
from nearfar.recipe import Recipe, load_recipe, parse_changes
from nearfar.report import report
from nearfar.training.progress import ProgressLine

PAGE, IMAGES, STEPS, COMPARISON = "reference-systems.md", "images", "steps.json", "comparison"
Results = dict[int, Values]  # by seed

# System D's question: which loss does better, on how many images. Seconds, since five epochs of 1 % would be 25 steps.
COMPARED, FRACTIONS, SECONDS, SEEDS = ("fashion-contrastive", "fashion-cross-entropy"), (0.01, 0.1, 1.0), 40.0, 3

PICTURE_WIDTH, PICTURE_COLORS, PICTURE_BYTES = 720, 64, 1_400_000

# ---- running -------------------------------------------------------------------------------------------------------------


def run_system(system: System, seeds: Sequence[int], folder: Path, changes: Mapping[str, Any], finished: bool) -> Results:
    """Train and judge ``system`` with each seed, as far as that is not done yet; the first seed's run gets a report.

    With ``finished`` nothing is trained: seeds whose runs are not there are left out.
    """
    results: Results = {}
    for seed in seeds:
        run = folder / f"{system.recipe}-seed{seed}"
        if finished and not (run / runs.INDEX).is_dir():
            continue
        print(f"{system.recipe}, seed {seed}", file=sys.stderr, flush=True)
        train_once(system, seed, run, changes)
        if not results and not (run / "report.html").exists():
            report(run)
        elif not (run / runs.METRICS).exists():
            verbs.evaluate(run)
        results[seed] = values_of(system, run)
    return results


def train_once(system: System, seed: int, run: Path, changes: Mapping[str, Any]) -> None:
    """Leave a finished run in ``run``: the one that is there, the rest of one that was interrupted, or a new one.

    Raises:
        InputError: a run of other settings is there.
    """
    wanted = load_recipe(system.recipe, changes)
    started = (run / runs.CONFIG).exists()
    if started:
        config = runs.read_config(run)
        if (Recipe.from_dict(config["recipe"]).to_dict(), config["seed"]) != (wanted.to_dict(), seed):
            raise InputError(f"{run} was made with other settings than are asked for now; delete it, or choose other --runs")
        if config["state"] == "finished" and (run / runs.INDEX).is_dir():
            return
        if config["state"] == "finished":
            raise InputError(f"{run} was interrupted after training, before its index was whole; delete it")
    verbs.train(system.data, recipe=wanted, out=run, seed=seed, resume=started, watcher=ProgressLine())


def compare_losses(folder: Path, finished: bool) -> dict[str, Any] | None:
    """The comparison that answers system D's question; with ``finished`` None where it is not there as a whole."""
    result = folder / "comparison.json"
    if result.exists() and "verdicts" in (tree := read_json(result)):
        return tree
    if finished:
        return None
    print("the comparison of losses", file=sys.stderr, flush=True)
    return compare(
        "fashion-mnist",
        recipes=COMPARED,
        seeds=SEEDS,
        fractions=FRACTIONS,
        seconds=SECONDS,
        out=folder,
        resume=result.exists(),
        note=lambda line: print(line, file=sys.stderr, flush=True),
    )


def values_of(system: System, run: Path) -> Values:
    """All figures of a run by section and key, and how long it was trained."""
    tree = read_json(run / runs.METRICS)
    values = {
        f"{section}.{key}": float(value)
        for section, content in tree.items()
        if isinstance(content, dict)
        for key, value in content.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if system.extras:
        judged = judge(run)
        for extra in system.extras:
            values |= extra(judged)
    return values


# ---- writing -------------------------------------------------------------------------------------------------------------


def page(
    results: Mapping[str, Results],
    busy: Sequence[str],
    steps: Mapping[str, Mapping[str, Any]],
    changes: Mapping[str, Any],
    pictures: set[str],
    comparison: Mapping[str, Any] | None,
) -> str:
    """The whole document; every number of ours comes from ``results`` and, for single steps, from ``steps``.

    ``busy`` names the runs ("recipe:seed") whose times do not count, because something else ran on the machine.
    """
    done = [system for system in SYSTEMS if system.recipe in results]
    lines = ["# The reference systems", ""]
    lines += [
        "Five systems from the literature and from teaching, each a recipe that runs by one command, here made again by "
        "`make reproduce`. *Published* is the figure that "
        "the system's author gives, where there is one; *plain run* is what a straightforward program of the same description "
        "gave with one seed on two processor cores; *ours* is the median of so many seeds, on the official test images unless "
        "a line says otherwise; *goal* is what ours is to reach at least.",
        "",
        f"Made with nearfar {nearfar.__version__}, PyTorch {torch.__version__}, NumPy {np.__version__}, on {os.cpu_count()} "
        f"processor cores with {_count(torch.get_num_threads(), 'thread')}.",
        "",
    ]
    if changes:
        settings = ", ".join(f"`{key}={value}`" for key, value in changes.items())
        lines += [f"**A trial, not the systems as described:** {settings}. Times are not compared.", ""]
    lines += ["## Figures", "", "| | recipe | figure | published | plain run | ours | seeds | goal | reached |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for system in done:
        for figure in system.figures:
            lines.append(_figure_row(system, figure, _column(results[system.recipe], figure)))
    lines += ["", "## Time", "", "| | recipe | plain run | ours | times faster | goal | reached |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [_time_row(system, _seconds(system, results[system.recipe], busy), bool(changes)) for system in done]
    lines += [
        "",
        "Seconds of the whole training, with validation after every epoch and without reading data. The plain runs were made "
        "on a machine of the same kind at another time, and shared machines differ by half from hour to hour. Runs beside "
        "which something else ran are left out.",
        "",
    ]
    if steps:
        lines += [
            "Steps of both sides in turns in one process, by `python benchmarks/speed.py`, against plain programs of ours "
            "(`benchmarks/plain.py`: `Dataset`, `DataLoader`, stock layers, data in memory). They are not slowed down by "
            "anything, so they are faster than the plain runs above:",
            "",
            "| | recipe | plain step | our step | times faster | our arithmetic |",
            "|---|---|---|---|---|---|",
        ]
        for system in done:
            if row := steps.get(system.recipe):
                cells = [f"{1e3 * row['plain']:.2f} ms", f"{1e3 * row['ours']:.2f} ms", f"{row['times']:.1f}", row["precision"]]
                lines.append(f"| {' | '.join([system.letter, f'`{system.recipe}`', *cells])} |")
        lines.append("")
    for system in done:
        lines += _section(system, results[system.recipe], busy, pictures)
    return "\n".join(lines + _which_loss(comparison, pictures))


def _which_loss(tree: Mapping[str, Any] | None, pictures: set[str]) -> list[str]:
    """System D's question, and its answer where there is a comparison."""
    shares = ",".join(f"{share:g}" for share in FRACTIONS)
    lines = ["## Which loss does better?", ""]
    lines += [
        "System D asks whether cross-entropy or a pairwise loss does better, and with how many images. The figures above "
        "cannot say: they are of one training set. `nearfar compare` can, see [compare.md](compare.md):",
        "",
        "```bash",
        f"nearfar compare fashion-mnist --recipes {','.join(COMPARED)} --fractions {shares} "
        f"--seeds {SEEDS} --seconds {SECONDS:g}",
        "```",
        "",
    ]
    if tree is None:
        return lines
    head, *rows = table(dict(tree))
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    lines += ["Percent, mean ± standard deviation over the seeds, on the official test images. The same time for both:", ""]
    lines += [*(f"- {sentence}." for sentence in tree["verdicts"]), ""]
    name = f"{COMPARISON}-sample_efficiency.png"
    if name in pictures:
        about = "Accuracy by the number of training images, for both losses"
        lines += [f"![{about}]({IMAGES}/{name})", "", f"*{about}.*", ""]
    return lines


def _seconds(system: System, results: Results, busy: Sequence[str]) -> dict[int, float]:
    """Seconds of training by seed, of the runs that had the machine to themselves."""
    alone = [seed for seed in results if f"{system.recipe}:{seed}" not in busy]
    return {seed: results[seed]["timing.train_seconds"] for seed in alone}


def _section(system: System, results: Results, busy: Sequence[str], pictures: set[str]) -> list[str]:
    lines = [f"## {system.letter}. {system.recipe}", "", system.about, ""]
    lines += ["```bash", f"nearfar train {system.data} --recipe {system.recipe} --out runs/{system.recipe}", "```", ""]
    lines += [f"| figure | {' | '.join(f'seed {seed}' for seed in results)} | median |", "|---|" + "---|" * (len(results) + 1)]
    for figure in system.figures:
        column = _column(results, figure)
        middle = statistics.median(column)
        lines.append(f"| {figure.name} | {' | '.join(figure.text(value) for value in column)} | {figure.text(middle)} |")
    times = _seconds(system, results, busy)
    if times:
        cells = [f"{times[seed]:.1f}" if seed in times else "" for seed in results]
        lines.append(f"| seconds of training | {' | '.join(cells)} | {statistics.median(times.values()):.1f} |")
    lines += ["", "Where ours differs, and why:", ""]
    lines += [f"- {sentence}" for figure in system.figures if (sentence := _difference(figure, _column(results, figure)))]
    lines += [f"- {system.why}", ""]
    for name, caption in system.pictures:
        if (file := f"{system.recipe}-{name}.png") in pictures:
            lines += [f"![{system.recipe}: {caption}]({IMAGES}/{file})", "", f"*{caption}.*", ""]
    return lines


def _difference(figure: Figure, column: list[float]) -> str:
    """Ours against the plain run, or the published figure, measured by how far our own seeds lie apart."""
    against, whose = (figure.plain, "the plain run") if figure.plain is not None else (figure.published, "the published figure")
    if against is None:
        return ""
    middle, low, high = statistics.median(column), min(column), max(column)
    gap = middle - against
    better = "better" if (gap < 0) == figure.less_is_better else "worse"
    size = f"{100 * abs(gap):.2f} points" if figure.percent else f"{abs(gap):.4f}"
    shown = f"{figure.name}: {figure.text(middle)}, with {whose} at {figure.text(against)}"
    if len(column) == 1:
        return f"{shown}; {size} {better}, by one seed."
    if low <= against <= high:
        return f"{shown}; it lies among our own seeds, {figure.text(low)} to {figure.text(high)}, so there is no difference."
    apart = f"more than our seeds differ ({figure.text(low)} to {figure.text(high)})"
    if abs(gap) <= high - low:
        apart = f"about as much as our seeds differ ({figure.text(low)} to {figure.text(high)})"
    return f"{shown}; {size} {better}, {apart}."


def _figure_row(system: System, figure: Figure, column: list[float]) -> str:
    ours = statistics.median(column)
    reached = "" if figure.least is None else "yes" if (ours >= figure.least) != figure.less_is_better else "**no**"
    cells = [system.letter, f"`{system.recipe}`", figure.name]
    cells += [figure.text(value) for value in (figure.published, figure.plain, ours)]
    cells += [str(len(column)), figure.text(figure.least)]
    return "| " + " | ".join([*cells, reached]) + " |"


def _time_row(system: System, seconds: Mapping[int, float], trial: bool) -> str:
    cells = [system.letter, f"`{system.recipe}`", f"{system.plain_seconds:,.0f} s"]
    if not seconds:
        return "| " + " | ".join([*cells, "not measured", "", f"{system.times_faster:g}", ""]) + " |"
    ours = statistics.median(seconds.values())
    times = system.plain_seconds / ours
    verdict = ["", f"{system.times_faster:g}", ""]
    if not trial:
        verdict = [f"{times:.2f}", f"{system.times_faster:g}", "yes" if times >= system.times_faster else "**no**"]
    return "| " + " | ".join([*cells, f"{ours:,.1f} s", *verdict]) + " |"


def _column(results: Results, figure: Figure) -> list[float]:
    return [values[figure.key] for values in results.values()]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def write_pictures(shown: Mapping[System, int], folder: Path, docs: Path) -> set[str]:
    """Small copies of the reports' plots into ``docs``/images, all together below `PICTURE_BYTES`; returns their names."""
    from PIL import Image

    found = {
        f"{system.recipe}-{name}.png": folder / f"{system.recipe}-seed{seed}" / runs.PLOTS / f"{name}.png"
        for system, seed in shown.items()
        for name, _ in system.pictures
    }
    found[f"{COMPARISON}-sample_efficiency.png"] = folder / COMPARISON / "plots" / "sample_efficiency.png"
    found = {name: path for name, path in found.items() if path.exists()}
    width, copies = float(PICTURE_WIDTH), dict[str, bytes]()
    while not copies or sum(map(len, copies.values())) > PICTURE_BYTES:
        for name, path in found.items():
            with Image.open(path) as picture:
                size = (round(width), round(width * picture.height / picture.width))
                small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(PICTURE_COLORS)
            buffer = io.BytesIO()
            small.save(buffer, format="PNG", optimize=True)
            copies[name] = buffer.getvalue()
        if not found:
            break
        width *= 0.85
    for name, content in copies.items():
        write_bytes(docs / IMAGES / name, content)
    return set(copies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [system.recipe for system in SYSTEMS]
    parser.add_argument("--recipes", nargs="+", default=names, choices=names, help="which systems; all without it")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--compare", action="store_true", help="also compare the losses of system D, some 15 minutes")
    parser.add_argument("--finished", action="store_true", help="train nothing, write what there is")
    parser.add_argument("--busy", nargs="+", default=[], metavar="RECIPE:SEED", help="runs beside which something else ran")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="where the run folders are")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the page and its pictures go")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the recipes, for a trial")
    options = parser.parse_args()
    try:
        changes = parse_changes(options.set)
        systems = [system for system in SYSTEMS if system.recipe in options.recipes]
        results = {one.recipe: run_system(one, options.seeds, options.runs, changes, options.finished) for one in systems}
        results = {recipe: found for recipe, found in results.items() if found}
        comparison = None if changes else compare_losses(options.runs / COMPARISON, options.finished or not options.compare)
        shown = {one: next(iter(results[one.recipe])) for one in systems if one.recipe in results}
        pictures = write_pictures(shown, options.runs, options.docs)
        steps = read_json(options.runs / STEPS) if (options.runs / STEPS).exists() else {}
        write_text(options.docs / PAGE, page(results, options.busy, steps, changes, pictures, comparison))
    except InputError as error:
        sys.exit(f"reproduce: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")
    print(options.docs / PAGE)


if __name__ == "__main__":
    main()
