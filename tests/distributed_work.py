"""What the processes of the tests do; `nearfar.distributed.launch` and `nearfar.processes` call it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from losses.cases import CASES, CLASSES, DIM, labels, rows
from samples import TINY, shapes
from torch import Tensor

from nearfar import distributed
from nearfar.distributed import Group, part_of
from nearfar.doctor.proof import trials
from nearfar.encoders import UnitNorm
from nearfar.errors import InputError, ProcessLostError
from nearfar.files import write_json
from nearfar.losses import LOSSES
from nearfar.processes import Say
from nearfar.recipe import Recipe, TrainSection
from nearfar.sampling import Batch
from nearfar.training.loop import fit
from nearfar.training.optim import Optimizer

SGD = {"train.optimizer": "sgd", "train.learning_rate": 0.05, "train.epochs": 5}
CONV = {"encoder": {"kind": "conv5", "dim": 8, "dropout": 0.3}, "data.size": [16, 16], **SGD, "train.learning_rate": 0.01}
VIEWS = {"sampling.kind": "views", "augment.degrees": 20, "augment.brightness": 0.3, "train.projector": [16, 8]}
# 120 images in batches of 30: 20 steps. Batches of 17 leave one of a single image for two processes.
TASKS: dict[str, dict[str, Any]] = {
    "supcon": SGD,
    "uneven": {**SGD, "sampling.batch_size": 17},
    "batch-norm": {**CONV, "augment.shift": 1, "augment.noise": 0.1, "train.average": 0.9},
    "chunks": {**CONV, "train.chunk": 11, "augment.degrees": 20},
    "pairs": {**SGD, "sampling.kind": "pairs", "loss.kind": "contrastive", "train.chunk": 16},
    "linked": {
        **CONV,
        "sampling.kind": "pairs",
        "sampling.linked": 4,
        "loss.kind": "contrastive",
        "augment.noise": 0.1,
        "train.chunk": 40,
    },
    "views": {**SGD, **VIEWS, "loss.kind": "vicreg", "train.learning_rate": 0.01},
    "classes": {
        **SGD,
        "sampling.kind": "class-batches",
        "sampling.classes": 3,
        "sampling.per_class": 9,
        "loss.kind": "arcface",
        "train.learning_rate": 0.01,
    },
    "muon": {"train.optimizer": "muon", "train.epochs": 5, "loss.kind": "proxy-anchor", "train.clip": 1.0},
    "adam": {"train.epochs": 5},
}


def recipe_of(changes: dict[str, Any]) -> Recipe:
    """The tiny recipe with changes; ``encoder`` may be a whole section."""
    tree = {**TINY, "encoder": changes.get("encoder", TINY["encoder"])}
    return Recipe.from_dict(tree).with_changes({key: value for key, value in changes.items() if key != "encoder"})


def trained(changes: dict[str, Any], **arguments: Any) -> list[float]:
    """All weights and statistics after training on the shapes."""
    recipe = recipe_of(changes)
    fitted = fit(recipe, shapes(120, size=recipe.data.size[0] if recipe.data.size else 12), seed=1, **arguments)
    return torch.cat([value.reshape(-1) for value in fitted.encoder.state_dict().values()]).tolist()


def loss_of_everyone(group: Group, number: int, count: int, counts: list[int]) -> list[float]:
    """Value, gradient of all rows and of what the loss learns, for a case of the losses' own tests."""
    loss = CASES[number].make()
    z, y = rows(count), labels(count)
    start = sum(counts[: group.rank])
    own = slice(start, start + counts[group.rank])
    part = z[own].clone().requires_grad_()
    torch.manual_seed(3)
    value = distributed.loss_over_processes(loss, group, part, y[own], y, counts)
    value.backward()
    return joint(group, value, part, counts, loss)


def pairs_of_everyone(group: Group, name: str, count: int, counts: list[int]) -> list[float]:
    """The same for explicit pairs."""
    loss = LOSSES[name]()
    a, b, same = rows(count), rows(count, 5), labels(count) == labels(count, 5)
    start = sum(counts[: group.rank])
    own = slice(start, start + counts[group.rank])
    part = a[own].clone().requires_grad_()
    value = distributed.add_up(loss, group, loss.pair_sums(part, b[own], same[own]))
    value.backward()
    return joint(group, value, part, counts, loss)


def joint(group: Group, value: Tensor, part: Tensor, counts: list[int], loss: torch.nn.Module) -> list[float]:
    assert part.grad is not None
    group.reduce(loss.parameters())
    learned = [parameter.grad.reshape(-1) for parameter in loss.parameters() if parameter.grad is not None]
    return torch.cat([value.detach()[None], group.gather(part.grad, counts).reshape(-1), *learned]).tolist()


@contextmanager
def counted() -> Iterator[list[tuple[str, int]]]:
    """What is sent while it lasts: the name of the exchange, and how many numbers it brings together."""
    from nearfar.distributed.carriers import Board, Wires

    seen: list[tuple[str, int]] = []
    names = [(home, name) for home in (Board, Wires) for name in ("total", "gather", "scatter")] + [(dist, "broadcast")]
    kept = {(home, name): getattr(home, name) for home, name in names}

    def wrap(home: Any, name: str) -> Any:
        def call(*tensors: Any, **options: Any) -> Any:
            seen.append((name, max(one.numel() for one in tensors if isinstance(one, Tensor))))
            return kept[home, name](*tensors, **options)

        return call

    for home, name in names:
        setattr(home, name, wrap(home, name))
    try:
        yield seen
    finally:
        for home, name in names:
            setattr(home, name, kept[home, name])


def exchanges(group: Group, kind: str) -> list[tuple[str, int]]:
    """What one step of a loss sends, forward and backward and its gradients."""
    home = LOSSES[kind]
    torch.manual_seed(0)
    loss = home(**({"classes": CLASSES, "dim": DIM} if home.needs_classes else {}))
    weight = torch.nn.Parameter(torch.eye(DIM))
    z, y = rows(40, dtype=torch.float32), labels(40)
    own = slice(20 * group.rank, 20 * group.rank + 20)
    with counted() as seen:
        part = torch.nn.functional.normalize(z[own] @ weight, dim=1)
        distributed.loss_over_processes(loss, group, part, y[own], y, [20, 20]).backward()
        group.reduce([weight, *loss.parameters()])
    return seen


def interrupted(group: Group, path: str, step: int) -> str:
    """Train until SIGTERM comes to process 1 in a step; the checkpoint is at ``path``."""
    home, count = LOSSES["supcon"], 0

    class Interrupting(home):  # type: ignore[valid-type,misc]
        def sums(self, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal count
            count += 1
            if count == step and group.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            result: Tensor = super().sums(*args, **kwargs)
            return result

    LOSSES["supcon"] = Interrupting
    try:
        trained(SGD, checkpoint=Path(path) if group.first else None)
    except KeyboardInterrupt:
        return f"interrupted in step {count}"
    finally:
        LOSSES["supcon"] = home
    return "finished"


def everything(asked: dict[str, Any], group: Group) -> dict[str, Any]:
    """All that the tests look at, so that processes are started once."""
    found: dict[str, Any] = {"tasks": {name: trained(TASKS[name]) for name in asked["tasks"]}}
    found["losses"] = {str(number): loss_of_everyone(group, number, **asked["rows"]) for number in asked["losses"]}
    found["pairs"] = {name: pairs_of_everyone(group, name, **asked["rows"]) for name in asked["pairs"]}
    found["exchanges"] = {kind: exchanges(group, kind) for kind in asked["exchanges"]}
    found["interrupted"] = interrupted(group, asked["checkpoint"], 7)
    found["refused"] = {what: refused(group, what) for what in ("recipe", "images", "seed")}
    if asked.get("one dies"):
        write_json(Path(asked["one dies"]) / f"{group.rank}.json", found)
        group.wait()
        if group.rank == 1:
            os._exit(9)
        group.wait()
    return found


def everything_till_one_dies(asked: dict[str, Any], say: Say) -> None:
    """Everything, and how process 0 notices that process 1 is gone."""
    try:
        with distributed.joined("cpu") as group:
            everything(asked, group)
    except ProcessLostError as error:
        write_json(Path(asked["one dies"]) / "noticed.json", {"said": str(error)})
        raise


def threads(asked: None, say: Say) -> list[int]:
    """With how many a process computes while it trains with others, and after."""
    with distributed.joined("cpu"):
        during = torch.get_num_threads()
    return [during, torch.get_num_threads()]


def code_of_the_other(folder: str, say: Say) -> None:
    """Process 1 has something to say; with which code does process 0 end?"""
    try:
        with distributed.joined("cpu") as group:
            ends("error", group)
    except InputError:
        pass
    except SystemExit as error:
        write_json(Path(folder) / f"{os.environ['RANK']}.json", {"code": error.code})


def refused(group: Group, what: str) -> str:
    """How processes that were started with another recipe, seed or other images refuse."""
    recipe = recipe_of({**SGD, "loss.temperature": 0.2 + (0.1 * group.rank if what == "recipe" else 0)})
    images = shapes(120, seed=group.rank if what == "images" else 0)
    try:
        fit(recipe, images, seed=group.rank if what == "seed" else 1)
    except InputError as error:
        return str(error)
    return ""


def ends(how: str, group: Group) -> None:
    """Process 1 has something to say, or is interrupted."""
    group.wait()
    if group.rank == 1:
        raise InputError("what process 1 says") if how == "error" else KeyboardInterrupt
    group.wait()


def resumed(path: str, group: Group) -> list[float]:
    return trained(SGD, checkpoint=Path(path) if group.first else None, resume=True)


def by_every_loss(steps: int, group: Group) -> dict[str, list[float]]:
    """Weights of a small net after some steps by each loss, in float32; pairs of rows where a loss can do no other."""
    found = {}
    for kind, home in LOSSES.items():
        torch.manual_seed(0)
        loss = home(**({"classes": 5, "dim": 8} if home.needs_classes else {}))
        net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8), UnitNorm())
        learned = [*net.parameters(), *loss.parameters()]
        # At 0.01 a step by the circle loss, whose scale is 256, makes 9e-5 of what rounding does in one process alone.
        optimizer = Optimizer(TrainSection(optimizer="sgd", learning_rate=0.003, momentum=0.9), learned)
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randn(43, 20, generator=generator), torch.randint(0, 5, (43,), generator=generator)
            part = part_of(Batch(np.arange(43)), rank=group.rank, world=group.world)
            own, every = torch.from_numpy(part.batch.rows), torch.from_numpy(part.everyone)
            optimizer.forget_gradients()
            torch.manual_seed(step)
            z = net(x[own])
            if group.world == 1:
                loss(z, y).backward()
            else:
                distributed.loss_over_processes(loss, group, z, y[own], y[every], part.counts).backward()
            group.reduce(learned)
            optimizer.step()
        found[kind] = torch.cat([parameter.detach().reshape(-1) for parameter in learned]).tolist()
    return found


def averaged_trials(asked: dict[str, Any], group: Group) -> list[list[float]]:
    """The doctor's trials, the first with the mistake that gradients are averaged in place of added up."""
    right = Group.reduce

    def averaged(self: Group, parameters: Any, flag: bool = False, *, whole: bool = False) -> bool:
        return right(self, parameters, flag, whole=True)

    Group.reduce = averaged  # type: ignore[method-assign]
    try:
        wrong = trials({"recipes": asked["recipes"][:1]}, group)
    finally:
        Group.reduce = right  # type: ignore[method-assign]
    return wrong + trials({"recipes": asked["recipes"][1:]}, group)
