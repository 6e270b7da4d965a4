"""Verbs for runs with a text tower: images for a text, captions for an image, and classes by prompts alone.

Knows runs and their indexes; what is measured is not its business.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nearfar import runs
from nearfar.data import ImageSet, known_sets
from nearfar.data.folders import is_image
from nearfar.embedder import Embedder
from nearfar.errors import InputError
from nearfar.search import NeighborIndex
from nearfar.text import class_vectors, prompts_of, zero_shot
from nearfar.training.captions import captions_of, cut_line, require_captions

_LOG = logging.getLogger(__name__)


__all__ = [
    "captions_index",
    "classify",
    "embed_texts",
    "is_text",
    "nearest_captions",
    "prompts_from",
    "read_prompts",
    "require_captions",
    "texts_or_images",
    "write_captions",
]

Prompts = Mapping[str, Sequence[str]]


def is_text(query: str | Path) -> bool:
    """Whether a query is meant as a text: it is no path that exists, no data set, and does not end as image files do."""
    return isinstance(query, str) and not is_image(query) and query not in known_sets() and not _exists(query)


def texts_or_images(queries: Sequence[str | Path], *, has_tower: bool, run: Path) -> bool:
    """Whether queries are texts, all of them; False where all are images.

    Raises:
        InputError: a text is given to a run that has no text tower, or texts and images together.
    """
    texts = [str(query) for query in queries if is_text(query)]
    if not texts:
        return False
    if not has_tower:
        raise InputError(f"{texts[0]!r} does not exist, and cannot be a text to search for: {run} has no text tower")
    if len(texts) < len(queries):
        image = next(str(query) for query in queries if not is_text(query))
        raise InputError(
            f"{texts[0]!r} does not exist, so it is a text, but {image!r} is images; search for one kind at a time"
        )
    return True


def embed_texts(model: Embedder, texts: Sequence[str]) -> np.ndarray:
    """Texts as vectors beside those of images, float32 [N, D]; says how many were longer than the tower reads."""
    z = model.transform_text(texts)
    if (tower := model.require_text()).cut:
        _LOG.warning(cut_line(tower, "texts"))
    return z


def write_captions(folder: Path, model: Embedder, images: ImageSet, model_hash: str) -> NeighborIndex:
    """Embed each different caption of ``images`` once, and leave an index of them in the run folder."""
    captions, settings = captions_of(images), model.recipe_.evaluate
    index = NeighborIndex(settings.metric, settings.backend).fit(model.transform_text(captions.distinct))
    index.save(folder / runs.TEXTS, model_hash=model_hash, names={"captions": list(captions.distinct)})
    return index


def captions_index(folder: Path, model: Embedder, model_hash: str) -> NeighborIndex:
    """The index of the captions that the run was trained on.

    Raises:
        InputError: the run has no text tower, or the index is missing, damaged or another model's.
    """
    model.require_text()
    index = NeighborIndex.load(folder / runs.TEXTS, expect_model_hash=model_hash)
    if len(index.names.get("captions", [])) != len(index):
        raise InputError(f"{folder / runs.TEXTS} is damaged: it lacks its captions; train again")
    return index


def nearest_captions(
    folder: Path, model: Embedder, queries: ImageSet | Sequence[str | Path], *, k: int
) -> list[dict[str, Any]]:
    """For every image or text ``query`` and ``captions``, the k nearest, best first, each with ``text`` and ``score``.

    Raises:
        InputError: as `captions_index`, or k is not between 1 and the number of captions.
    """
    index = captions_index(folder, model, runs.read_finished(folder)["model"]["sha256"])
    asked = [str(one) for one in (queries.ids if isinstance(queries, ImageSet) else queries)]
    z = model.transform(queries) if isinstance(queries, ImageSet) else embed_texts(model, asked)
    scores, rows = index.search_rows(z, k=k)
    names = index.names["captions"]
    return [
        {
            "query": query,
            "captions": [{"text": names[row], "score": float(score)} for score, row in zip(scores[q], rows[q], strict=True)],
        }
        for q, query in enumerate(asked)
    ]


def read_prompts(path: str | Path) -> dict[str, list[str]]:
    """The prompts of each class from a TOML file of lines like ``shirt = ["a shirt", "a photo of a shirt"]``.

    Raises:
        InputError: the file is missing, is no TOML, or holds something else.
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"the file of prompts {path} does not exist") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    found = {}
    for name, prompts in tree.items():
        each = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(each, list) or not all(isinstance(one, str) for one in each):
            raise InputError(f'{path}: {name} is {prompts!r}; expected prompts, as in {name} = ["a photo of a {name}"]')
        found[name] = each
    return found


def prompts_from(
    model: Embedder,
    classes: Sequence[str] | None,
    templates: Sequence[str],
    prompts: Prompts | str | Path | None,
) -> Prompts:
    """The prompts of each class from what a caller gave: classes put into templates, or prompts themselves.

    Raises:
        InputError: both are given, or neither says which classes there are, or they do not fit.
    """
    if prompts is not None:
        if classes is not None or templates:
            raise InputError("prompts were given beside classes or templates, which make prompts; give one of the two")
        return read_prompts(prompts) if isinstance(prompts, str | Path) else prompts
    names = list(classes) if classes is not None else list(model.classes_)
    if not names:
        raise InputError("the run knows no classes; name them with classes (--classes A,B,...)")
    return prompts_of(names, templates) if templates else prompts_of(names)


def classify(model: Embedder, queries: ImageSet, prompts: Prompts) -> list[dict[str, Any]]:
    """The class of every image by the nearest prompts, none of which need have been read in training.

    Returns:
        For every image: ``image``, ``label``, ``voted`` (the same), ``probability`` (by the temperature that was learned),
        ``score`` (cosine of image and class); ``true_label`` where the images bring one and it is among the classes.

    Raises:
        InputError: the model has no text tower, or a prompt is empty.
    """
    model.require_text()
    vectors = class_vectors(lambda texts: embed_texts(model, texts), prompts)
    z = model.transform(queries)
    labels, chances = zero_shot(z, vectors, _temperature(model))
    names = list(prompts)
    results: list[dict[str, Any]] = [
        {
            "image": str(query),
            "label": names[label],
            "voted": names[label],
            "probability": round(float(chances[q, label]), 6),
            "score": float(z[q] @ vectors[label]),
        }
        for q, (query, label) in enumerate(zip(queries.ids, labels, strict=True))
    ]
    if queries.labels is not None:
        for result, number in zip(results, queries.labels, strict=True):
            if queries.classes[number] in prompts:
                result["true_label"] = queries.classes[number]
    return results


def _temperature(model: Embedder) -> float:
    assert model.temperature_ is not None  # there is a tower
    return model.temperature_


def _exists(query: str) -> bool:
    try:
        return Path(query).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a name, a zero byte, an unknown user
        return False
