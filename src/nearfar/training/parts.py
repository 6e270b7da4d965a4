"""A recipe and images -> the parts of a training: encoder, loss, sampler; whatever does not fit is refused here."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nearfar.augment import Augment, normalize
from nearfar.data import ImageSet
from nearfar.distributed.group import current
from nearfar.distributed.part import check_shares
from nearfar.encoders import UnitNorm, build_encoder, channels_last
from nearfar.encoders.norm import unshared
from nearfar.encoders.projector import projector
from nearfar.errors import InputError, did_you_mean, reason_of
from nearfar.losses import LOSSES, Loss
from nearfar.recipe import Recipe, TrainSection
from nearfar.sampling import Captions as CaptionBatches
from nearfar.sampling import ClassBatches, Pairs, Sampler, Shuffle, Views, subset_stratified
from nearfar.training import weights
from nearfar.training.captions import Captions, TowersLoss, build_tower, captions_of
from nearfar.training.headloss import HeadLoss
from nearfar.training.muon import Muon
from nearfar.training.optim import Optimizer

Made = TypeVar("Made")
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Targets:
    """What is learned from."""

    labels: Codes  # the class of each image, numbered without gaps, -1 where it has none or is not to be used [N]
    classes: Codes  # the images' own number of each of these classes [P]
    told: Codes  # what the loss is told [N]: the class, or of an image that stands for itself a number of its own
    captions: Captions | None = None  # what the loss is told instead, where it is captions; told is then for figures alone


def check(recipe: Recipe, train: ImageSet, *, seed: int, start: nn.Module | None = None) -> None:
    """Build everything that training needs once, so that what does not fit is said before anything is written.

    Raises:
        InputError: the recipe does not fit the images.
    """
    normalize(first_images(train, 1), recipe.data.mean, recipe.data.std)
    if learns_nothing(recipe):
        with torch.random.fork_rng(devices=[]):
            begin_encoder(recipe, train, start)
        return
    targets = training_targets(recipe, train, seed=seed)
    classes = targets.classes
    sampler = build_sampler(recipe, targets, seed=seed, names=[train.classes[number] for number in classes])
    plan, paired = sampler.epoch(0), recipe.sampling.kind == "pairs"
    check_shares(plan.batch_size, recipe.train.chunk, current().world, paired=paired, linked=plan.linked)
    with torch.random.fork_rng(devices=[]), explain_size():
        encoder = begin_encoder(recipe, train, start)
        build_loss(recipe, encoder, train, targets)
        build_projector(recipe, encoder, train)
    if current().world > 1 and (kind := unshared(encoder)):
        raise InputError(
            f"the encoder {recipe.encoder.kind!r} has batch norms ({kind}) whose statistics cannot be shared by processes; "
            "set encoder.frozen=true, or train in one process"
        )
    augment = build("augment", Augment, recipe.augment)
    if recipe.sampling.kind == "views" and not augment:
        raise InputError(
            "sampling.kind is 'views', but nothing changes an image, so that its views are all alike; add an [augment] section"
        )


def learns_nothing(recipe: Recipe) -> bool:
    """Whether all of the encoder is frozen and nothing stands on it: its embedding is taken as it is."""
    params = recipe.encoder.params
    frozen = recipe.encoder.kind == "timm" and params.get("frozen") is True and not params.get("dim")
    return frozen and recipe.train.mode == "embedding" and recipe.sampling.kind != "captions"


@contextlib.contextmanager
def explain_size(where: str = "the recipe") -> Iterator[None]:
    """Turn what PyTorch says of a network that no memory holds, or no number counts, into one line."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, OverflowError, MemoryError, TypeError, ValueError) as error:
        raise InputError(f"{where} asks for a network that cannot be built: {reason_of(error)[:300]}") from error


def training_targets(recipe: Recipe, train: ImageSet, *, seed: int) -> Targets:
    """What the recipe has images learn from: their classes, their captions, or for views the images themselves.

    Raises:
        InputError: it is to be classes, and there are not two; or captions, and there are none.
    """
    if recipe.sampling.kind == "captions":
        captions = captions_of(train)
        none = np.full(len(train), -1, dtype=np.int64)
        shown = captions.first if train.labels is None else train.labels
        return Targets(none, np.empty(0, dtype=np.int64), shown, captions)
    views = recipe.sampling.kind == "views"
    if views and train.labels is None:
        none = np.full(len(train), -1, dtype=np.int64)
        return Targets(none, np.empty(0, dtype=np.int64), np.arange(len(train)))
    labels, classes = training_labels(train)
    labels = np.where(labels_to_know(recipe, train, seed=seed) < 0, -1, labels)
    told = labels
    if views:
        alone = np.ones(len(labels), dtype=bool) if recipe.sampling.instances == "all" else labels < 0
        told = np.where(alone, len(classes) + np.arange(len(labels)), labels)
    return Targets(labels, classes, told)


def labels_to_know(recipe: Recipe, train: ImageSet, *, seed: int) -> Codes:
    """The images' own labels [N], -1 where there is none, or where it is not to be used (``data.labelled``).

    What is not used in training is not known to the run's index either.
    """
    if train.labels is None:
        return np.full(len(train), -1, dtype=np.int64)
    labels = np.asarray(train.labels, dtype=np.int64)
    if recipe.data.labelled == 1:
        return labels
    kept = subset_stratified(labels, size=recipe.data.labelled, seed=seed)
    return np.where(np.isin(np.arange(len(labels)), kept), labels, -1)


def training_labels(train: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Labels numbered without gaps, [N] int64 with -1 for images without one, and the class number behind each, [P].

    Raises:
        InputError: there are no labels, or all images are of one class.
    """
    if train.labels is None:
        raise InputError(
            f"{train.name} has no labels, which this recipe learns from; put the images of every class in a sub-folder "
            "of its own, add a label column, or take a recipe that needs none, such as simclr"
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
    """The recipe's encoder as training begins with it: with the weights of ``start``, those it names itself, or random ones.

    Raises:
        InputError: ``start`` is missing where a head is to stand on it, or has another shape; or weights are not at hand.
    """
    if start is None and recipe.train.mode != "embedding":
        raise InputError(f"train.mode is {recipe.train.mode!r}, which needs a trained encoder to begin with; give --from RUN")
    encoder = build_encoder_for(recipe, train.channels, train.size)
    if start is None:
        weights.begin(encoder)
    else:
        own, given = encoder.state_dict(), start.state_dict()
        if recipe.train.mode != "linear":  # what evens out the embeddings of the start does not suit those that will come
            given = {name: value for name, value in given.items() if not name.startswith("whitening.")}
            given |= {name: value for name, value in own.items() if name.startswith("whitening.")}
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


def build_loss(recipe: Recipe, encoder: nn.Module, train: ImageSet, targets: Targets) -> Loss:
    """The recipe's loss, checked against its sampling and its encoder; with the text tower where captions are learned from.

    Raises:
        InputError: the loss is unknown, its arguments do not fit, or it cannot work on the recipe's batches or outputs.
    """
    kind = recipe.loss.kind
    if kind not in LOSSES:
        raise InputError(f"unknown loss {kind!r}{did_you_mean(kind, LOSSES)}")
    home, classes = LOSSES[kind], len(targets.classes)
    dim = output_dim(encoder, train)
    if recipe.train.projector:
        dim = recipe.train.projector[-1]
    params = dict(recipe.loss.params)
    if recipe.sampling.kind == "views" and (home.needs_classes or home.scores):
        raise InputError(
            f"the loss {kind!r} learns classes one by one, and views of images have none; "
            "take nt-xent, dcl, vicreg or barlow-twins"
        )
    if targets.captions is not None:
        _check_towers(recipe, home)
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
    if home.needs_unit_rows and not recipe.train.projector and not recipe.encoder.params.get("normalize", True):
        raise InputError(f"the loss {kind!r} needs rows of unit length; set encoder.normalize=true")
    loss = build(f"loss {kind!r}", home, params)
    if targets.captions is not None and recipe.text is not None:
        captions = targets.captions.distinct
        return TowersLoss(loss, build_tower(recipe.text, captions, dim), captions)
    return loss if mode == "embedding" else HeadLoss(loss, classes=classes, dim=dim)


def _check_towers(recipe: Recipe, home: type[Loss]) -> None:
    """Refuse a recipe whose text tower would have nothing to be compared with.

    Raises:
        InputError: the loss takes no keys, the encoder has no unit rows, or more stands between encoder and loss.
    """
    if not home.takes_keys:
        raise InputError(f"the loss {recipe.loss.kind!r} cannot compare images with captions; take clip or siglip")
    if not recipe.encoder.params.get("normalize", True):
        raise InputError("images are compared with captions by rows of unit length; set encoder.normalize=true")
    if recipe.train.projector:
        raise InputError("captions lie beside what the encoder gives, so nothing can stand between; set train.projector=[]")


def build_projector(recipe: Recipe, encoder: nn.Module, train: ImageSet) -> nn.Module:
    """The net between encoder and loss that the recipe asks for, with unit rows where the loss needs them; or nothing.

    Raises:
        InputError: the recipe trains a head, which stands on the encoder itself.
    """
    widths = recipe.train.projector
    if not widths:
        return nn.Identity()
    if recipe.train.mode != "embedding":
        raise InputError(f"train.projector and train.mode {recipe.train.mode!r} do not go together; set train.projector=[]")
    unit = [UnitNorm()] if LOSSES[recipe.loss.kind].needs_unit_rows else []
    return nn.Sequential(*projector(output_dim(encoder, train), widths), *unit)


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


def build_sampler(recipe: Recipe, targets: Targets, *, seed: int, names: list[str] | None = None) -> Sampler:
    """The recipe's sampler; images without a class, or without a caption where that is learned from, take no part."""
    section, labels, captions = recipe.sampling, targets.labels, targets.captions
    if captions is not None:
        size = min(section.batch_size, len(captions.captioned))
        return CaptionBatches(captions.numbers, captions.starts, batch_size=size, seed=seed, drop_last=section.drop_last)
    if section.kind == "views":
        size = min(section.batch_size, len(labels))
        return Views(np.arange(len(labels)), batch_size=size, views=section.views, seed=seed, drop_last=section.drop_last)
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
            linked=section.linked,
            names=names,
        )
    present = len(np.unique(labels[labels >= 0]))
    return ClassBatches(labels, classes=min(section.classes, present), per_class=section.per_class, seed=seed, names=names)


def first_images(train: ImageSet, count: int) -> Tensor:
    """The first ``count`` images, or as many as there are, uint8 [B, C, H, W]."""
    return torch.from_numpy(train.images[np.arange(min(len(train), count))])


def build_optimizer(
    section: TrainSection, encoder: Sequence[nn.Parameter], loss: Sequence[nn.Parameter] = ()
) -> Optimizer | Muon:
    """The recipe's optimiser, of the parameters of an encoder and of a loss."""
    if section.optimizer != "muon":
        return Optimizer(section, [*encoder, *loss])
    matrices = [parameter for parameter in encoder if parameter.ndim > 1]
    return Muon(section, matrices, [*(parameter for parameter in encoder if parameter.ndim < 2), *loss])
