"""The training loop, readable from top to bottom.

Everything random in step ``s`` is a function of (seed, s), so a run that was interrupted ends in the same weights, bit for
bit on the same processor, as one that was not. The loop knows batches, an encoder and a loss; never a formula. Where several
processes train together (`nearfar.distributed`), each goes through this loop with a part of every batch.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import nearfar
from nearfar import distributed
from nearfar.augment import Augment, Draws, normalize
from nearfar.captions import TowersLoss
from nearfar.checkpoint import load_checkpoint, save_checkpoint
from nearfar.data import ImageSet
from nearfar.distributed.part import Part, part_of
from nearfar.encoders.shared import Shared, embedding
from nearfar.errors import InputError
from nearfar.forecast import memory_line
from nearfar.frozen import learned_weights, rest, rest_of, still
from nearfar.gradcache import cached_step
from nearfar.headloss import HeadLoss
from nearfar.heads import Head
from nearfar.health import batch_figures, diagnose, embedding_figures, measured_batch, sample
from nearfar.inference import embed as embed_all
from nearfar.inference import fit_whitening
from nearfar.interrupts import deferred_interrupts
from nearfar.losses import Loss
from nearfar.memory import keep_freed_memory
from nearfar.optim import learning_rate, update_average
from nearfar.parts import (
    begin_encoder,
    build,
    build_loss,
    build_optimizer,
    build_projector,
    build_sampler,
    first_batch,
    learns_nothing,
    training_targets,
)
from nearfar.precision import choose_precision
from nearfar.progress import Mute, Silent, Speed, Watcher
from nearfar.recipe import Recipe
from nearfar.sampling import Batch
from nearfar.text import TextTower
from nearfar.validate import validation_figures
from nearfar.weights import advice


@dataclass
class Fitted:
    """What training leaves: the encoder in eval mode, on the processor, and how it went."""

    encoder: nn.Module
    history: list[dict[str, Any]]
    seconds: float
    images_per_second: float
    precision: str
    head: Head | None = None  # the linear classifier that `train.mode` asked for
    text: TextTower | None = None  # what turns captions into vectors, where the recipe learns from captions
    temperature: float | None = None  # and what cosines are divided by then


@dataclass
class Position:
    """Where training stands; what a checkpoint holds besides tensors."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    images: int = 0
    seconds: float = 0.0
    precision: str = "float32"
    health: dict[str, Any] = field(default_factory=dict)  # of the epoch, once its measured batch has passed
    history: list[dict[str, Any]] = field(default_factory=list)


def fit(
    recipe: Recipe,
    train: ImageSet,
    validation: ImageSet | None = None,
    *,
    start: nn.Module | None = None,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
    watcher: Watcher | None = None,
) -> Fitted:
    """Train an encoder as ``recipe`` says.

    Args:
        recipe: what to do.
        train: the images to learn from, with labels unless the recipe learns from views.
        validation: images for the figures of every epoch; never learned from.
        start: an encoder of the recipe's shape whose weights training begins with; None: random ones.
        seed: everything random follows from it.
        device: where to compute, as PyTorch names it.
        checkpoint: the file that the training state goes to after every epoch, every `train.checkpoint_seconds`, and on
            Ctrl-C or SIGTERM; None: no checkpoints.
        resume: go on from ``checkpoint``; from the beginning when there is none yet.
        on_epoch: is given the history, one row an epoch, after every epoch.
        watcher: who is told how it goes.

    Raises:
        InputError: the recipe does not fit the data, or the loss stopped being a finite number.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the checkpoint was written.
    """
    group = distributed.current()
    watcher = (watcher or Silent()) if group.first else Mute()
    started = time.perf_counter()
    keep_freed_memory()
    if learns_nothing(recipe):
        return Fitted(begin_encoder(recipe, train, start).eval(), [], time.perf_counter() - started, 0.0, "float32")
    targets = training_targets(recipe, train, seed=seed)
    classes, told = targets.classes, targets.told
    sampler = build_sampler(recipe, targets, seed=seed, names=[train.classes[number] for number in classes])
    whole, paired = len(sampler.epoch(0)), recipe.sampling.kind == "pairs"
    if group.world > 1:
        group.agree(
            {
                "version of nearfar": nearfar.__version__,
                "recipe": recipe.to_dict(),
                "seed": seed,
                "set of images": train.fingerprint(),
                "--resume": resume,
            }
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, 0))
        encoder = begin_encoder(recipe, train, start).to(device)
        loss = build_loss(recipe, encoder, train, targets).to(device)
        project = build_projector(recipe, encoder, train).to(device)
    if start is None and (said := advice(encoder, recipe.data.mean, recipe.data.std)):
        watcher.warn(said)
    augment = build("augment", Augment, recipe.augment)
    fixed = still(recipe, encoder, augment)  # what every image passes once, as it is; the rest learns
    weights = learned_weights(recipe, encoder, project)
    learned = [*weights, *loss.parameters()]
    optimizer = build_optimizer(recipe.train, weights, [*loss.parameters()])
    trained = nn.ModuleList([encoder, loss, project])
    average = copy.deepcopy(trained) if recipe.train.average else None
    modules: dict[str, nn.Module] = {"encoder": encoder, "loss": loss, "projector": project}
    modules |= {"average": average} if average is not None else {}
    mean, std = recipe.data.mean, recipe.data.std

    position = Position(precision="float32" if fixed is not None else recipe.train.precision)
    if resume and group.first and checkpoint is not None and checkpoint.exists():
        kept = load_checkpoint(checkpoint, modules, optimizer)  # an earlier nearfar's may hold other things too
        position = Position(**{key: value for key, value in kept.items() if key in vars(Position())})
    elif group.first and position.precision == "auto":
        pixels = first_batch(recipe, train).to(device)
        position.precision, why = choose_precision(encoder, normalize(pixels, mean, std, channels_last=True))
        watcher.note(why)
    position = Position(**group.tell(vars(position)))
    group.spread([*(value for part in modules.values() for value in part.state_dict().values()), *optimizer.state().values()])
    points = held = None
    if fixed is not None:
        points = torch.from_numpy(embed_all(fixed, train, recipe.data, device=device)).to(device)
        if validation is not None:
            held = torch.from_numpy(embed_all(fixed, validation, recipe.data, device=device)).to(device)
    before, saved, here = position.seconds, time.perf_counter(), 0
    generator = torch.Generator()
    total = torch.tensor(position.loss_sum, dtype=torch.float64, device=device)
    epochs = recipe.train.epochs
    all_steps = max(1, round(epochs * whole))

    def elapsed() -> float:
        return before + time.perf_counter() - started

    def save() -> None:
        if checkpoint is not None and group.first:
            position.loss_sum, position.seconds = float(total), elapsed()
            save_checkpoint(checkpoint, modules, optimizer, vars(position))

    def learn(batch: Batch, part: Part) -> tuple[Tensor, Tensor]:
        """The loss of the batch, with the gradient that this process's part of it has, and the embeddings of that part."""
        optimizer.forget_gradients()
        looks = look(part, len(batch.rows) * (2 if paired else 1))
        if len(looks) > 1:
            kept: list[Tensor] = []

            def compare_all(z: Tensor) -> Tensor:
                kept.append(z)
                return compare(z, batch, part)

            value = cached_step(embed, looks, compare_all, encoder=nn.ModuleList([encoder, project]))
            return value, kept[0].detach()
        z = embed(looks[0])
        value = compare(z, batch, part)
        value.backward()
        return value, z

    def look(part: Part, count: int) -> list[tuple[Tensor, Shared | None]]:
        """The changed images of a part, by pieces that pass through the encoder at once, and what they are pieces of."""
        if points is not None:
            looks = points[torch.from_numpy(part.images).to(device)]
        else:
            draws = generator if part.alone else Draws(generator, torch.from_numpy(part.places), count)
            looks = augment(torch.from_numpy(train.images[part.images]), draws).to(device)
        pieces = looks.split([len(piece.places) for piece in part.pieces])
        return [
            (look, None if part.alone else Shared(torch.from_numpy(piece.places), piece.count, group.total))
            for look, piece in zip(pieces, part.pieces, strict=True)
        ]

    def embed(looks: tuple[Tensor, Shared | None]) -> Tensor:
        with embedding(looks[1]):
            return forward(looks[0])

    def forward(x: Tensor) -> Tensor:
        """Embeddings [n, D] of pixels, or of what of the encoder stands still has made of them."""
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=position.precision == "bfloat16"):
            z = encoder(normalize(x, mean, std, channels_last=True)) if points is None else rest(recipe, encoder)(x)
            z = project(z)
        result: Tensor = z.float()
        return result

    def compare(z: Tensor, batch: Batch, part: Part) -> Tensor:
        """The loss of the batch from the embeddings of a part."""
        if part.batch.same is not None:
            a, b = (z[torch.from_numpy(half).to(device)] for half in part.halves()) if len(part.pieces) > 1 else z.chunk(2)
            same = torch.from_numpy(part.batch.same).to(device)
            if part.alone:
                return loss.pairs(a, b, same)  # type: ignore[operator]  # takes_pairs was checked
            return distributed.add_up(loss, group, loss.pair_sums(a, b, same))
        numbers = told[batch.rows] if batch.captions is None else batch.captions
        every_label = torch.from_numpy(numbers[part.everyone]).to(device)
        if part.alone:
            return loss(z, every_label)
        labels = every_label[part.offset : part.offset + len(z)]
        return distributed.loss_over_processes(loss, group, z, labels, every_label, part.counts)

    if isinstance(loss, TowersLoss) and loss.note:
        watcher.note(loss.note)
    images = sampler.epoch(0).batch_size * (2 if paired else 1)
    numbers = len(classes) if targets.captions is None else len(targets.captions.distinct)
    if points is None and group.first:
        few = first_batch(recipe, train).to(device)
        watcher.note(memory_line(recipe, encoder, loss, forward, few, images, numbers, group.world))
    with torch.random.fork_rng(devices=[]), deferred_interrupts(several=group.world > 1) as interrupted:
        for epoch in range(position.epoch, -(-all_steps // whole)):
            plan = sampler.epoch(epoch).head(all_steps - epoch * whole)
            steps = len(plan)
            encoder.train(recipe.train.mode != "linear")
            project.train()
            shown, speed = time.perf_counter(), Speed()
            for number in range(position.batch, steps):
                step = epoch * whole + number
                reseed(mix(seed, 2 * step + 1), device)
                generator.manual_seed(mix(seed, 2 * step + 2))
                optimizer.rate = learning_rate(recipe.train, epoch, step, all_steps)

                batch = plan.batch(number)
                part = part_of(batch, rank=group.rank, world=group.world, chunk=recipe.train.chunk if points is None else 0)
                with _where(epoch, step, checkpoint):
                    value, z = learn(batch, part)
                stop = group.reduce(learned, interrupted(), whole=part.alone)
                if recipe.train.clip:
                    nn.utils.clip_grad_norm_(learned, recipe.train.clip)
                optimizer.step()
                if average is not None:
                    update_average(average, trained, min(recipe.train.average, (1 + step) / (10 + step)))

                if number >= measured_batch(plan) and not position.health:
                    z = distributed.in_order(z.detach(), part, group)
                    position.health = _health(loss, z, told, batch) | batch_figures(plan, told)
                total += value.detach().double() * len(batch.rows)
                position.batch, position.images, here = number + 1, position.images + len(batch.rows), here + 1
                speed.add(len(batch.rows) * (2 if paired else 1))
                now = time.perf_counter()
                if now - shown > 0.2:
                    shown = now
                    mean_loss = _finite(float(total) / position.images, epoch, step, recipe, checkpoint)
                    left = (now - started) / here * (all_steps - step - 1)
                    watcher.step(epoch + 1, epochs, number + 1, steps, mean_loss, speed.value(), left)
                if number + 1 < steps and (stop or now - saved > recipe.train.checkpoint_seconds):
                    _finite(float(total), epoch, step, recipe, checkpoint)
                    save()
                    saved = time.perf_counter()
                    if stop:
                        group.wait()
                        raise KeyboardInterrupt

            mean_loss = _finite(float(total) / max(1, position.images), epoch, step, recipe, checkpoint)
            row: dict[str, Any] = {
                "epoch": epoch + 1 if steps == whole else epoch + steps / whole,
                "loss": mean_loss,
                "learning_rate": optimizer.rate,
                "spread": position.health["spread"],
                "images_per_second": round(speed.value(), 1),
                "health": position.health,
            }
            if warning := diagnose(position.history, row, within_batch=loss.takes_keys):
                row["warning"] = warning
                watcher.warn(warning["message"])
            if validation is not None and group.first:
                judged, by, beyond = trained if average is None else average
                z_held = None if held is None else rest_of(recipe, judged, held)
                row["validation"] = validation_figures(
                    judged, by, recipe, validation, classes, device=device, z=z_held, projector=beyond
                )
            row["seconds"] = round(elapsed(), 3)
            position.history.append(row)
            position.epoch, position.batch, position.images, position.health = epoch + 1, 0, 0, {}
            total.zero_()
            watcher.epoch(row, epochs)
            if on_epoch is not None and group.first:
                on_epoch(position.history)
            save()
            saved = time.perf_counter()
            if stop and step + 1 < all_steps:
                group.wait()
                raise KeyboardInterrupt

    final, by, _ = trained if average is None else average
    if recipe.train.mode != "linear":
        fit_whitening(final, train, recipe.data, seed=seed, device=device)
    head = by.head([train.classes[number] for number in classes]) if isinstance(by, HeadLoss) else None
    pace = float(np.median([row["images_per_second"] for row in position.history]))
    texts = by.left() if isinstance(by, TowersLoss) else (None, None)
    return Fitted(final.cpu().eval(), position.history, elapsed(), pace, position.precision, head, *texts)


def _health(loss: Loss, z: Tensor, labels: np.ndarray, batch: Batch) -> dict[str, Any]:
    """How the embeddings of a batch lie, and what share of what the loss compares is not zero yet."""
    chosen = sample(len(batch.rows))
    rows = torch.from_numpy(chosen).to(z.device)
    if batch.partners is None or batch.same is None:
        own = labels[batch.rows[chosen]]
        active = loss.active(z[rows], torch.from_numpy(own).to(z.device))
        return embedding_figures(z[rows], own) | {"active": active}
    a, b = (half[rows] for half in z.chunk(2))
    active = loss.active_pairs(a, b, torch.from_numpy(batch.same[chosen]).to(z.device))
    own = labels[np.concatenate([batch.rows[chosen], batch.partners[chosen]])]
    return embedding_figures(torch.cat([a, b]), own) | {"active": active}


def mix(seed: int, number: int) -> int:
    """A seed for the ``number``-th random event of a run, spread over 63 bits (SplitMix64; Steele, Lea, Flood 2014)."""
    value = (seed * 0x9E3779B97F4A7C15 + (number + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) >> 1


def reseed(seed: int, device: str) -> None:
    """Do what `torch.manual_seed` does for the devices in use; for all others it notes a stack trace at every call."""
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        torch.cuda.manual_seed_all(seed)


@contextlib.contextmanager
def _where(epoch: int, step: int, checkpoint: Path | None) -> Iterator[None]:
    """Say in which step a loss refused the embeddings, most often because they are no longer finite."""
    try:
        yield
    except InputError as error:
        raise InputError(f"training stopped in epoch {epoch + 1}, step {step + 1}: {error}{_kept(checkpoint)}") from error


def _finite(loss: float, epoch: int, step: int, recipe: Recipe, checkpoint: Path | None) -> float:
    if np.isfinite(loss):
        return loss
    raise InputError(
        f"the loss became {loss} by epoch {epoch + 1}, step {step + 1}; try train.learning_rate="
        f"{recipe.train.learning_rate / 10:g}, train.clip=1, or train.precision=float32{_kept(checkpoint)}"
    )


def _kept(checkpoint: Path | None) -> str:
    return f"; the last whole checkpoint is {checkpoint}" if checkpoint is not None and checkpoint.exists() else ""
