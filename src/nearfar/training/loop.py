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
from nearfar.augment import Augment, normalize
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.heads import Head
from nearfar.inference import embed, fit_whitening
from nearfar.interrupts import deferred_interrupts
from nearfar.losses import Loss
from nearfar.memory import IMAGES_TRIED, keep_freed_memory
from nearfar.recipe import Recipe
from nearfar.sampling import Batch
from nearfar.text import TextTower
from nearfar.training.captions import TowersLoss
from nearfar.training.checkpoint import load_checkpoint, save_checkpoint
from nearfar.training.forecast import images_at_once, memory_line
from nearfar.training.frozen import learned_weights, rest_of, still
from nearfar.training.headloss import HeadLoss
from nearfar.training.health import batch_figures, diagnose, embedding_figures, measured_batch, sample
from nearfar.training.optim import learning_rate, update_average
from nearfar.training.parts import (
    begin_encoder,
    build,
    build_loss,
    build_optimizer,
    build_projector,
    build_sampler,
    first_images,
    learns_nothing,
    training_targets,
)
from nearfar.training.precision import choose_precision
from nearfar.training.progress import Mute, Silent, Speed, Watcher
from nearfar.training.seeds import mix
from nearfar.training.step import Step
from nearfar.training.validate import validation_figures
from nearfar.training.weights import advice


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
    started = time.perf_counter()
    keep_freed_memory()
    if learns_nothing(recipe):
        return Fitted(begin_encoder(recipe, train, start).eval(), [], time.perf_counter() - started, 0.0, "float32")
    training = _Training(
        recipe,
        train,
        validation,
        start=start,
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        resume=resume,
        on_epoch=on_epoch,
        watcher=watcher,
        started=started,
    )
    training.run()
    return training.result()


class _Training:
    """What learns, and how far it has come. The arguments are those of `fit`, and when it ``started``."""

    def __init__(
        self,
        recipe: Recipe,
        train: ImageSet,
        validation: ImageSet | None,
        *,
        start: nn.Module | None,
        seed: int,
        device: str,
        checkpoint: Path | None,
        resume: bool,
        on_epoch: Callable[[list[dict[str, Any]]], None] | None,
        watcher: Watcher | None,
        started: float,
    ) -> None:
        self.recipe, self.train, self.validation = recipe, train, validation
        self.seed, self.device, self.checkpoint, self.on_epoch = seed, device, checkpoint, on_epoch
        self.group = distributed.current()
        self.watcher = (watcher or Silent()) if self.group.first else Mute()
        self.started = started
        self.targets = training_targets(recipe, train, seed=seed)
        self.names = [train.classes[number] for number in self.targets.classes]
        self.sampler = build_sampler(recipe, self.targets, seed=seed, names=self.names)
        first = self.sampler.epoch(0)
        self.whole = len(first)  # steps of a whole epoch
        self.images = len(first.batch(0).images())  # of a batch, those of all processes
        self.steps = max(1, round(recipe.train.epochs * self.whole))
        if self.group.world > 1:
            self.group.agree(
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
            self.encoder = begin_encoder(recipe, train, start).to(device)
            self.loss = build_loss(recipe, self.encoder, train, self.targets).to(device)
            self.project = build_projector(recipe, self.encoder, train).to(device)
        if start is None and (said := advice(self.encoder, recipe.data.mean, recipe.data.std)):
            self.watcher.warn(said)
        self.augment = build("augment", Augment, recipe.augment)
        weights = learned_weights(recipe, self.encoder, self.project)
        self.learned = [*weights, *self.loss.parameters()]
        self.optimizer = build_optimizer(recipe.train, weights, [*self.loss.parameters()])
        self.trained = nn.ModuleList([self.encoder, self.loss, self.project])
        self.average = copy.deepcopy(self.trained) if recipe.train.average else None
        fixed = still(recipe, self.encoder, self.augment)  # what every image passes once, as it is; the rest learns
        self.position = self._take_up(resume, "float32" if fixed is not None else recipe.train.precision)
        points = self.held = None
        if fixed is not None:
            points = torch.from_numpy(embed(fixed, train, recipe.data, device=device)).to(device)
            if validation is not None:
                self.held = torch.from_numpy(embed(fixed, validation, recipe.data, device=device)).to(device)
        self.step = Step(
            recipe,
            train,
            self.targets.told,
            augment=self.augment,
            encoder=self.encoder,
            project=self.project,
            loss=self.loss,
            precision=self.position.precision,
            points=points,
            group=self.group,
            seed=seed,
            device=device,
        )
        self.before, self.saved, self.steps_here = self.position.seconds, time.perf_counter(), 0
        self.loss_sum = torch.tensor(self.position.loss_sum, dtype=torch.float64, device=device)

    def run(self) -> None:
        """All epochs from the position on."""
        self._say_what_it_takes()
        with torch.random.fork_rng(devices=[]), deferred_interrupts(several=self.group.world > 1) as interrupted:
            for epoch in range(self.position.epoch, -(-self.steps // self.whole)):
                self._epoch(epoch, interrupted)

    def result(self) -> Fitted:
        """What has been learned, whitened where that is asked for."""
        final, by, _ = self.trained if self.average is None else self.average
        if self.recipe.train.mode != "linear":
            fit_whitening(final, self.train, self.recipe.data, seed=self.seed, device=self.device)
        head = by.head(self.names) if isinstance(by, HeadLoss) else None
        pace = float(np.median([row["images_per_second"] for row in self.position.history]))
        texts = by.left() if isinstance(by, TowersLoss) else (None, None)
        return Fitted(final.cpu().eval(), self.position.history, self._elapsed(), pace, self.position.precision, head, *texts)

    def _take_up(self, resume: bool, precision: str) -> Position:
        """Where to go on from: the checkpoint, or the beginning; the same in all processes, as are all weights."""
        recipe, group, modules, position = self.recipe, self.group, self._modules(), Position(precision=precision)
        if resume and group.first and self.checkpoint is not None and self.checkpoint.exists():
            kept = load_checkpoint(self.checkpoint, modules, self.optimizer)  # an earlier nearfar's may hold other things too
            position = Position(**{key: value for key, value in kept.items() if key in vars(Position())})
        elif group.first and precision == "auto":
            pixels = first_images(self.train, images_at_once(recipe, self.images, group.world)).to(self.device)
            pixels = normalize(pixels, recipe.data.mean, recipe.data.std, channels_last=True)
            position.precision, why = choose_precision(self.encoder, pixels)
            self.watcher.note(why)
        position = Position(**group.tell(vars(position)))
        tensors = (value for part in modules.values() for value in part.state_dict().values())
        group.spread([*tensors, *self.optimizer.state().values()])
        return position

    def _say_what_it_takes(self) -> None:
        if isinstance(self.loss, TowersLoss) and self.loss.note:
            self.watcher.note(self.loss.note)
        if self.step.points is None and self.group.first:
            numbers = len(self.targets.classes) if self.targets.captions is None else len(self.targets.captions.distinct)
            few, forward = first_images(self.train, IMAGES_TRIED).to(self.device), self.step.forward
            line = memory_line(self.recipe, self.encoder, self.loss, forward, few, self.images, numbers, self.group.world)
            self.watcher.note(line)

    def _epoch(self, epoch: int, interrupted: Callable[[], bool]) -> None:
        """One epoch, or what the position and the length of the run leave of it."""
        recipe, group, position = self.recipe, self.group, self.position
        plan = self.sampler.epoch(epoch).head(self.steps - epoch * self.whole)
        self.encoder.train(recipe.train.mode != "linear")
        self.project.train()
        shown, speed = time.perf_counter(), Speed()
        for number in range(position.batch, len(plan)):
            step = epoch * self.whole + number
            self.optimizer.rate = learning_rate(recipe.train, epoch, step, self.steps)
            batch = plan.batch(number)
            chunk = recipe.train.chunk if self.step.points is None else 0
            part = distributed.part_of(batch, rank=group.rank, world=group.world, chunk=chunk)
            self.optimizer.forget_gradients()
            with _where(epoch, step, self.checkpoint):
                value, z = self.step.learn(batch, part, step)
            stop = group.reduce(self.learned, interrupted(), whole=part.alone)
            if recipe.train.clip:
                nn.utils.clip_grad_norm_(self.learned, recipe.train.clip)
            self.optimizer.step()
            if self.average is not None:
                update_average(self.average, self.trained, min(recipe.train.average, (1 + step) / (10 + step)))

            if number >= measured_batch(plan) and not position.health:
                z = distributed.in_order(z.detach(), part, group)
                figures = _health(self.loss, z, self.targets.told, batch)
                position.health = figures | batch_figures(plan, self.targets.told)
            self.loss_sum += value.detach().double() * len(batch.rows)
            position.batch, position.images = number + 1, position.images + len(batch.rows)
            self.steps_here += 1
            speed.add(len(batch.rows) * (1 if batch.partners is None else 2))
            now = time.perf_counter()
            if now - shown > 0.2:
                shown = now
                left = (now - self.started) / self.steps_here * (self.steps - step - 1)
                mean_loss = self._mean_loss(epoch, step)
                self.watcher.step(epoch + 1, recipe.train.epochs, number + 1, len(plan), mean_loss, speed.value(), left)
            if number + 1 < len(plan) and (stop or now - self.saved > recipe.train.checkpoint_seconds):
                self._mean_loss(epoch, step)
                self._save()
                self._stop_if(stop)
        self._close(epoch, len(plan), speed.value())
        self._stop_if(stop and step + 1 < self.steps)

    def _close(self, epoch: int, steps: int, pace: float) -> None:
        """What follows an epoch of so many ``steps``: its figures, told and kept, and a checkpoint."""
        position = self.position
        mean_loss = self._mean_loss(epoch, epoch * self.whole + steps - 1)
        row: dict[str, Any] = {
            "epoch": epoch + 1 if steps == self.whole else epoch + steps / self.whole,
            "loss": mean_loss,
            "learning_rate": self.optimizer.rate,
            "spread": position.health["spread"],
            "images_per_second": round(pace, 1),
            "health": position.health,
        }
        if warning := diagnose(position.history, row, within_batch=self.loss.takes_keys):
            row["warning"] = warning
            self.watcher.warn(warning["message"])
        if self.validation is not None and self.group.first:
            row["validation"] = self._judge(self.validation)
        row["seconds"] = round(self._elapsed(), 3)
        position.history.append(row)
        position.epoch, position.batch, position.images, position.health = epoch + 1, 0, 0, {}
        self.loss_sum.zero_()
        self.watcher.epoch(row, self.recipe.train.epochs)
        if self.on_epoch is not None and self.group.first:
            self.on_epoch(position.history)
        self._save()

    def _judge(self, validation: ImageSet) -> dict[str, Any]:
        encoder, loss, project = self.trained if self.average is None else self.average
        z = None if self.held is None else rest_of(self.recipe, encoder, self.held)
        classes = self.targets.classes
        return validation_figures(encoder, loss, self.recipe, validation, classes, device=self.device, z=z, projector=project)

    def _modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds the tensors of, by name."""
        modules: dict[str, nn.Module] = {"encoder": self.encoder, "loss": self.loss, "projector": self.project}
        return modules if self.average is None else modules | {"average": self.average}

    def _save(self) -> None:
        if self.checkpoint is not None and self.group.first:
            self.position.loss_sum, self.position.seconds = float(self.loss_sum), self._elapsed()
            save_checkpoint(self.checkpoint, self._modules(), self.optimizer, vars(self.position))
        self.saved = time.perf_counter()

    def _stop_if(self, asked: bool) -> None:
        if asked:
            self.group.wait()
            raise KeyboardInterrupt

    def _elapsed(self) -> float:
        return self.before + time.perf_counter() - self.started

    def _mean_loss(self, epoch: int, step: int) -> float:
        """The mean loss of the epoch so far.

        Raises:
            InputError: it is not a finite number.
        """
        loss = float(self.loss_sum) / max(1, self.position.images)
        if np.isfinite(loss):
            return loss
        raise InputError(
            f"the loss became {loss} by epoch {epoch + 1}, step {step + 1}; try train.learning_rate="
            f"{self.recipe.train.learning_rate / 10:g}, train.clip=1, or train.precision=float32{_kept(self.checkpoint)}"
        )


def _health(loss: Loss, z: Tensor, labels: np.ndarray, batch: Batch) -> dict[str, Any]:
    """How the embeddings of a batch lie, and what share of what the loss compares is not zero yet."""
    chosen = sample(len(batch.rows))
    if batch.partners is None or batch.same is None:
        rows, own = torch.from_numpy(chosen).to(z.device), labels[batch.rows[chosen]]
        active = loss.active(z[rows], torch.from_numpy(own).to(z.device))
        return embedding_figures(z[rows], own) | {"active": active}
    images, *both = batch.look()
    sides = np.stack(both)[:, chosen]
    a, b = (z[torch.from_numpy(side).to(z.device)] for side in sides)
    active = loss.active_pairs(a, b, torch.from_numpy(batch.same[chosen]).to(z.device))
    places = np.unique(sides)
    return embedding_figures(z[torch.from_numpy(places).to(z.device)], labels[images[places]]) | {"active": active}


@contextlib.contextmanager
def _where(epoch: int, step: int, checkpoint: Path | None) -> Iterator[None]:
    """Say in which step a loss refused the embeddings, most often because they are no longer finite."""
    try:
        yield
    except InputError as error:
        raise InputError(f"training stopped in epoch {epoch + 1}, step {step + 1}: {error}{_kept(checkpoint)}") from error


def _kept(checkpoint: Path | None) -> str:
    return f"; the last whole checkpoint is {checkpoint}" if checkpoint is not None and checkpoint.exists() else ""
