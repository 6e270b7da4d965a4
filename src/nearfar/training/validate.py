"""What is measured on held-out images after every epoch: the loss, the votes of neighbours, pairs, views."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from nearfar.augment import Augment, normalize
from nearfar.classify import similarities, winners
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.evaluation.geometry import alignment, directions, effective_rank, uniformity
from nearfar.evaluation.towers import rank_towers
from nearfar.inference import embed
from nearfar.losses.towers import of_towers
from nearfar.recipe import Recipe
from nearfar.sampling import Captions, Pairs, Shuffle
from nearfar.search import NeighborIndex
from nearfar.training.captions import TowersLoss, captions_of
from nearfar.training.headloss import HeadLoss
from nearfar.training.parts import build

VIEWED = 2048  # images whose views are looked at, at most
SEED = 0  # the same pairs and batches in every epoch, so that figures of epochs can be compared


@torch.no_grad()
def validation_figures(
    encoder: nn.Module,
    loss: nn.Module,
    recipe: Recipe,
    validation: ImageSet,
    classes: np.ndarray,
    *,
    device: str,
    z: np.ndarray | None = None,
    projector: nn.Module | None = None,
) -> dict[str, Any]:
    """Figures on images that are not learned from.

    Args:
        encoder: what is being trained; its mode is put back.
        loss: the training loss, on batches of the training's size.
        recipe: says how pairs are made and who votes.
        validation: the images, with labels unless the recipe learns from views.
        classes: the class numbers that training knows, [P]; images of others are left out.
        device: where to compute.
        z: the embeddings of all validation images [N, D], where the encoder does not change; None: they are computed.
        projector: what stands between encoder and loss; None: nothing.

    Returns:
        loss; knn_accuracy, where every image is left out of its own search and there are labels; for pairs with a threshold,
        pair_accuracy; with a linear head, head_accuracy; for views alignment (of two views), uniformity and effective_rank;
        for captions image_to_text and text_to_image, recall@1 among the captions and images of the validation images.

    Raises:
        InputError: no validation image is of a class that training knows.
    """
    if recipe.sampling.kind == "views":
        return _view_figures(encoder, projector or nn.Identity(), loss, recipe, validation, device)
    if isinstance(loss, TowersLoss):
        z = embed(encoder, validation, recipe.data, device=device) if z is None else z
        return _caption_figures(z, loss, recipe, validation, device)
    labels = validation.require_labels()
    known = np.flatnonzero(np.isin(labels, classes))
    if len(known) < 2:
        raise InputError("fewer than two validation images are of classes in the training images; hold out more of them")
    numbers = np.searchsorted(classes, labels[known])
    z = embed(encoder, validation.subset(known), recipe.data, device=device) if z is None else z[known]
    figures: dict[str, Any] = {"loss": None}
    points, targets = torch.from_numpy(z).to(device), torch.from_numpy(numbers).to(device)
    training = loss.training
    loss.eval()
    total = count = 0.0
    if recipe.sampling.kind == "pairs":
        pairs = _pairs(numbers, recipe)
        if pairs is not None:
            total, count = _pair_loss(loss, points, pairs)
            threshold = recipe.evaluate.threshold
            if threshold is not None:
                distance = np.linalg.norm(z[pairs.rows] - z[pairs.partners], axis=1)
                figures["pair_accuracy"] = float(((distance < threshold) == pairs.same).mean())
    else:
        size = recipe.sampling.batch_size
        if recipe.sampling.kind == "class-batches":
            size = recipe.sampling.classes * recipe.sampling.per_class
        plan = Shuffle(np.arange(len(z)), batch_size=min(size, len(z)), seed=SEED).epoch(0)
        for number in range(len(plan)):
            rows = torch.from_numpy(plan.batch(number).rows).to(device)
            total += float(loss(points[rows], targets[rows])) * len(rows)
            count += len(rows)
    loss.train(training)
    if count:
        figures["loss"] = total / count
    figures["knn_accuracy"] = _knn_accuracy(z, numbers, recipe)
    if isinstance(loss, HeadLoss):
        figures["head_accuracy"] = float((loss.classify(points) == targets).float().mean())
    return figures


def _view_figures(
    encoder: nn.Module, projector: nn.Module, loss: nn.Module, recipe: Recipe, validation: ImageSet, device: str
) -> dict[str, Any]:
    """The loss on views of held-out images, always the same ones, and how their embeddings lie; with labels the vote too."""
    count, views = min(len(validation), VIEWED), recipe.sampling.views
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(validation))[:count])
    augment, generator = build("augment", Augment, recipe.augment), torch.Generator().manual_seed(SEED)
    modes = [(module, module.training) for module in (encoder, projector, loss)]
    for module, _ in modes:
        module.eval()
    total, places = 0.0, []
    size = min(recipe.sampling.batch_size, count)
    for start in range(0, count - count % size, size):
        rows = np.repeat(chosen[start : start + size], views)
        pixels = augment(torch.from_numpy(np.ascontiguousarray(validation.images[rows])), generator).to(device)
        z = encoder(normalize(pixels, recipe.data.mean, recipe.data.std, channels_last=True)).float()
        total += float(loss(projector(z), torch.arange(size, device=device).repeat_interleave(views))) * size
        places.append(z.cpu().numpy())
    for module, training in modes:
        module.train(training)
    seen = np.concatenate(places)
    unit, own = directions(seen), np.repeat(np.arange(len(seen) // views), views)
    figures: dict[str, Any] = {
        "loss": total / len(seen) * views,
        "alignment": alignment(unit, own),
        "uniformity": uniformity(unit),
        "effective_rank": effective_rank(seen),
    }
    if validation.labels is not None:
        figures["knn_accuracy"] = _knn_accuracy(
            embed(encoder, validation, recipe.data, device=device), validation.labels, recipe
        )
    return figures


def _caption_figures(z: np.ndarray, loss: TowersLoss, recipe: Recipe, validation: ImageSet, device: str) -> dict[str, Any]:
    """The loss on held-out images and captions, always the same ones, how often each side finds the other, and the vote."""
    voted = {} if validation.labels is None else {"knn_accuracy": _knn_accuracy(z, validation.labels, recipe)}
    if not any(validation.texts or ()):
        return {"loss": None} | voted
    captions, training = captions_of(validation), loss.training
    loss.eval()
    texts = loss.tower.embed(captions.distinct, device)
    size = min(recipe.sampling.batch_size, len(captions.captioned))
    plan = Captions(captions.numbers, captions.starts, batch_size=size, seed=SEED).epoch(0)
    total = 0.0
    for number in range(len(plan)):
        batch = plan.batch(number)
        drawn = torch.from_numpy(batch.captions).to(device)
        points, keys = (torch.from_numpy(part).to(device) for part in (z[batch.rows], texts[batch.captions]))
        total += float(of_towers(loss.loss, points, keys, drawn)) * len(batch.rows)
    loss.train(training)
    found = rank_towers(z, texts, captions.by_image()).figures((1,))
    return {"loss": total / len(plan.rows)} | {way: figures["recall@1"] for way, figures in found.items()} | voted


def _pairs(numbers: np.ndarray, recipe: Recipe) -> Any:
    """All validation pairs of one epoch as one batch; None where classes are too small to make any."""
    counts = np.bincount(numbers)
    usable = np.where(counts[numbers] > 1, numbers, -1)
    if len(np.unique(usable[usable >= 0])) < 2:
        return None
    plan = Pairs(usable, batch_size=1, seed=SEED, partner="fixed", pairing=recipe.sampling.pairing).epoch(0)
    return dataclasses.replace(plan, batch_size=len(plan.rows)).batch(0)


def _pair_loss(loss: nn.Module, points: torch.Tensor, pairs: Any) -> tuple[float, float]:
    a, b = (points[torch.from_numpy(rows).to(points.device)] for rows in (pairs.rows, pairs.partners))
    value = loss.pairs(a, b, torch.from_numpy(pairs.same).to(points.device))  # type: ignore[operator]  # takes_pairs was checked
    return float(value) * len(pairs.rows), float(len(pairs.rows))


def _knn_accuracy(z: np.ndarray, numbers: np.ndarray, recipe: Recipe) -> float:
    metric = recipe.evaluate.metric
    index = NeighborIndex(metric, "exact").fit(z)
    own = np.arange(len(z))
    scores, rows = index.search_rows(z, min(recipe.evaluate.k, len(z) - 1), exclude=own)
    voted = winners(numbers[rows], similarities(scores, metric), recipe.evaluate.vote)
    return float((voted == numbers).mean())
