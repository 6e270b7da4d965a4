"""What a finished comparison says: means and spreads, paired differences, sentences, plots, and the README of its folder.

Knows the tree of ``comparison.json`` and each query's values; nothing of images, recipes or training.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.evaluation.bootstrap import LEVEL
from nearfar.evaluation.paired import paired_differences
from nearfar.files import write_json, write_text
from nearfar.measuring.text import in_epochs

FIGURES = ("accuracy", "one_nn_accuracy", "recall@1", "map@r")
TITLES = {"accuracy": "k-NN accuracy", "one_nn_accuracy": "1-NN accuracy", "recall@1": "recall@1", "map@r": "MAP@R"}
SAMPLES = 2000  # of the bootstrap
README, PLOTS = "README.md", "plots"
_LEVEL = f"{100 * LEVEL:g} %"

Tree = dict[str, Any]
Load = Callable[[Path], dict[str, npt.NDArray[Any]]]


def finish(folder: Path, tree: Tree, load: Load) -> Tree:
    """Add summary, differences and verdicts to ``tree`` and write it, the plots and the README into ``folder``.

    Args:
        folder: of the comparison.
        tree: with all trainings.
        load: reads the values of a training's queries from its file.

    Raises:
        InputError: no training could be run, or a file of values is damaged.
    """
    done = [entry for entry in tree["trainings"] if "error" not in entry]
    if not done:
        raise InputError(f"no training of the comparison could be run; the first: {tree['trainings'][0]['error']}")
    tree = {**tree, "summary": summarize(done), "differences": differences(folder, done, tree["settings"], load)}
    tree["verdicts"] = [verdict(row) for row in tree["differences"] if row["figure"] == "accuracy"]
    write_json(folder / "comparison.json", tree)
    write_text(folder / README, readme(tree, draw(folder / PLOTS, tree)))
    return tree


def summarize(done: Sequence[Mapping[str, Any]]) -> list[Tree]:
    """Mean, sample standard deviation (None of one seed), least and greatest of each figure, by share and recipe."""
    rows = []
    for (fraction, recipe), entries in _by_share_and_recipe(done).items():
        row: Tree = {"fraction": fraction, "recipe": recipe, "images": entries[0]["images"], "seeds": len(entries)}
        row |= {key: entries[0][key] for key in ("epochs", "k")}
        for key in (*FIGURES, "train_seconds"):
            values = [entry[key] for entry in entries]
            spread = statistics.stdev(values) if len(values) > 1 else None
            row[key] = {"mean": statistics.fmean(values), "std": spread, "min": min(values), "max": max(values)}
        rows.append(row)
    return rows


def differences(folder: Path, done: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], load: Load) -> list[Tree]:
    """Every pair of recipes on every share, by figure: see `nearfar.evaluation.paired.paired_differences`."""
    rows: list[Tree] = []
    groups = _by_share_and_recipe(done)
    for fraction in settings["fractions"]:
        names = [name for name in settings["recipes"] if (fraction, name) in groups]
        files = {(name, one["seed"]): load(folder / one["queries"]) for name in names for one in groups[fraction, name]}
        for figure in FIGURES if len(names) > 1 else ():
            count = len(next(iter(files.values()))[figure])
            tables = {name: np.full((len(settings["seeds"]), count), np.nan) for name in names}
            for (name, seed), values in files.items():
                if values[figure].shape != (count,):
                    raise InputError(f"the trainings in {folder} were judged on different test images; start a new comparison")
                tables[name][seed] = values[figure]
            for (first, second), found in paired_differences(tables, samples=SAMPLES).items():
                about = {"fraction": fraction, "images": groups[fraction, first][0]["images"], "figure": figure}
                rows.append({**about, "first": first, "second": second, **found._asdict(), "by_seed": list(found.by_seed)})
    return rows


def verdict(row: Mapping[str, Any]) -> str:
    """One paired difference as a sentence, in percentage points."""
    where = f"{row['images']:,} images ({100 * row['fraction']:g} %)"
    low, mean, high = (100 * row[key] for key in ("low", "mean", "high"))
    if low <= 0 <= high:
        return (
            f"{where}: {row['first']} and {row['second']} cannot be told apart, {mean:+.2f} points of "
            f"{TITLES[row['figure']]} ({_LEVEL} interval {low:+.2f} to {high:+.2f})"
        )
    better, worse = (row["first"], row["second"]) if mean > 0 else (row["second"], row["first"])
    low, high = sorted((abs(low), abs(high)))
    return (
        f"{where}: {better} does better than {worse} by {abs(mean):.2f} points of {TITLES[row['figure']]} "
        f"({_LEVEL} interval {low:.2f} to {high:.2f})"
    )


def table(tree: Tree) -> list[list[str]]:
    """The summary as rows of cells, the first its head: figures in percent with their standard deviation over the seeds."""
    rows = [["images", "recipe", "epochs", *(TITLES[figure] for figure in FIGURES), "training"]]
    for row in tree["summary"]:
        cells = [f"{row['images']:,}", row["recipe"], f"{row['epochs']:,g}"]
        cells += [_spread(row[figure], 100, 2) + (f" (k = {row['k']})" if figure == "accuracy" else "") for figure in FIGURES]
        rows.append([*cells, _spread(row["train_seconds"], 1, 1) + " s"])
    return rows


def remarks(tree: Tree) -> list[str]:
    """What a reader must know besides: votes of fewer neighbours, budgets that one epoch exceeds, what could not be trained."""
    recipes, budget, lines = tree["settings"]["recipes"], tree["settings"]["budget"], []
    for row in tree["summary"]:
        if row["k"] < (asked := recipes[row["recipe"]]["evaluate"]["k"]):
            lines.append(f"{row['recipe']}: with {row['images']:,} images all {row['k']} neighbours vote, not {asked}")
    for one in tree["plan"]:
        if one["epoch_seconds"] > budget["seconds"]:
            lines.append(
                f"{one['recipe']}: an epoch on {100 * one['fraction']:g} % takes {one['epoch_seconds']:.1f} s, "
                f"longer than the {budget['seconds']:g} s that were given; it had one"
            )
    failed: dict[tuple[str, int, str], list[str]] = {}
    for entry in tree["trainings"]:
        if "error" in entry:
            failed.setdefault((entry["recipe"], entry["images"], entry["error"]), []).append(str(entry["seed"]))
    for (recipe, images, error), seeds in failed.items():
        lines.append(f"{recipe} could not be trained on {images:,} images (seed {', '.join(seeds)}): {error}")
    return lines


def draw(folder: Path, tree: Tree) -> list[Any]:
    """Draw the comparison and save PNG and SVG into ``folder``; returns the plots."""
    from nearfar.plots import Difference, paired_differences, sample_efficiency, save, score_dots

    settings, found = tree["settings"], {}
    for entry in tree["trainings"]:
        if "error" not in entry:
            found[entry["recipe"], entry["fraction"], entry["seed"]] = entry["accuracy"]
    sizes = {entry["fraction"]: entry["images"] for entry in tree["trainings"]}
    shares, seeds = settings["fractions"], settings["seeds"]
    scores = {
        name: [[found.get((name, share, seed), np.nan) for seed in seeds] for share in shares]
        for name in settings["recipes"]
        if any(key[0] == name for key in found)
    }
    plots = []
    if len(shares) > 1:
        plots.append(sample_efficiency([sizes[share] for share in shares], scores, score_name=TITLES["accuracy"]))
    for place, share in enumerate(shares):
        here = {name: rows[place] for name, rows in scores.items() if not np.isnan(rows[place]).all()}
        about = f"{TITLES['accuracy']}, {sizes[share]:,} images"
        if here:
            plots.append(score_dots(here, score_name=about, name=f"scores-{sizes[share]}"))
        gaps = [
            Difference(row["first"], row["second"], row["mean"], row["low"], row["high"])
            for row in tree["differences"]
            if row["fraction"] == share and row["figure"] == "accuracy"
        ]
        if gaps:
            plots.append(paired_differences(gaps, score_name=about, confidence=LEVEL, name=f"differences-{sizes[share]}"))
    for plot in plots:
        save(plot, folder)
    return plots


def readme(tree: Tree, plots: Sequence[Any]) -> str:
    """The comparison as Markdown; names appear as code, so that none of them is read as markup."""
    settings = tree["settings"]
    seeds, test = settings["seeds"], next(iter(settings["data"].values()))["test"]
    lines = [f"# {', '.join(_code(name) for name in settings['recipes'])}", ""]
    lines += [
        f"Trained on {_code(settings['source'])} with seeds {', '.join(map(str, seeds))} and judged on {test['images']:,} test "
        f"images by their nearest neighbours among the training images. {_budget(settings['budget'])} For each seed all "
        "recipes had the same training images; smaller sets lie within larger ones.",
        "",
        *(f"- {_text(sentence)}." for sentence in tree["verdicts"]),
        "",
        *_markdown(table(tree)),
        "",
        "Percent, mean ± standard deviation over the seeds.",
        "",
    ]
    if tree["differences"]:
        lines += ["## Paired differences", "", *_markdown(_difference_table(tree)), ""]
        lines += [
            f"Percentage points, first less second, with {_LEVEL} bootstrap intervals over test images"
            + (" and seeds." if len(seeds) > 1 else "; how much another seed changes cannot be told from one."),
            "",
        ]
    if notes := remarks(tree):
        lines += ["## Remarks", "", *(f"- {_text(note)}" for note in notes), ""]
    for plot in plots:
        lines += [f"![{_text(plot.alt)}]({PLOTS}/{plot.name}.png)", "", _text(plot.caption), ""]
    return "\n".join(lines)


def _difference_table(tree: Tree) -> list[list[str]]:
    groups: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in tree["differences"]:
        cells = groups.setdefault((row["fraction"], row["images"], row["first"], row["second"]), {})
        low, mean, high = (100 * row[key] for key in ("low", "mean", "high"))
        cells[row["figure"]] = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
    rows = [["images", "first", "second", *(TITLES[figure] for figure in FIGURES)]]
    for (_, images, first, second), cells in groups.items():
        rows.append([f"{images:,}", first, second, *(cells[figure] for figure in FIGURES)])
    return rows


def _by_share_and_recipe(done: Sequence[Mapping[str, Any]]) -> dict[tuple[float, str], list[Mapping[str, Any]]]:
    """Trainings in groups, in the order in which they were made, which is that of shares, then of recipes."""
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for entry in done:
        groups.setdefault((entry["fraction"], entry["recipe"]), []).append(entry)
    return groups


def _budget(budget: Mapping[str, Any]) -> str:
    if "seconds" in budget:
        return f"Every training had {budget['seconds']:g} s: as many whole epochs as fit by a short measurement, one at least."
    if budget["epochs"] is None:
        return "Every recipe had its own number of epochs."
    return f"Every training had {in_epochs(budget['epochs'])}."


def _spread(values: Mapping[str, Any], scale: float, digits: int) -> str:
    spread = "" if values["std"] is None else f" ± {scale * values['std']:.{digits}f}"
    return f"{scale * values['mean']:.{digits}f}{spread}"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _code(text: str) -> str:
    return "`" + " ".join(str(text).replace("`", "'").split()) + "`"


def _text(text: str) -> str:
    return " ".join(str(text).translate(str.maketrans("<>`[]|", "()'()/")).split())
