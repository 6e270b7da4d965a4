"""What stands beside the figures of a run: copies of queries in the gallery, and what no training would find.

Both need the images behind the vectors. Where those are gone or have changed, there is a reason instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.evaluation.baselines import Plain, Terms, Untrained, asked_rows, joined, measure_baselines
from nearfar.evaluation.figures import finite
from nearfar.evaluation.leaks import Copies, find_copies, leak_figures, leak_parts, nearer_copies

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

Other = tuple[str, Callable[[ImageSet], Floats]]
"""A model to stand beside: its name, and what embeds images by it."""
Parts = dict[str, npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Side:
    """One side of a search: what is searched, or what is looked up."""

    z: Floats  # embeddings [N, D]
    labels: Ints  # class numbers [N]
    images: tuple[ImageSet, ...]  # the sets whose images they are, one after the other; none where they are not to be had

    @property
    def ids(self) -> list[str]:
        """Names of the images [N]."""
        return [name for images in self.images for name in images.ids.tolist()]


class Beside:
    """Copies and baselines of every search that a run is judged by.

    Args:
        trained_on: the images that the principal components are those of, or why there are none.
        dimensions: of the run's embedding.
        terms: how the run is measured.
        held: images and class numbers on which thresholds of pairs are chosen; None: such thresholds are left out.
        other: the name of another model, and what embeds images by it; None: no other was named.
    """

    def __init__(
        self,
        trained_on: ImageSet | InputError,
        dimensions: int,
        terms: Terms,
        held: tuple[ImageSet, Ints] | None,
        other: Other | None = None,
    ) -> None:
        self.terms = terms
        self.other = None if other is None else other[0]
        self.left_out: dict[str, str] = {}
        self._copies: dict[tuple[int, int], Copies] = {}
        self._plain: dict[int, Plain] = {}
        self._untrained: Untrained | None = None
        if isinstance(trained_on, InputError):
            self.left_out = dict.fromkeys(("leaks", "baselines"), str(trained_on))
            return
        embed = None if other is None else other[1]
        try:
            self._untrained = Untrained(trained_on, dimensions, embed)
            self._held = None if held is None else (self._untrained.embed(held[0]), held[1])
        except InputError as reason:
            self.left_out["baselines"] = str(reason)

    def copies(self, near: Side, asked: Side, same: bool) -> Copies | None:
        """The copies of what is ``asked`` in what is ``near``; ``same``: the first set of both is one and the same."""
        if not near.images or "leaks" in self.left_out:
            return None
        (queries,) = asked.images
        found: Copies | None = None
        shift = 0
        for place, images in enumerate(near.images):
            key = id(images), id(queries)
            if key not in self._copies:
                own = np.arange(len(queries)) if same and place == 0 else None
                self._copies[key] = find_copies(images, queries, exclude=own)
            found = self._copies[key] if found is None else nearer_copies(found, self._copies[key], shift)
            shift += len(images)
        return found

    def parts(self, copies: Copies | None) -> Parts | None:
        """The queries whose figures are wanted apart."""
        return None if copies is None else leak_parts(copies)

    def add(self, tree: dict[str, Any], near: Side, asked: Side, same: bool, copies: Copies | None) -> None:
        """Put ``leaks`` and ``baselines`` into the ``tree`` of a search, the former in place of its ``parts``."""
        parts = tree.pop("parts", None)
        if copies is not None:
            tree["leaks"] = finite(leak_figures(copies, parts, asked.labels, near.labels, asked.ids, near.ids))
        if self._untrained is None or not near.images:
            return
        try:
            tree["baselines"] = self._baselines(near, asked, same, tree["classification"]["k"])
        except InputError as reason:
            self.left_out["baselines"] = str(reason)

    def _baselines(self, near: Side, asked: Side, same: bool, k: int) -> dict[str, Any]:
        assert self._untrained is not None
        sides = [self._embed(images) for images in near.images]
        gallery = sides[0]
        for side in sides[1:]:
            gallery = joined(gallery, side)
        rows = asked_rows(asked.labels, self.terms.seed)
        queries = (
            {name: x[rows] for name, x in gallery.items()} if same else self._untrained.embed(asked.images[0].subset(rows))
        )
        tree = measure_baselines(
            gallery,
            near.labels,
            queries,
            asked.labels[rows],
            terms=dataclasses.replace(self.terms, k=k),
            exclude=rows if same else None,
            held=self._held,
        )
        for name, figures in tree.items():
            figures |= {"name": self.other} if name == "model" else {"size": list(self._untrained.size)}
        return tree

    def _embed(self, images: ImageSet) -> Plain:
        assert self._untrained is not None
        if id(images) not in self._plain:
            self._plain[id(images)] = self._untrained.embed(images)
        return self._plain[id(images)]
