"""Each verb of the command line as a function: paths in, plain results out. The command line itself holds no logic."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nearfar import runs
from nearfar.card import write_card
from nearfar.classify import similarities, vote_weights, winners
from nearfar.data import ImageSet, load_any, load_images, load_splits
from nearfar.data.loading import open_source
from nearfar.embedder import Embedder
from nearfar.errors import InputError
from nearfar.files import write_atomic, write_json, write_text
from nearfar.progress import Watcher
from nearfar.recipe import Recipe, load_recipe
from nearfar.search import NeighborIndex
from nearfar.splits import Splits, describe, load_for, present_classes

if TYPE_CHECKING:
    from numpy.typing import NDArray

Source = str | Path | ImageSet

THRESHOLD_ROWS = 5000  # gallery images that the pair threshold is chosen on where there are no validation images


def train(
    data: Source,
    *,
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    device: str = "auto",
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Train an embedding and leave a run folder with an index of the training images.

    Args:
        data: name, path or `ImageSet`.
        recipe: name, TOML file or `Recipe`; None: the one that suits the data.
        out: the run folder; None: a new one below ``runs``.
        seed: everything random follows from it.
        epochs: instead of the recipe's.
        device: "auto", "cpu" or "cuda".
        changes: values by dotted key that replace the recipe's.
        resume: go on with the interrupted run in ``out``.
        skip_bad: leave out images that cannot be read instead of refusing.
        watcher: is told how training goes.

    Returns:
        run, recipe, images, classes, skipped, epochs, train_seconds, images_per_second.

    Raises:
        InputError: the data, the recipe or the folder do not fit.
    """
    source = data.name if isinstance(data, ImageSet) else str(data)
    if resume and out is None:
        raise InputError("to resume, name the folder of the interrupted run: --out RUN")
    if resume and recipe is None:
        recipe = Recipe.from_dict(runs.read_config(Path(str(out)))["recipe"])
    chosen = load_recipe(
        recipe if recipe is not None else default_recipe(source),
        {**(changes or {}), **({"train.epochs": epochs} if epochs is not None else {})},
    )
    folder = Path(out) if out is not None else _free_folder(f"{Path(source).stem}-{chosen.name}")
    if not resume:
        runs.must_be_free(folder)
    model = Embedder(recipe=chosen, seed=seed, device=device)
    splits = load_for(data, chosen.data, seed=seed, skip_bad=skip_bad)
    model.check(splits.train)
    about = {"source": source} | {name: describe(part) for name, part in _parts(splits).items()}
    runs.begin(folder, model.config(about), resume=resume)
    model.fit_parts(splits.train, splits.validation, folder=folder, resume=resume, watcher=watcher)
    z = model.transform(splits.train)
    digest = runs.finish(folder, model.encoder_, model.config(about), model.history_)
    index = NeighborIndex(metric=chosen.evaluate.metric).fit(z, splits.train.labels)
    index.save(folder / runs.INDEX, model_hash=digest, names={"images": splits.train.ids.tolist()})
    write_card(folder)
    return {
        "run": str(folder),
        "recipe": chosen.name,
        "images": len(splits.train),
        "classes": len(present_classes(splits.train)),
        "skipped": list(splits.train.skipped),
        "epochs": chosen.train.epochs,
        "train_seconds": model.training_["seconds"],
        "images_per_second": model.training_["images_per_second"],
    }


def evaluate(run: str | Path, data: Source | None = None, *, device: str = "auto", skip_bad: bool = False) -> dict[str, Any]:
    """Measure a run on the test split of ``data`` and write ``metrics.json`` and the model card.

    The gallery is the run's index. Where ``data`` has classes that the index lacks, its images are searched among
    themselves, each left out of its own search.

    Args:
        run: the run folder.
        data: name, path or `ImageSet`; None: what the run was trained on.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read instead of refusing.

    Returns:
        The tree that ``metrics.json`` holds.

    Raises:
        InputError: the run or the data cannot be used.
    """
    from nearfar.evaluation import evaluate_embeddings

    folder = Path(run)
    model, index = load_run(folder, device=device)
    recipe, config = model.recipe_, runs.read_config(folder)
    source = config["data"]["source"] if data is None else (data.name if isinstance(data, ImageSet) else str(data))
    own = source == config["data"]["source"]
    splits = None
    if own:
        splits = load_for(source if data is None else data, recipe.data, seed=config["seed"], skip_bad=skip_bad)
        name, queries = next((n, p) for n, p in reversed(_parts(splits).items()) if n in ("test", "validation", "train"))
    else:
        found = load_splits(data if data is not None else source, **_shape(model), skip_bad=skip_bad)
        name = next(split for split in ("test", "validation", "train", *found) if split in found)
        queries = found[name]
    labels = _labels_in(queries, model.classes_)
    started = time.perf_counter()
    z = model.transform(queries)
    seconds = time.perf_counter() - started
    classes = [*model.classes_, *(one for one in queries.classes if one not in model.classes_)]
    known = np.isin(labels, np.unique(np.asarray(index.labels)))
    same = bool(own and name == "train") or not known.all()
    settings: dict[str, Any] = {
        "metric": recipe.evaluate.metric,
        "k": recipe.evaluate.k,
        "vote": recipe.evaluate.vote,
        "bootstrap": recipe.evaluate.bootstrap,
        "threshold": recipe.evaluate.threshold,
        "seed": config["seed"],
    }
    held = _threshold_rows(model, index, splits)
    gallery, gallery_labels = (z, labels) if same else (np.asarray(index.vectors), np.asarray(index.labels))
    tree = evaluate_embeddings(gallery, gallery_labels, z, labels, classes=classes, same_set=same, validation=held, **settings)
    tree["data"] = {
        **tree.get("data", {}),
        "source": source,
        "split": name,
        "queries": len(queries),
        "gallery": len(gallery),
        "gallery_is": "the queries themselves, each left out of its own search" if same else "the run's index",
        "new_classes": len(np.unique(labels[~known])),
        "skipped": list(queries.skipped),
    }
    if splits is not None and splits.unseen is not None:
        unseen_labels = _labels_in(splits.unseen, model.classes_)
        apart = model.transform(splits.unseen)
        tree["unseen"] = evaluate_embeddings(
            apart, unseen_labels, apart, unseen_labels, classes=classes, same_set=True, validation=held, **settings
        )
        tree["unseen"]["data"] = {
            **tree["unseen"].get("data", {}),
            "queries": len(splits.unseen),
            "classes": len(np.unique(unseen_labels)),
            "gallery_is": "the images of the unseen classes themselves, each left out of its own search",
        }
    tree["timing"] = {
        **tree.get("timing", {}),
        "train_seconds": config.get("training", {}).get("seconds"),
        "train_images_per_second": config.get("training", {}).get("images_per_second"),
        "embed_seconds": seconds,
        "images_per_second": len(queries) / seconds,
    }
    write_json(folder / runs.METRICS, tree)
    write_card(folder)
    return tree


def embed(run: str | Path, data: Source, *, out: str | Path, device: str = "auto", skip_bad: bool = False) -> dict[str, Any]:
    """Embed all images of ``data`` into one ``.npz`` or ``.parquet`` file.

    Columns: embedding float32 [N, D], id, and label where the data has labels.

    Raises:
        InputError: the run or the data cannot be used, or ``out`` ends otherwise.
    """
    out = Path(out)
    if out.suffix not in (".npz", ".parquet"):
        raise InputError(f"cannot write embeddings to {out}; its name must end in .npz or .parquet")
    model = Embedder.load(run, device=device)
    images = load_any([data], **_shape(model), skip_bad=skip_bad)
    z = model.transform(images)
    names = None if images.labels is None else np.array(images.classes)[images.labels]
    with write_atomic(out) as file:
        if out.suffix == ".npz":
            columns: dict[str, Any] = {"embedding": z, "id": np.array(images.ids.tolist())}
            np.savez(file, allow_pickle=False, **columns, **({} if names is None else {"label": names}))
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            vectors = pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), z.shape[1])
            table = {"id": pa.array(images.ids.tolist()), "embedding": vectors}
            pq.write_table(pa.table(table | ({} if names is None else {"label": pa.array(names.tolist())})), file)
    return {"out": str(out), "images": len(images), "dim": z.shape[1], "skipped": list(images.skipped)}


def search(
    run: str | Path, images: Sequence[str | Path], *, k: int = 10, device: str = "auto", skip_bad: bool = False
) -> list[dict[str, Any]]:
    """The k nearest gallery images of every given image.

    Returns:
        For every image: ``query`` and ``neighbors``, best first, each with ``id``, ``label`` and ``score`` (cosine or
        dot product; for Euclidean runs the distance).

    Raises:
        InputError: the run or an image cannot be used, or k is not between 1 and the size of the gallery.
    """
    model, index = load_run(Path(run), device=device)
    queries = load_any(images, **_shape(model), skip_bad=skip_bad)
    scores, rows = index.search_rows(model.transform(queries), k=k)
    labels, names = np.asarray(index.labels), index.names["images"]
    return [
        {
            "query": str(query),
            "neighbors": [
                {"id": names[row], "label": model.classes_[labels[row]], "score": float(score)}
                for score, row in zip(scores[q], rows[q], strict=True)
            ],
        }
        for q, query in enumerate(queries.ids)
    ]


def predict(
    run: str | Path,
    images: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    device: str = "auto",
    skip_bad: bool = False,
) -> list[dict[str, Any]]:
    """The class of every given image by the vote of its nearest gallery images.

    Args:
        run: the run folder.
        images: image files, folders, or anything that `train` takes; of a data set with a test split, that split.
        out: a CSV file to write the result to.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read instead of refusing.

    Returns:
        For every image: ``image``, ``label``, ``votes`` (share of the vote that the label got), ``nearest`` (id of the
        nearest gallery image) and ``score`` (its similarity or distance); ``true_label`` where the images bring one.

    Raises:
        InputError: the run or an image cannot be used, or ``out`` cannot be written.
    """
    model, index = load_run(Path(run), device=device)
    queries = _to_predict(images, model, skip_bad)
    settings = model.recipe_.evaluate
    scores, rows = index.search_rows(model.transform(queries), k=min(settings.k, len(index)))
    codes, similarity = np.asarray(index.labels)[rows], similarities(scores, settings.metric)
    won = winners(codes, similarity, settings.vote)
    shares = (vote_weights(similarity, settings.vote) * (codes == won[:, None])).sum(axis=1)
    names = index.names["images"]
    results: list[dict[str, Any]] = [
        {
            "image": str(query),
            "label": model.classes_[won[q]],
            "votes": round(float(shares[q]), 6),
            "nearest": names[rows[q, 0]],
            "score": float(scores[q, 0]),
        }
        for q, query in enumerate(queries.ids)
    ]
    if queries.labels is not None:
        for result, label in zip(results, queries.labels, strict=True):
            result["true_label"] = queries.classes[label]
    if out is not None:
        _write_csv(Path(out), results)
    return results


def load_run(folder: Path, *, device: str = "auto") -> tuple[Embedder, NeighborIndex]:
    """The model and the index of a finished run.

    Raises:
        InputError: a part is missing or damaged, or the index was made by another model.
    """
    model = Embedder.load(folder, device=device)
    digest = runs.read_config(folder)["model"]["sha256"]
    index = NeighborIndex.load(folder / runs.INDEX, expect_model_hash=digest)
    if index.labels is None or len(index.names.get("images", [])) != len(index):
        raise InputError(f"{folder / runs.INDEX} is damaged: it lacks labels or names of images; train again")
    if np.asarray(index.labels).max() >= len(model.classes_):
        raise InputError(f"{folder / runs.INDEX} does not belong to {folder}: it has classes that the run lacks")
    return model, index


def _threshold_rows(model: Embedder, index: NeighborIndex, splits: Splits | None) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Embeddings and labels that thresholds are chosen on: validation images, or else a sample of the gallery."""
    if splits is not None and splits.validation is not None:
        return model.transform(splits.validation), _labels_in(splits.validation, model.classes_)
    rows = np.sort(np.random.default_rng(0).permutation(len(index))[:THRESHOLD_ROWS])
    return np.asarray(index.vectors[rows]), np.asarray(index.labels)[rows]


def default_recipe(source: str) -> str:
    """The recipe that suits a data set: small grey images, or any others."""
    return "mnist-fast" if source in ("mnist", "fashion-mnist", "digits") else "images"


def _to_predict(images: Sequence[str | Path], model: Embedder, skip_bad: bool) -> ImageSet:
    """All given images; of one data set that has a test split, only that, since the others may be in the index."""
    if len(images) == 1 and "test" in open_source(images[0]):
        return load_images(images[0], "test", **_shape(model), skip_bad=skip_bad)
    return load_any(images, **_shape(model), skip_bad=skip_bad)


def _shape(model: Embedder) -> dict[str, Any]:
    """How images must be read for this model."""
    return {
        "size": model.size_,
        "channels": model.channels_,
        "background": model.recipe_.data.background,
    }


def _parts(splits: Splits) -> dict[str, ImageSet]:
    """The parts that there are, by name, in the order of their use."""
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test, "unseen": splits.unseen}
    return {name: part for name, part in named.items() if part is not None}


def _labels_in(images: ImageSet, classes: Sequence[str]) -> NDArray[np.int64]:
    """Labels as numbers of ``classes``, followed by those classes of the images that are not among them."""
    place = {name: number for number, name in enumerate(classes)}
    for name in images.classes:
        place.setdefault(name, len(place))
    return np.array([place[name] for name in images.classes], dtype=np.int64)[images.require_labels()]


def _free_folder(name: str) -> Path:
    """``runs/name``, or ``runs/name-2`` and so on when it is taken."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
