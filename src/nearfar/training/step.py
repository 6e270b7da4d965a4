"""What one batch teaches: its images, changed, through the encoder to the loss, and the gradient back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.augment import Augment, Draws, normalize
from nearfar.data import ImageSet
from nearfar.encoders.shared import Shared, embedding
from nearfar.gradcache import cached_step
from nearfar.losses import Loss
from nearfar.recipe import Recipe
from nearfar.sampling import Batch
from nearfar.training.frozen import rest
from nearfar.training.seeds import mix, reseed

Look = tuple[Tensor, Shared | None]
"""Images that pass through the encoder at once, and of which batch they are a piece where they are not all of it."""


class Step:
    """The way from a batch to its loss; weights are not changed here, only their gradients.

    Args:
        recipe: what to do.
        train: the images that batches are rows of.
        labels: a number for each of them.
        augment: what changes images.
        encoder: images [n, C, H, W] to embeddings.
        project: embeddings to what the loss sees, [n, D].
        loss: compares the rows of a batch.
        precision: "bfloat16" or "float32", that of the encoder.
        points: what a part of the encoder that stands still has made of all images, [N, ...]; None: nothing stands still.
        group: the processes that share every batch.
        seed: everything random follows from it.
        device: where to compute.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: ImageSet,
        labels: np.ndarray,
        *,
        augment: Augment,
        encoder: nn.Module,
        project: nn.Module,
        loss: Loss,
        precision: str,
        points: Tensor | None,
        group: distributed.Group,
        seed: int,
        device: str,
    ) -> None:
        self.recipe, self.train, self.labels, self.augment = recipe, train, labels, augment
        self.encoder, self.project, self.loss = encoder, project, loss
        self.precision, self.points, self.group, self.seed, self.device = precision, points, group, seed, device
        self.generator = torch.Generator()

    def learn(self, batch: Batch, part: distributed.Part, number: int) -> tuple[Tensor, Tensor]:
        """The loss of the batch, with the gradient that this process's part of it has, and the embeddings of that part.

        Everything random follows from ``number``, that of the step in the whole run.
        """
        reseed(mix(self.seed, 2 * number + 1), self.device)
        self.generator.manual_seed(mix(self.seed, 2 * number + 2))
        looks = self._look(part)
        if len(looks) > 1:
            kept: list[Tensor] = []

            def compare_all(z: Tensor) -> Tensor:
                kept.append(z)
                return self._compare(z, batch, part)

            value = cached_step(self._embed, looks, compare_all, encoder=nn.ModuleList([self.encoder, self.project]))
            return value, kept[0].detach()
        z = self._embed(looks[0])
        value = self._compare(z, batch, part)
        value.backward()
        return value, z

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings [n, D] of pixels, or of what of the encoder stands still has made of them."""
        data = self.recipe.data
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            if self.points is None:
                z = self.encoder(normalize(x, data.mean, data.std, channels_last=True))
            else:
                z = rest(self.recipe, self.encoder)(x)
            z = self.project(z)
        result: Tensor = z.float()
        return result

    def _look(self, part: distributed.Part) -> list[Look]:
        """The changed images of a part, in pieces."""
        if self.points is not None:
            looks = self.points[torch.from_numpy(part.images).to(self.device)]
        else:
            count = sum(piece.count for piece in part.pieces)  # of the whole batch
            whole = np.array_equal(part.places, np.arange(count))
            draws = self.generator if whole else Draws(self.generator, torch.from_numpy(part.places), count)
            looks = self.augment(torch.from_numpy(self.train.images[part.images]), draws).to(self.device)
        pieces = looks.split([len(piece.places) for piece in part.pieces])
        return [
            (look, None if part.alone else Shared(torch.from_numpy(piece.places), piece.count, self.group.total))
            for look, piece in zip(pieces, part.pieces, strict=True)
        ]

    def _embed(self, look: Look) -> Tensor:
        with embedding(look[1]):
            return self.forward(look[0])

    def _compare(self, z: Tensor, batch: Batch, part: distributed.Part) -> Tensor:
        """The loss of the batch from the embeddings of a part."""
        if part.batch.same is not None:
            a, b = (z.index_select(0, torch.from_numpy(side).to(self.device)) for side in part.sides)
            same = torch.from_numpy(part.batch.same).to(self.device)
            if part.alone:
                return self.loss.pairs(a, b, same)  # type: ignore[operator]  # takes_pairs was checked
            return distributed.add_up(self.loss, self.group, self.loss.pair_sums(a, b, same))
        numbers = self.labels[batch.rows] if batch.captions is None else batch.captions
        every_label = torch.from_numpy(numbers[part.everyone]).to(self.device)
        if part.alone:
            return self.loss(z, every_label)
        labels = every_label[part.offset : part.offset + len(z)]
        return distributed.loss_over_processes(self.loss, self.group, z, labels, every_label, part.counts)
