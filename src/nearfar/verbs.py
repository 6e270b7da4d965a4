"""Each verb of the command line as a function: paths in, plain results out. The command line itself holds no logic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nearfar import runs, tracking
from nearfar.answers import UNKNOWN, answer, calibrate, current_calibration, gallery_of, trained_images, write_calibration
from nearfar.calibrate import PRECISION
from nearfar.data import ImageSet, load_any, load_images
from nearfar.data.loading import open_source
from nearfar.errors import InputError
from nearfar.exporting import export
from nearfar.files import write_text
from nearfar.measuring.figures import evaluate
from nearfar.measuring.judging import Source
from nearfar.recipe import Recipe, load_recipe
from nearfar.runs.card import write_card
from nearfar.runs.opening import Model, classes_of, labels_in, load_index, load_run, open_model, shape_of
from nearfar.search import NeighborIndex
from nearfar.splits import describe, load_for, parse_unseen, present_classes
from nearfar.spreadsheet import csv_text
from nearfar.training.progress import Watcher
from nearfar.trainmany import check_processes, train_in_processes

__all__ = ["embed", "evaluate", "export", "predict", "search", "train"]


def train(
    data: Source,
    *,
    recipe: str | Path | Recipe | None = None,
    start: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    epochs: float | None = None,
    unseen: str | float | Sequence[str] | None = None,
    device: str = "auto",
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    watcher: Watcher | None = None,
    tensorboard: str | Path | bool = False,
    processes: int = 1,
) -> dict[str, Any]:
    """Train an embedding and leave a run folder with an index of the training images.

    Args:
        data: name, path or `ImageSet`.
        recipe: name, TOML file or `Recipe`; None: that of ``start``, or else the one that suits the data.
        start: a run whose encoder training begins with. ``train.mode`` says what for: to train it further by the recipe's
            loss ("embedding"), to train a linear classifier on it ("linear"), or both together ("finetune").
        out: the run folder; None: a new one below ``runs``.
        seed: everything random follows from it.
        epochs: instead of the recipe's.
        unseen: classes to keep from training, instead of the recipe's ``data.unseen``: names, or a share of all classes, or
            either as text for `nearfar.splits.parse_unseen`. `evaluate` measures how well they are told apart.
        device: "auto", "cpu" or "cuda".
        changes: values by dotted key that replace the recipe's.
        resume: go on with the interrupted run in ``out``.
        skip_bad: leave out images that cannot be read instead of refusing.
        watcher: is told how training goes.
        tensorboard: the folder for TensorBoard's files; True: ``tensorboard`` in the run folder; False: none are written.
        processes: how many of this machine train together, with the same result; more than one read ``data`` by name or path.

    Returns:
        run, recipe, images, classes, skipped, epochs, train_seconds, images_per_second; where captions are learned from also
        captions (how many different ones) and uncaptioned (images without one, which with ``skip_bad`` are not learned from).

    Raises:
        InputError: the data, the recipe or the folder do not fit.
        ProcessLostError: one of several processes ended without a word.
    """
    check_processes(processes, data)
    source = data.name if isinstance(data, ImageSet) else str(data)
    if tensorboard:
        tracking.check_installed()
    if resume and out is None:
        raise InputError("to resume, name the folder of the interrupted run: --out RUN")
    if resume:
        earlier = runs.read_config(Path(str(out)))
        recipe = Recipe.from_dict(earlier["recipe"]) if recipe is None else recipe
        begun = earlier.get("start")
        start = begun.get("run") if start is None and isinstance(begun, dict) else start
    if recipe is None and start is not None:
        from nearfar.training.trained import recipe_to_continue

        recipe = recipe_to_continue(Path(start))
    elif recipe is None:
        recipe = default_recipe(source)
    own = {"train.epochs": epochs, "data.unseen": parse_unseen(unseen) if isinstance(unseen, str) else unseen}
    given = {key: value for key, value in own.items() if value is not None}
    chosen = load_recipe(recipe, {**(changes or {}), **given})
    mode = "" if chosen.train.mode == "embedding" else f"-{chosen.train.mode}"
    folder = Path(out) if out is not None else runs.free_folder(f"{Path(source).stem}-{chosen.name}{mode}")
    if processes > 1:
        if not resume:
            runs.must_be_free(folder)
        shared = {"data": data, "recipe": chosen, "start": start, "out": folder, "seed": seed, "device": device}
        shared |= {"resume": resume, "skip_bad": skip_bad, "tensorboard": tensorboard}
        return train_in_processes(processes, shared, watcher)
    from nearfar import textsearch
    from nearfar.distributed import joined
    from nearfar.embedder import Embedder
    from nearfar.training import trained
    from nearfar.training.parts import labels_to_know

    captions = chosen.sampling.kind == "captions"
    events = None if not tensorboard else folder / tracking.FOLDER if tensorboard is True else Path(tensorboard)
    with joined(device) as group:
        if group.first and not resume:
            runs.must_be_free(folder)
        model = Embedder(recipe=chosen, seed=seed, device=device, start=start)
        splits = group.in_turn(lambda: load_for(data, chosen.data, seed=seed, skip_bad=skip_bad))
        bare = textsearch.require_captions(splits.train, skip_bad=skip_bad) if captions else []
        model.check(splits.train)
        about = {"source": source} | {name: describe(part) for name, part in splits.parts().items()}
        if group.first:
            runs.begin(folder, model.config(about), resume=resume)
        with tracking.watching(events if group.first else None, model.config(about), watcher) as told:
            model.fit_parts(splits.train, splits.validation, folder=folder, resume=resume, watcher=told)
    if not group.first:  # of several processes the first alone writes and returns something
        return {}
    z = model.transform(splits.train)
    towers = (model.text_, model.temperature_)
    config = model.config(about) | trained.write_model(folder, model.encoder_, model.history_, model.head_, *towers)
    labels = labels_to_know(chosen, splits.train, seed=seed)
    digest = config["model"]["sha256"]
    index = NeighborIndex(chosen.evaluate.metric, chosen.evaluate.backend).fit(z, labels)
    index.save(folder / runs.INDEX, model_hash=digest, names={"images": splits.train.ids.tolist()})
    found = {}
    if captions:
        texts = textsearch.write_captions(folder, model, splits.train, digest)
        found = {"captions": len(texts), "uncaptioned": len(bare)}
    if splits.train.labels is not None:
        held = splits.validation
        seen = None if held is None else (model.transform(held), labels_in(held, model.classes_))
        gallery = gallery_of(index, chosen.evaluate, len(splits.train))
        write_calibration(folder, gallery, calibrate(gallery, seen))
    if events is not None:
        shown = splits.train if splits.validation is None else splits.validation
        tracking.write_projector(events, z if shown is splits.train else model.transform(shown), shown, seed=seed)
    write_card(folder, config)
    trained.finish(folder, config)  # last: whatever kills us before, --resume goes on
    return {
        "run": str(folder),
        "recipe": chosen.name,
        "images": len(splits.train),
        "classes": len(present_classes(splits.train)),
        "skipped": list(splits.train.skipped),
        "epochs": chosen.train.epochs if model.training_.get("learned", True) else 0.0,
        "train_seconds": model.training_["seconds"],
        "images_per_second": model.training_["images_per_second"],
        **found,
    }


def embed(
    run: str | Path,
    data: Source,
    *,
    out: str | Path,
    device: str = "auto",
    skip_bad: bool = False,
    ray: str | None = None,
) -> dict[str, Any]:
    """Embed all images of ``data`` into one ``.npz`` or ``.parquet`` file, or, where there are many, into a folder of parts.

    Columns: embedding float32 [N, D], id, and label where the data has labels. ``run`` is a run folder, or an ONNX file that
    `export` made, with which PyTorch is not imported. With a folder for ``out`` (a name without an ending),
    `nearfar.embedding.embed_stream` does the work, which says more; ``ray`` is its address of a cluster.

    Raises:
        InputError: the run or the data cannot be used, or ``out`` ends otherwise.
    """
    out = Path(out)
    if not out.suffix or out.is_dir():
        from nearfar.embedding import embed_stream

        return embed_stream(run, data, out=out, device=device, skip_bad=skip_bad, ray=ray)
    if out.suffix not in (".npz", ".parquet"):
        raise InputError(
            f"cannot write embeddings to {out}; its name must end in .npz or .parquet, or have no ending: a folder"
        )
    if ray is not None:
        raise InputError(f"a cluster writes a folder of parts, and {out} is one file; give --out a name without an ending")
    from nearfar.embedding.output import write_file

    model = open_model(Path(run), device=device)
    images = load_any([data], **shape_of(model), skip_bad=skip_bad)
    z = model.transform(images)
    names = None if images.labels is None else np.array(images.classes)[images.labels]
    write_file(out, z, images.ids.tolist(), names)
    return {"out": str(out), "images": len(images), "dim": z.shape[1], "skipped": list(images.skipped)}


def search(
    run: str | Path,
    images: Sequence[str | Path],
    *,
    k: int = 10,
    to: str = "images",
    index: str | Path | None = None,
    device: str = "auto",
    skip_bad: bool = False,
) -> list[dict[str, Any]]:
    """The k nearest gallery images of every given image or text.

    Args:
        run: the run folder.
        images: image files, folders, or anything that `train` takes; or, for a run with a text tower, texts: what is no path
            that exists, no data set, and does not end as the names of image files do.
        k: how many.
        to: "text" finds the nearest captions of the training images instead.
        index: a folder that `nearfar.embedding.build_index` made with the run's model, instead of the run's own index.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read instead of refusing.

    Returns:
        For every image or text: ``query`` and ``neighbors``, best first, each with ``id``, ``label`` (None where it has none)
        and ``score`` (cosine or dot product; for Euclidean runs the distance). To text: ``query`` and ``captions``, best
        first, each with ``text`` and ``score``.

    Raises:
        InputError: the run, an image or a text cannot be used, or k is not between 1 and the size of the gallery.
    """
    from nearfar import textsearch

    if to not in ("images", "text"):
        raise InputError(f"cannot search to {to!r}; known are 'images' and 'text'")
    model, gallery = load_run(Path(run), device=device)
    if index is not None:
        gallery = load_index(Path(run), runs.read_config(Path(run)), model.classes_, path=Path(index))
    asks_text = textsearch.texts_or_images(images, has_tower=model.has_text, run=Path(run))
    if to == "text":
        model.require_text()
        return textsearch.nearest_captions(Path(run), model, images if asks_text else _read(images, model, skip_bad), k=k)
    if asks_text:
        names, z = [str(text) for text in images], textsearch.embed_texts(model, [str(text) for text in images])
    else:
        queries = _read(images, model, skip_bad)
        names, z = queries.ids.tolist(), model.transform(queries)
    scores, rows = gallery.search_rows(z, k=k)
    labels, ids, classes = np.asarray(gallery.labels), gallery.names["images"], classes_of(model, gallery)
    return [
        {
            "query": query,
            "neighbors": [
                {"id": ids[row], "label": classes[labels[row]] if labels[row] >= 0 else None, "score": float(score)}
                for score, row in zip(scores[q], rows[q], strict=True)
            ],
        }
        for q, query in enumerate(names)
    ]


def predict(
    run: str | Path,
    images: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    precision: float = PRECISION,
    classes: Sequence[str] | None = None,
    templates: Sequence[str] = (),
    prompts: Mapping[str, Sequence[str]] | str | Path | None = None,
    device: str = "auto",
    skip_bad: bool = False,
) -> list[dict[str, Any]]:
    """The class of every given image by the vote of its nearest gallery images, or ``unknown`` where that is not sure enough.

    With ``classes``, ``templates`` or ``prompts``, by texts alone: a run with a text tower takes the class whose prompts
    are nearest, which need not be one that it was trained on.

    Args:
        run: the run folder.
        images: image files, folders, or anything that `train` takes; of a data set with a test split, that split.
        out: a CSV file to write the result to.
        precision: wanted share of right ones among the answers that are given; 0 answers everything. See docs/unknown.md.
        classes: the names of the classes that are put into templates; None: those of the run.
        templates: texts with {} where the name goes; (): "a photo of a {}.".
        prompts: instead of both, the prompts of each class, or a TOML file of them.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read instead of refusing.

    Returns:
        For every image: ``image``; ``label``, the class, or "unknown"; ``voted``, the class in any case; ``votes``, the share
        of the vote that it got, and ``probability``, that it is right; ``nearest`` (id of the nearest gallery image) and
        ``score`` (its similarity or distance); ``head_label``, the class that the linear head says, where the run has one;
        ``true_label`` where the images bring one. By texts: what `nearfar.textsearch.classify` returns.

    Raises:
        InputError: the run or an image cannot be used, ``out`` cannot be written, or the precision is out of range.
    """
    model, index = load_run(Path(run), device=device)
    queries = _to_predict(images, model, skip_bad)
    if classes is not None or templates or prompts is not None:
        from nearfar import textsearch

        results = textsearch.classify(model, queries, textsearch.prompts_from(model, classes, templates, prompts))
        return results if out is None else _write_csv(Path(out), results)
    config = runs.read_config(Path(run))
    gallery = gallery_of(index, model.recipe_.evaluate, trained_images(config, index))
    z = model.transform(queries)
    said = answer(gallery, z, current_calibration(Path(run), gallery), precision)
    names, known = index.names["images"], classes_of(model, index)
    results = [
        {
            "image": str(query),
            "label": known[said.labels[q]] if said.known[q] else UNKNOWN,
            "voted": known[said.labels[q]],
            "votes": round(float(said.votes[q]), 6),
            "probability": round(float(said.probability[q]), 6),
            "nearest": names[said.nearest[q]],
            "score": float(said.scores[q]),
        }
        for q, query in enumerate(queries.ids)
    ]
    if model.head_ is not None:
        for result, place in zip(results, model.head_.predict(z), strict=True):
            result["head_label"] = model.head_.classes[place]
    if queries.labels is not None:
        for result, label in zip(results, queries.labels, strict=True):
            result["true_label"] = queries.classes[label]
    return results if out is None else _write_csv(Path(out), results)


def default_recipe(source: str) -> str:
    """The recipe that suits a data set: small grey images, or any others."""
    return {"mnist": "mnist-fast", "fashion-mnist": "fashion-fast", "digits": "mnist-fast"}.get(source, "images")


def _read(images: Sequence[str | Path], model: Model, skip_bad: bool) -> ImageSet:
    return load_any(images, **shape_of(model), skip_bad=skip_bad)


def _to_predict(images: Sequence[str | Path], model: Model, skip_bad: bool) -> ImageSet:
    """All given images; of one data set that has a test split, only that, since the others may be in the index."""
    if len(images) == 1 and "test" in open_source(images[0]):
        return load_images(images[0], "test", **shape_of(model), skip_bad=skip_bad)
    return load_any(images, **shape_of(model), skip_bad=skip_bad)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    write_text(path, csv_text(list(dict.fromkeys(key for row in rows for key in row)), rows))
    return rows
