"""Learning from images and their captions: the captions of a set, numbered, and the loss that holds the text tower.

For the training loop the text tower is a part of the loss, as the proxies of other losses are: so it is learned, averaged, kept
in checkpoints and resumed with it, and a batch of images is told the numbers of its captions in place of classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nearfar.data import ImageSet
from nearfar.data.texts import without
from nearfar.errors import InputError
from nearfar.losses.base import Batch, Loss
from nearfar.losses.towers import of_towers
from nearfar.recipe import TextSection
from nearfar.text import TextTower

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Captions:
    """The captions of an image set, each different one once."""

    distinct: tuple[str, ...]  # in the order of their first appearance
    numbers: Codes  # of all captions of all images, one image after another: places in ``distinct`` [M]
    starts: Codes  # those of image i are numbers[starts[i] : starts[i + 1]] [N + 1]

    @property
    def first(self) -> Codes:
        """The number of each image's first caption, -1 where it has none [N]."""
        there = self.starts[1:] > self.starts[:-1]
        found = np.full(len(there), -1, dtype=np.int64)
        found[there] = self.numbers[self.starts[:-1][there]]
        return found

    def by_image(self) -> list[Codes]:
        """The numbers of each image's captions."""
        return np.split(self.numbers, self.starts[1:-1])

    @property
    def captioned(self) -> Codes:
        """The rows of the images that have a caption."""
        return np.flatnonzero(np.diff(self.starts))


def captions_of(images: ImageSet) -> Captions:
    """The captions of ``images``.

    Raises:
        InputError: there are none.
    """
    if images.texts is None or not any(images.texts):
        raise InputError(
            f"{images.name} has no captions, which this recipe learns from; give a column text in metadata.csv or Parquet, or "
            "ImageSet.with_texts, or take a recipe that learns from images alone"
        )
    places: dict[str, int] = {}
    numbers = [places.setdefault(caption, len(places)) for captions in images.texts for caption in captions]
    counts = [len(captions) for captions in images.texts]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Captions(tuple(places), np.array(numbers, dtype=np.int64), starts)


def require_captions(images: ImageSet, *, skip_bad: bool) -> list[str]:
    """Refuse images without a caption, or with ``skip_bad`` name them: they are kept, and not learned from.

    Raises:
        InputError: there are such images and ``skip_bad`` is off, or there are no captions at all.
    """
    captions_of(images)
    assert images.texts is not None
    names, few = without(images.texts, images.ids.tolist())
    if names and not skip_bad:
        raise InputError(
            f"{images.name}: {len(names):,} of {len(images):,} images have no caption: {few}; write them, or leave such "
            "images out of training with skip_bad (--skip-bad)"
        )
    return names


class TowersLoss(Loss):
    """A loss that compares a batch of image embeddings with the embeddings of its captions, which its text tower makes.

    Labels are the numbers of captions: images that have the same caption this time are positives of it alike.

    Args:
        loss: any loss that takes keys.
        tower: what turns captions into unit rows [B, D].
        captions: all that may occur, by number.
    """

    takes_keys: ClassVar[bool] = False
    needs_unit_rows: ClassVar[bool] = True

    def __init__(self, loss: Loss, tower: TextTower, captions: Sequence[str]) -> None:
        super().__init__()
        self.loss, self.tower = loss, tower
        inputs = tower.prepare(captions)
        self.note = cut_line(tower, "captions") if tower.cut else ""  # to be said before training
        self.register_buffer("inputs", inputs, persistent=False)  # of the data, so no part of what is learned

    def embed(self, numbers: Tensor) -> Tensor:
        """The embeddings [B, D] of the captions ``numbers`` [B]; each different one is computed once."""
        distinct, places = numbers.unique(return_inverse=True)
        assert isinstance(self.inputs, Tensor)
        z: Tensor = self.tower(self.inputs[distinct])
        return z[places]

    @property
    def temperature(self) -> float:
        """What cosines are divided by to be compared, as it was learned, or as the recipe says; else 0.07."""
        scale = getattr(self.loss, "log_scale", None)
        return math.exp(-float(scale.detach())) if isinstance(scale, Tensor) else float(getattr(self.loss, "temperature", 0.07))

    def left(self) -> tuple[TextTower | None, float | None]:
        """What training leaves: the tower in eval mode, on the processor, and the temperature."""
        return self.tower.cpu().eval(), self.temperature

    def _loss(self, batch: Batch) -> Tensor:
        return of_towers(self.loss, batch.z, self.embed(batch.labels).to(batch.z.dtype), batch.labels)


def build_tower(section: TextSection, captions: Sequence[str], dim: int) -> TextTower:
    """A text tower as training begins with it, its vocabulary that of ``captions``, for embeddings of ``dim`` numbers."""
    return TextTower.fit(captions, dim=dim, **dataclasses.asdict(section))


def cut_line(tower: TextTower, what: str) -> str:
    """What is said where texts were longer than the tower reads."""
    most = tower.settings.get("length")
    longer = "than the sentence model reads" if most is None else f"than {most:,} pieces, as text.length says"
    return f"{tower.cut:,} of the {what} are longer {longer}; their ends are not read"
