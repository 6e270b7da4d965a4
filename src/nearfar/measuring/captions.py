"""How well images and texts of a run find each other: the section ``towers`` of ``metrics.json``.

Knows a model, images and their captions; formulas are `nearfar.evaluation.towers`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.data import ImageSet
from nearfar.embedder import Embedder
from nearfar.evaluation.towers import class_precision, rank_towers
from nearfar.text import class_vectors, prompts_of, zero_shot
from nearfar.textsearch import embed_texts
from nearfar.training.captions import captions_of

_PRECISION_AT = 10

Floats = npt.NDArray[np.float32]


def towers(
    model: Embedder, images: ImageSet, z: Floats, labels: npt.NDArray[np.int64] | None, classes: Sequence[str]
) -> dict[str, Any]:
    """Figures of images beside texts.

    Args:
        model: with a text tower.
        images: the queries, with captions or without.
        z: their embeddings [N, D].
        labels: their numbers of ``classes`` [N], or None.
        classes: names of the classes.

    Returns:
        With captions ``images``, ``captions`` (different ones), ``image_to_text`` and ``text_to_image``, each with recall@1, 5
        and 10 and mrr: among these images and captions, right is what belongs together. With labels, where the recipe has
        ``evaluate.templates``, ``zero_shot``: ``accuracy`` of the class whose prompts are nearest; ``precision@10``, the share
        of a class among the 10 images nearest to its prompts, mean over classes; ``classes`` and ``templates``.
    """
    tree: dict[str, Any] = {}
    if any(images.texts or ()):
        captions = captions_of(images)
        tree |= {"images": len(captions.captioned), "captions": len(captions.distinct)}
        tree |= rank_towers(z, embed_texts(model, captions.distinct), captions.by_image()).figures()
    templates = model.recipe_.evaluate.templates
    if labels is not None and templates:
        present = np.unique(labels)
        prompts = prompts_of([classes[number] for number in present], templates)
        vectors = class_vectors(lambda texts: embed_texts(model, texts), prompts)
        found, _ = zero_shot(z, vectors)
        k = min(_PRECISION_AT, len(images))
        tree["zero_shot"] = {
            "accuracy": float((present[found] == labels).mean()),
            f"precision@{_PRECISION_AT}": float(class_precision(vectors, present, z, labels, k=k).mean()),
            "classes": len(present),
            "templates": list(templates),
        }
    return tree
