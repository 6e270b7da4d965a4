"""A recipe and images -> the parts of a training: encoder, loss, sampler; whatever does not fit is refused here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.augment import Augment, normalize
from nearfar.data import ImageSet
from nearfar.encoders import build_encoder, channels_last
from nearfar.errors import InputError, did_you_mean
from nearfar.headloss import HeadLoss
from nearfar.losses import LOSSES, Loss
from nearfar.muon import Muon
from nearfar.optim import Optimizer
from nearfar.recipe import Recipe, TrainSection
from nearfar.sampling import ClassBatches, Pairs, Sampler, Shuffle

Made = TypeVar("Made")


def check(recipe: Recipe, train: ImageSet, *, seed: int, start: nn.Module | None = None) -> None:
    """Build everything that training needs once, so that what does not fit is said before anything is written.

    Raises:
        InputError: the recipe does not fit the images.
    """
    labels, classes = training_labels(train)
    build_sampler(recipe, labels, seed=seed, names=[train.classes[number] for number in classes])
    with torch.random.fork_rng(devices=[]):
        encoder = begin_encoder(recipe, train, start)
        build_loss(recipe, encoder, train, classes=len(classes))
    build("augment", Augment, recipe.augment)
    normalize(first_batch(recipe, train)[:1], recipe.data.mean, recipe.data.std)


def training_labels(train: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Labels numbered without gaps, [N] int64 with -1 for images without one, and the class number behind each, [P].

    Raises:
        InputError: there are no labels, or all images are of one class.
    """
    if train.labels is None:
        raise InputError(
            f"{train.name} has no labels, which this recipe learns from; put the images of every class in a sub-folder "
            "of its own, or add a label column"
        )
    classes, numbers = np.unique(train.labels[train.labels >= 0], return_inverse=True)
    if len(classes) < 2:
        found = train.classes[classes[0]] if len(classes) else "none"
        raise InputError(f"{train.name} has one class only ({found!r}); near and far need images of at least two classes")
    labels = np.full(len(train), -1, dtype=np.int64)
    labels[train.labels >= 0] = numbers
    return labels, classes


def build_encoder_for(recipe: Recipe, channels: int, size: tuple[int, int]) -> nn.Module:
    """The recipe's encoder for images of this shape, in the memory layout that convolutions like."""
    encoder: nn.Module = build_encoder(recipe.encoder.kind, channels=channels, size=size, **recipe.encoder.params)
    return channels_last(encoder)


def begin_encoder(recipe: Recipe, train: ImageSet, start: nn.Module | None) -> nn.Module:
    """The recipe's encoder as training begins with it: with the weights of ``start``, or random ones.

    Raises:
        InputError: ``start`` is missing where a head is to stand on it, or has another shape.
    """
    if start is None and recipe.train.mode != "embedding":
        raise InputError(f"train.mode is {recipe.train.mode!r}, which needs a trained encoder to begin with; give --from RUN")
    encoder = build_encoder_for(recipe, train.channels, train.size)
    if start is not None:
        own, given = encoder.state_dict(), start.state_dict()
        odd = [name for name in own | given if name not in own or name not in given or own[name].shape != given[name].shape]
        if odd:
            raise InputError(
                f"the recipe's encoder is not that of the run to start from: they differ in {odd[0]!r}; leave out --recipe "
                "and the changes of its encoder section, and the run's own are taken"
            )
        encoder.load_state_dict(given)
    return encoder


def output_dim(encoder: nn.Module, images: ImageSet) -> int:
    """D, the width of the encoder's output for images of this shape."""
    training = encoder.training
    with torch.no_grad():
        z = encoder.eval()(torch.zeros(1, images.channels, *images.size, device=next(encoder.parameters()).device))
    encoder.train(training)
    return int(z.shape[1])


def build_loss(recipe: Recipe, encoder: nn.Module, train: ImageSet, *, classes: int) -> Loss:
    """The recipe's loss, checked against its sampling and its encoder.

    Raises:
        InputError: the loss is unknown, its arguments do not fit, or it cannot work on the recipe's batches or outputs.
    """
    kind = recipe.loss.kind
    if kind not in LOSSES:
        raise InputError(f"unknown loss {kind!r}{did_you_mean(kind, LOSSES)}")
    home = LOSSES[kind]
    dim = output_dim(encoder, train)
    params = dict(recipe.loss.params)
    if home.needs_classes:
        params |= {"classes": classes, "dim": dim}
    if recipe.sampling.kind == "pairs" and not home.takes_pairs:
        able = [name for name, one in LOSSES.items() if one.takes_pairs]
        raise InputError(
            f"the loss {kind!r} compares all images of a batch, not given pairs; set sampling.kind to shuffle or "
            f"class-batches, or take one of {', '.join(able)}"
        )
    mode = recipe.train.mode
    if mode != "embedding" and not home.scores:
        raise InputError(f"train.mode is {mode!r}, which learns by class scores; set loss.kind=cross-entropy, not {kind!r}")
    if home.scores and mode == "embedding" and dim < classes:
        raise InputError(
            f"the loss {kind!r} needs one output per class: the encoder has {dim}, the data {classes} classes; "
            f"set encoder.dim={classes}"
        )
    if home.needs_unit_rows and not recipe.encoder.params.get("normalize", True):
        raise InputError(f"the loss {kind!r} needs rows of unit length; set encoder.normalize=true")
    loss = build(f"loss {kind!r}", home, params)
    return loss if mode == "embedding" else HeadLoss(loss, classes=classes, dim=dim)


def build(name: str, home: Callable[..., Made], params: Mapping[str, Any]) -> Made:
    """``home(**params)``, with unknown and missing arguments named in one line.

    Raises:
        InputError: an argument is unknown or missing, or ``home`` refuses a value.
    """
    known = inspect.signature(home).parameters
    for key in params:
        if key not in known:
            raise InputError(f"{name} has no argument {key!r}{did_you_mean(key, known)}")
    missing = [key for key, one in known.items() if one.default is one.empty and key not in params]
    if missing:
        raise InputError(f"{name} needs the argument {missing[0]!r}")
    return home(**{key: tuple(value) if isinstance(value, list) else value for key, value in params.items()})


def build_sampler(recipe: Recipe, labels: np.ndarray, *, seed: int, names: list[str] | None = None) -> Sampler:
    """The recipe's sampler; ``labels`` [N] int64, -1 for images without a class, which take no part."""
    section = recipe.sampling
    if section.kind == "shuffle":
        rows = np.flatnonzero(labels >= 0)
        return Shuffle(rows, batch_size=min(section.batch_size, len(rows)), seed=seed, drop_last=section.drop_last)
    if section.kind == "pairs":
        return Pairs(
            labels,
            batch_size=section.batch_size,
            seed=seed,
            partner=section.partner,
            pairing=section.pairing,
            names=names,
        )
    present = len(np.unique(labels[labels >= 0]))
    return ClassBatches(labels, classes=min(section.classes, present), per_class=section.per_class, seed=seed, names=names)


def first_batch(recipe: Recipe, train: ImageSet) -> Tensor:
    """As many images as a batch has, uint8 [B, C, H, W]."""
    return torch.from_numpy(train.images[np.arange(min(len(train), recipe.sampling.batch_size))])


def build_optimizer(
    section: TrainSection, encoder: Sequence[nn.Parameter], loss: Sequence[nn.Parameter] = ()
) -> Optimizer | Muon:
    """The recipe's optimiser, of the parameters of an encoder and of a loss."""
    if section.optimizer != "muon":
        return Optimizer(section, [*encoder, *loss])
    matrices = [parameter for parameter in encoder if parameter.ndim > 1]
    return Muon(section, matrices, [*(parameter for parameter in encoder if parameter.ndim < 2), *loss])
