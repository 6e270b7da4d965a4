"""Recipes side by side: the same images, seeds and budget for all, and everything that a fair verdict needs.

Only arranges what other modules do. Every recipe, seed and share of the training images is one training and one evaluation,
kept in ``comparison.json`` as soon as it is there, so that a comparison which was interrupted goes on where it stood.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import nearfar
from nearfar import comparison_report as report
from nearfar.classify import similarities, winners
from nearfar.data import ImageSet, load_splits
from nearfar.errors import InputError
from nearfar.evaluation.retrieval import rank_queries
from nearfar.files import explain_os_errors, read_json, write_atomic, write_json
from nearfar.inference import embed, find_device
from nearfar.recipe import EvaluateSection, Recipe, load_recipe
from nearfar.runs import free_folder
from nearfar.search import NeighborIndex
from nearfar.splits import Splits, cut, describe
from nearfar.training.budget import epoch_seconds
from nearfar.training.loop import fit
from nearfar.training.parts import check, labels_to_know
from nearfar.training.progress import Silent, Watcher, clock

FORMAT = 1
RESULT, QUERIES = "comparison.json", "queries"
COMMON = {"data.rows": None, "data.fraction": 1.0, "data.validation": 0.0, "data.unseen": 0.0, "data.test": 0.2}
"""What the recipes say of these must not make their trainings unequal; ``changes`` sets them for all alike."""
MEASURE_SECONDS = 3.0  # how long the speed of a training is measured where the budget is in seconds, at most

Values = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Job:
    """One training of the comparison."""

    recipe: str
    seed: int
    fraction: float

    def is_of(self, entry: Mapping[str, Any]) -> bool:
        return (entry["recipe"], entry["seed"], entry["fraction"]) == (self.recipe, self.seed, self.fraction)


def compare(
    data: str | Path | ImageSet,
    *,
    recipes: Sequence[str | Path | Recipe],
    seeds: int = 3,
    fractions: Sequence[float] = (1.0,),
    epochs: float | None = None,
    seconds: float | None = None,
    out: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    device: str = "auto",
    resume: bool = False,
    skip_bad: bool = False,
    watcher: Watcher | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train several recipes on the same images with the same seeds, and say which does better and by how much.

    All recipes train on the same rows and are judged on the same test images: `COMMON` takes the place of what their data
    sections say of rows, validation, unseen classes and test images. The shares of one seed are nested. What a recipe cannot
    be trained on (pairs of a class with one image, say) is one line in the result; the others go on.

    Args:
        data: name, path or `ImageSet`.
        recipes: two or more names, TOML files or `Recipe`s of different names; one alone shows its sample efficiency.
        seeds: how many; they are 0, 1, ...
        fractions: shares of the training images, each above 0 and at most 1.
        epochs: for every training; None: each recipe's own.
        seconds: for every training, instead of ``epochs``. The speed of each recipe on each share is measured for a moment,
            and the training has as many whole epochs as fit, one at least; so learning rates end as the recipe says.
        out: the folder for the result; None: a new one below ``runs``.
        changes: values by dotted key that replace those of every recipe.
        device: "auto", "cpu" or "cuda".
        resume: go on with the interrupted comparison in ``out``, which was started with the same arguments.
        skip_bad: leave out images that cannot be read instead of refusing.
        watcher: is told how each training goes.
        note: is given a line after each training.

    Returns:
        The tree of ``comparison.json``, and ``out``.

    Raises:
        InputError: an argument does not fit, no training could be run, or ``out`` holds something else.
    """
    chosen = _recipes(recipes, changes, epochs, seconds)
    shares = _fractions(fractions)
    if seeds < 1:
        raise InputError(f"seeds is {seeds}, expected how many there are to be, at least 1")
    if resume and out is None:
        raise InputError("to resume, name the folder of the interrupted comparison: --out FOLDER")
    device = find_device(device)
    source = data.name if isinstance(data, ImageSet) else str(data)
    folder = Path(out) if out is not None else free_folder(f"compare-{Path(source).stem}")
    if not resume:
        _must_be_free(folder)
    images = Images(data, chosen, skip_bad=skip_bad)
    settings = {
        "source": source,
        "seeds": list(range(seeds)),
        "fractions": shares,
        "budget": {"seconds": seconds} if seconds is not None else {"epochs": epochs},
        "recipes": {name: recipe.to_dict() for name, recipe in chosen.items()},
        "data": {name: images.describe(name) for name in chosen},
    }
    tree: dict[str, Any] = {"format": FORMAT, "nearfar": nearfar.__version__, "settings": settings, "plan": [], "trainings": []}
    if resume:
        tree = _earlier(folder, settings)
    sizes = [len(images.cut(next(iter(chosen)), 0, share).train) for share in shares]
    if len(set(sizes)) < len(sizes):
        raise InputError(f"fractions {shares} make {sizes} images; expected shares that differ by an image at least")

    write_json(folder / RESULT, tree)
    jobs = [Job(name, seed, share) for share in shares for seed in range(seeds) for name in chosen]
    for number, job in enumerate(jobs):
        if any(job.is_of(entry) for entry in tree["trainings"]):
            continue
        splits = images.cut(job.recipe, job.seed, job.fraction)
        about = f"{number + 1}/{len(jobs)}  {job.recipe}  seed {job.seed}  {len(splits.train):,} images"
        entry: dict[str, Any] = {**vars(job), "images": len(splits.train)}
        try:
            check(chosen[job.recipe], splits.train, seed=job.seed)
            recipe = _with_epochs(chosen[job.recipe], job, splits, tree["plan"], seconds, device)
            found, values = train_and_judge(recipe, splits, job.seed, device, Steps(watcher or Silent(), about))
        except InputError as error:
            entry["error"] = str(error)
            line = f"cannot be trained: {error}"
        else:
            queries = f"{QUERIES}/recipe{list(chosen).index(job.recipe)}-seed{job.seed}-images{len(splits.train)}.npz"
            with write_atomic(folder / queries) as file:
                np.savez_compressed(file, allow_pickle=False, **{name: values[name] for name in report.FIGURES})
            entry |= {**found, "queries": queries}
            line = f"{entry['k']}-NN accuracy {entry['accuracy']:.4f}  epochs {entry['epochs']:,g}"
            line += f"  {clock(entry['train_seconds'])}"
        tree["trainings"].append(entry)
        write_json(folder / RESULT, tree)
        if note is not None:
            note(f"{about}  {line}")
    return {**report.finish(folder, tree, _load_values), "out": str(folder)}


def train_and_judge(recipe: Recipe, splits: Splits, seed: int, device: str, watcher: Watcher) -> tuple[dict[str, Any], Values]:
    """Train once, embed what was trained on as the gallery, and search it with the test images.

    Returns:
        What goes into the result, and each test image's own values by figure, [N] each.

    Raises:
        InputError: the recipe does not fit the images, or training or its embedding broke down.
    """
    assert splits.test is not None
    fitted = fit(recipe, splits.train, seed=seed, device=device, watcher=watcher)
    gallery, queries = (embed(fitted.encoder, part, recipe.data, device=device) for part in (splits.train, splits.test))
    labels = labels_to_know(recipe, splits.train, seed=seed)
    known = labels >= 0  # the others have no vote
    values, k = query_values(gallery[known], labels[known], queries, splits.test.require_labels(), recipe.evaluate)
    figures = {name: float(values[name].mean()) for name in report.FIGURES}
    found = {
        "epochs": recipe.train.epochs,
        "k": k,
        **figures,
        "train_seconds": fitted.seconds,
        "images_per_second": fitted.images_per_second,
    }
    return found, values


def query_values(
    gallery: npt.NDArray[np.float32],
    gallery_labels: npt.NDArray[np.int64],
    queries: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    section: EvaluateSection,
) -> tuple[Values, int]:
    """Each query's own part in every figure, [N], and how many neighbours voted: k, or all where there are fewer.

    A query whose class the gallery lacks counts as not found.

    Args:
        gallery: [M, D].
        gallery_labels: [M].
        queries: [N, D].
        labels: [N], of the same classes.
        section: the metric, k and vote.

    Raises:
        InputError: a vector cannot be searched: it is zero under the cosine.
    """
    k = min(section.k, len(gallery))
    scores, rows = NeighborIndex(section.metric, "exact").fit(gallery).search_rows(queries, k)
    codes = gallery_labels[rows]
    voted = winners(codes, similarities(scores, section.metric), section.vote)
    ranked = rank_queries(queries, labels, gallery, gallery_labels, metric=section.metric, ks=(1,)).figures()
    values = {
        "accuracy": voted == labels,
        "one_nn_accuracy": codes[:, 0] == labels,
        "recall@1": np.nan_to_num(ranked["recall@1"]) > 0,
        "map@r": np.nan_to_num(ranked["map@r"]).astype(np.float32),
    }
    return values, k


class Images:
    """The images of the comparison, read once for each form that the recipes ask for, and cut anew for each training."""

    def __init__(self, data: str | Path | ImageSet, recipes: Mapping[str, Recipe], *, skip_bad: bool) -> None:
        self.recipes = recipes
        self.parts: dict[Any, dict[str, ImageSet]] = {}
        self.described: dict[Any, dict[str, Any]] = {}
        for name in recipes:
            form = self._form(name)
            if form not in self.parts:
                size, channels, background = form
                self.parts[form] = load_splits(data, size=size, channels=channels, background=background, skip_bad=skip_bad)
                splits = self.cut(name, 0, 1.0)
                if splits.test is None:
                    raise InputError(f"{data} has no test images, which recipes are compared on; set data.test, e.g. to 0.2")
                splits.train.require_labels()
                splits.test.require_labels()
                self.described[form] = {"train": describe(splits.train), "test": describe(splits.test)}

    def cut(self, name: str, seed: int, fraction: float) -> Splits:
        """The parts for a recipe, with this share of the training images."""
        section = self.recipes[name].with_changes({"data.fraction": fraction}).data
        return cut(self.parts[self._form(name)], section, seed=seed)

    def describe(self, name: str) -> dict[str, Any]:
        """Size and hash of a recipe's training and test images."""
        return self.described[self._form(name)]

    def _form(self, name: str) -> tuple[Any, ...]:
        section = self.recipes[name].data
        return section.size, section.channels, section.background


class Steps:
    """A `Watcher` that hands on the steps and the warnings of one training, but not its epochs and notes."""

    def __init__(self, watcher: Watcher, about: str) -> None:
        self.watcher, self.about = watcher, about

    def step(self, epoch: int, epochs: float, step: int, steps: int, loss: float, rate: float, left: float) -> None:
        self.watcher.step(epoch, epochs, step, steps, loss, rate, left)

    def epoch(self, row: dict[str, Any], epochs: float) -> None:
        pass

    def note(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        self.watcher.warn(f"{self.about}: {message}")


def _with_epochs(
    recipe: Recipe, job: Job, splits: Splits, plan: list[dict[str, Any]], seconds: float | None, device: str
) -> Recipe:
    """The recipe with the epochs that fit into ``seconds``; measured once for each recipe and share, and noted in ``plan``."""
    if seconds is None:
        return recipe
    known = [entry for entry in plan if (entry["recipe"], entry["fraction"]) == (job.recipe, job.fraction)]
    if not known:
        limit = min(MEASURE_SECONDS, seconds / 5)
        each = epoch_seconds(recipe, splits.train, seed=job.seed, device=device, limit=limit)
        epochs = max(1, int(seconds / each))
        known = [{"recipe": job.recipe, "fraction": job.fraction, "epochs": epochs, "epoch_seconds": each}]
        plan += known
    return recipe.with_changes({"train.epochs": known[0]["epochs"]})


def _recipes(
    recipes: Sequence[str | Path | Recipe], changes: Mapping[str, Any] | None, epochs: float | None, seconds: float | None
) -> dict[str, Recipe]:
    for key, instead in (("data.fraction", "give the shares as fractions"), ("data.unseen", "all classes are trained on")):
        if key in (changes or {}):
            raise InputError(f"a comparison cannot change {key}; {instead}")
    if epochs is not None and seconds is not None:
        raise InputError(f"epochs is {epochs} and seconds is {seconds:g}; give one of them, they are two kinds of budget")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise InputError(f"seconds is {seconds:g}, expected a positive number of seconds for each training")
    wanted = {**COMMON, **(changes or {}), **({"train.epochs": epochs} if epochs is not None else {})}
    chosen: dict[str, Recipe] = {}
    for recipe in recipes:
        loaded = load_recipe(recipe, wanted)
        if loaded.name in chosen:
            raise InputError(f"recipes names {loaded.name!r} twice; give recipes of different names")
        chosen[loaded.name] = loaded
    if not chosen:
        raise InputError("recipes is empty, expected at least one; `nearfar recipes` lists them")
    return chosen


def _fractions(fractions: Sequence[float]) -> list[float]:
    shares = sorted({float(share) for share in fractions})
    for share in shares:
        if not 0 < share <= 1:
            raise InputError(f"fractions has {share:g}, expected shares of the training images above 0, at most 1")
    if not shares:
        raise InputError("fractions is empty, expected at least one share, such as 1")
    return shares


def _must_be_free(folder: Path) -> None:
    with explain_os_errors(folder):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
    if (folder / RESULT).exists():
        raise InputError(f"{folder} holds a comparison already; go on with --resume, or choose another --out")
    raise InputError(f"{folder} holds something else than a comparison; choose an empty or a new folder")


def _earlier(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The interrupted comparison in ``folder``, without the trainings of which a file is missing."""
    if not (folder / RESULT).exists():
        raise InputError(f"cannot resume: {folder} holds no {RESULT}; leave out --resume to start a comparison")
    tree = read_json(folder / RESULT)
    if tree.get("format") != FORMAT or not all(key in tree for key in ("settings", "plan", "trainings")):
        raise InputError(f"{folder / RESULT} is not a comparison of format {FORMAT}; start anew with another --out")
    for key, now in settings.items():
        if (before := tree["settings"].get(key)) != now:
            what = f"with other {key}" if key in ("recipes", "data") else f"with {key} {before!r}, not {now!r}"
            raise InputError(f"cannot resume: the comparison in {folder} was started {what}; give the same, or another --out")
    there = [entry for entry in tree["trainings"] if "error" in entry or (folder / entry["queries"]).exists()]
    return {key: tree[key] for key in ("format", "nearfar", "settings", "plan")} | {"trainings": there}


def _load_values(path: Path) -> Values:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in report.FIGURES}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and go on with --resume") from None


def parse_names(text: str) -> list[str]:
    """``"a, b"`` as ``["a", "b"]``."""
    return [name for part in text.split(",") if (name := part.strip())]


def parse_fractions(text: str) -> list[float]:
    """``"0.01,0.1,1"`` as numbers.

    Raises:
        InputError: one of them is none.
    """
    try:
        return [float(part) for part in parse_names(text)]
    except ValueError:
        raise InputError(f"fractions is {text!r}, expected numbers with commas between them, such as 0.01,0.1,1") from None
