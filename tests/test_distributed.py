"""Several processes against one: the same loss, the same gradients, the same weights; and how they end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_work import SGD, TASKS, by_every_loss, recipe_of, trained
from losses.cases import CASES, labels, rows
from samples import shapes

from nearfar.augment import Augment, Draws
from nearfar.distributed import ALONE, Group
from nearfar.distributed.group import together
from nearfar.distributed.joining import place
from nearfar.distributed.launch import launch
from nearfar.distributed.part import check_shares, part_of
from nearfar.encoders.dropout import Dropout
from nearfar.encoders.norm import BatchNorm, VectorNorm
from nearfar.encoders.shared import Shared, embedding
from nearfar.errors import InputError, ProcessLostError
from nearfar.files import read_json
from nearfar.losses import LOSSES
from nearfar.memory import saved_bytes
from nearfar.processes import supervise
from nearfar.sampling import Batch
from nearfar.training.parts import check

ROWS = {"count": 11, "counts": [6, 5]}
PAIRED = [name for name, home in LOSSES.items() if home.takes_pairs]
TILED = ["contrastive", "cosine-mse", "dcl", "dclw", "info-nce", "nt-xent", "siglip", "supcon"]
QUICK = ["supcon", "uneven", "batch-norm", "linked"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, started once; where they left a checkpoint, and how it was told that one died at the end."""
    folder = tmp_path_factory.mktemp("two")
    asked = {
        "tasks": QUICK,
        "losses": list(range(len(CASES))),
        "pairs": PAIRED,
        "rows": ROWS,
        "exchanges": [*TILED, "triplet", "arcface", "vicreg", "proxy-anchor"],
        "checkpoint": str(folder / "latest.safetensors"),
        "one dies": str(folder),
    }
    with pytest.raises(ProcessLostError) as lost:
        supervise("distributed_work:everything_till_one_dies", asked, processes=2, threads=1)
    noticed = {"lost": str(lost.value), "noticed": read_json(folder / "noticed.json")["said"]}
    return [{**read_json(folder / f"{rank}.json"), "folder": folder, **noticed} for rank in range(2)]


def off(found: list[float], wanted: list[float]) -> float:
    """The relative difference of two lists of numbers."""
    a, b = torch.tensor(found, dtype=torch.float64), torch.tensor(wanted, dtype=torch.float64)
    return float((a - b).norm() / b.norm())


# ---- parts of a batch


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("chunk", [0, 7, 8])
@pytest.mark.parametrize(("paired", "linked"), [(False, 1), (True, 1), (True, 3)])
def test_parts_are_the_batch_whatever_the_number_of_processes(world: int, chunk: int, paired: bool, linked: int) -> None:
    partners = None if not paired else np.arange(200, 231) if linked == 1 else np.arange(101, 132)
    batch = Batch(np.arange(100, 131), partners, np.arange(31) % 2 == 0 if paired else None, linked=linked)
    parts = [part_of(batch, rank=rank, world=world, chunk=chunk) for rank in range(world)]
    one = part_of(batch, chunk=chunk)
    if parts[0].alone:
        assert world == 1 or min(len(piece.places) for piece in one.pieces) < world * (2 if paired else 1) * linked
        return
    joined = np.concatenate([part.batch.rows for part in parts])
    assert np.array_equal(np.sort(joined), batch.rows)
    assert np.array_equal(joined, batch.rows[parts[0].everyone])
    assert max(parts[0].counts) - min(parts[0].counts) <= len(one.pieces) * (2 * linked - 1)
    every = batch.images()
    assert sum(parts[0].embedded) == len(every) == sum(piece.count for piece in one.pieces)
    for rank, part in enumerate(parts):
        assert part.offset == sum(part.counts[:rank])
        assert len(part.batch.rows) == part.counts[rank]
        assert len(part.images) == part.embedded[rank]
        assert np.array_equal(every[part.places], part.images)
        if paired:
            first, second = part.sides
            assert np.array_equal(part.images[first], part.batch.rows)
            assert np.array_equal(part.images[second], part.batch.partners)
    # A piece is the same images for any number of processes, each of which knows its place there.
    starts = np.zeros(world, dtype=int)
    for number, piece in enumerate(one.pieces):
        whole = np.full(piece.count, -1)
        for rank, part in enumerate(parts):
            mine = part.pieces[number]
            assert mine.count == piece.count
            assert len(mine.places) <= chunk or not chunk
            whole[mine.places] = part.images[starts[rank] : starts[rank] + len(mine.places)]
            starts[rank] += len(mine.places)
        place_in_one = sum(earlier.count for earlier in one.pieces[:number])
        assert np.array_equal(whole, one.images[place_in_one : place_in_one + piece.count])


def test_a_batch_with_fewer_rows_than_processes_is_done_by_each() -> None:
    part = part_of(Batch(np.arange(3)), rank=2, world=4)
    assert part.alone
    assert part.offset == 0
    assert np.array_equal(part.batch.rows, np.arange(3))
    with pytest.raises(InputError, match="a batch has 3 images, fewer than the 4 processes"):
        check_shares(3, 0, 4, paired=False)
    with pytest.raises(InputError, match=r"too few images for 4 processes; set at least train\.chunk=16"):
        check_shares(30, 7, 4, paired=True)
    check_shares(30, 16, 4, paired=True)
    check_shares(1, 0, 1, paired=False)
    with pytest.raises(InputError, match=r"12 pairs, 8 of them linked, fewer than the 4 processes"):
        check_shares(12, 0, 4, paired=True, linked=8)
    with pytest.raises(InputError, match=r"8 linked pairs can have 16 images; set at least train\.chunk=16, or a smaller"):
        check_shares(32, 12, 1, paired=True, linked=8)


# ---- what is random, and statistics over processes, without any process


def test_images_of_a_part_are_changed_as_in_the_whole_batch() -> None:
    x = torch.randint(0, 256, (9, 3, 12, 12), dtype=torch.uint8)
    change = Augment(
        shift=2, flip=True, degrees=20, scale=0.1, elastic=0.1, crop=0.5, brightness=0.2, contrast=0.2, gamma=0.3,
        saturation=0.2, hue=0.1, grey=0.3, solarise=0.3, blur=0.2, noise=0.1, erase=0.3,
    )  # fmt: skip
    whole = change(x, torch.Generator().manual_seed(4))
    places = torch.tensor([7, 2, 3])
    some = change(x[places], Draws(torch.Generator().manual_seed(4), places, 9))
    torch.testing.assert_close(some, whole[places])


def test_dropout_of_a_part_is_that_of_the_whole_batch() -> None:
    layer, x = Dropout(0.4), torch.ones(6, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(1)
    whole = layer(x)
    torch.manual_seed(1)
    with embedding(Shared(torch.tensor([4, 1]), 6, lambda values: values)):
        some = layer(x[[4, 1]].contiguous(memory_format=torch.channels_last))
    assert torch.equal(some, whole[[4, 1]])
    assert 0 < float((whole == 0).double().mean()) < 1


@pytest.mark.parametrize("shape", [(6, 4, 8, 8), (6, 24, 3, 3), (6, 5)])
def test_batch_norm_of_parts_is_that_of_the_whole_batch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    x = (torch.randn(shape, dtype=torch.float64) * 3 + 5).contiguous(memory_format=layout)
    slope = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    home = BatchNorm if len(shape) == 4 else VectorNorm
    plain = (torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d)(shape[1]).double()
    whole = x.clone().requires_grad_()
    (plain(whole) * slope).sum().backward()
    # Two threads in lockstep are the two processes.
    meet, sent = threading.Barrier(2), [torch.empty(0)] * 2
    cuts = [torch.arange(4), torch.arange(4, 6)]

    def process(number: int) -> tuple[torch.Tensor, Any]:
        def total(values: torch.Tensor) -> torch.Tensor:
            sent[number] = values.clone()
            meet.wait()
            both = sent[0] + sent[1]
            meet.wait()
            return both

        layer, places = home(shape[1]).double(), cuts[number]
        part = x[places].contiguous(memory_format=layout).requires_grad_()
        with embedding(Shared(places, 6, total)):
            y = layer(part)
        (y * slope[places]).sum().backward()
        assert part.grad is not None
        return part.grad, layer

    with ThreadPoolExecutor(2) as pool:
        grads, layers = zip(*pool.map(process, range(2)), strict=True)
    torch.testing.assert_close(torch.cat(grads), whole.grad)
    for name in ("weight", "bias"):
        found = sum(getattr(layer, name).grad for layer in layers)
        torch.testing.assert_close(found, getattr(plain, name).grad)
    for layer in layers:
        torch.testing.assert_close(layer.running_mean, plain.running_mean)
        torch.testing.assert_close(layer.running_var, plain.running_var)


# ---- losses and their gradients


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_the_loss_and_its_gradients_are_those_of_one_process(number: int, two: list[dict[str, Any]]) -> None:
    loss, z, y = CASES[number].make(), rows(11).requires_grad_(), labels(11)
    torch.manual_seed(3)
    value = loss(z, y)
    value.backward()
    assert z.grad is not None
    learned = [parameter.grad.reshape(-1) for parameter in loss.parameters() if parameter.grad is not None]
    wanted = torch.cat([value.detach()[None], z.grad.reshape(-1), *learned]).tolist()
    for found in two:
        assert off(found["losses"][str(number)], wanted) < 1e-9


@pytest.mark.parametrize("name", PAIRED)
def test_the_loss_of_pairs_is_that_of_one_process(name: str, two: list[dict[str, Any]]) -> None:
    a, b, same = rows(11).requires_grad_(), rows(11, 5), labels(11) == labels(11, 5)
    value = LOSSES[name]().pairs(a, b, same)
    value.backward()
    assert a.grad is not None
    for found in two:
        assert off(found["pairs"][name], [value.item(), *a.grad.reshape(-1).tolist()]) < 1e-9


@pytest.mark.parametrize("kind", TILED)
def test_a_step_sends_the_embeddings_once_and_their_gradient_once(kind: str, two: list[dict[str, Any]]) -> None:
    sent = [tuple(one) for one in two[0]["exchanges"][kind]]
    parameters = 36 + len(list(LOSSES[kind]().parameters())) + 1
    sums = {"dcl": 3, "dclw": 5}.get(kind, 2)
    assert sent == [("gather", 40 * 6), ("total", sums), ("scatter", 40 * 6), ("total", parameters)]


def test_the_memory_of_a_part_of_the_rows_is_its_share() -> None:
    y = torch.arange(2048) % 10
    rows_, keys = (rows(count, dim=64, dtype=torch.float32).requires_grad_() for count in (1024, 2048))
    for kind in ("supcon", "info-nce", "triplet"):
        loss = LOSSES[kind]() if kind != "triplet" else LOSSES[kind](mining="hard")
        kept, _ = saved_bytes(lambda loss=loss: loss.sums(rows_, y[:1024], keys, y))
        share = 4 * 64 * (1024 + 2048)
        if kind == "triplet":
            share = saved_bytes(lambda loss=loss: loss(keys, y))[0] / 2
        assert kept < 1.1 * share, kind


def test_other_losses_send_no_more(two: list[dict[str, Any]]) -> None:
    assert [name for name, _ in two[0]["exchanges"]["triplet"]] == ["gather", "total", "scatter", "total"]
    assert [name for name, _ in two[0]["exchanges"]["arcface"]] == ["total", "total"]
    for kind in ("vicreg", "proxy-anchor"):
        assert [name for name, _ in two[0]["exchanges"][kind]] == ["gather", "total"]


# ---- whole trainings


def assert_same_weights(found: list[dict[str, Any]], name: str) -> None:
    wanted = trained(TASKS[name])
    for one in found:
        assert one["tasks"][name] == found[0]["tasks"][name], "processes end with different weights"
        assert off(one["tasks"][name], wanted) < 1e-5


@pytest.mark.parametrize("name", QUICK)
def test_weights_after_training_are_those_of_one_process(name: str, two: list[dict[str, Any]]) -> None:
    assert_same_weights(two, name)


def test_sigterm_in_one_process_ends_all_and_one_process_goes_on(two: list[dict[str, Any]]) -> None:
    assert [found["interrupted"] for found in two] == ["interrupted in step 7"] * 2
    assert off(trained(SGD, checkpoint=two[0]["folder"] / "latest.safetensors", resume=True), trained(SGD)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_weights_of_all_kinds_of_training_are_those_of_one_process(processes: int, tmp_path: Path) -> None:
    asked = {
        "tasks": list(TASKS),
        "losses": list(range(len(CASES))),
        "pairs": PAIRED,
        "rows": {"count": 23, "counts": [8, 6, 5, 4][:processes] if processes == 4 else [12, 11]},
        "exchanges": [],
        "checkpoint": str(tmp_path / "latest.safetensors"),
    }
    found = launch("distributed_work:everything", asked, processes=processes)
    for name in TASKS:
        assert_same_weights(found, name)
    other = launch("distributed_work:resumed", asked["checkpoint"], processes=6 - processes)  # from 2 to 4, and back
    assert off(other[0], trained(SGD)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_weights_by_every_loss_are_those_of_one_process(processes: int) -> None:
    found = launch("distributed_work:by_every_loss", 20, processes=processes)
    for kind, wanted in by_every_loss(20, ALONE).items():
        assert off(found[0][kind], wanted) < 1e-5, kind


# ---- ends


def test_processes_that_were_given_different_things_refuse(two: list[dict[str, Any]]) -> None:
    for found in two:
        for what, name in (("recipe", "recipe"), ("images", "set of images"), ("seed", "seed")):
            wanted = f"process 1 of 2 was given another {name} than process 0; start all of them with the same command"
            assert found["refused"][what].startswith(wanted)


def test_a_process_that_is_gone_ends_the_others(two: list[dict[str, Any]]) -> None:
    assert two[0]["lost"] == "process 1 of 2 ended with exit code 9"
    assert two[0]["noticed"].startswith("one of the 2 processes ended without a word; its own output may say why. Go on with")


@pytest.mark.slow
def test_the_first_to_end_speaks_and_all_have_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="what process 1 says"):
        launch("distributed_work:ends", "error", processes=2, timeout=120)
    with pytest.raises(KeyboardInterrupt):
        launch("distributed_work:ends", "interrupt", processes=2, timeout=120)
    supervise("distributed_work:code_of_the_other", str(tmp_path), processes=2, threads=1, timeout=120)
    assert read_json(tmp_path / "0.json") == {"code": 2}


@pytest.mark.slow
def test_the_cores_are_shared_until_training_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearfar.processes.cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert supervise("distributed_work:threads", None, processes=2) == [[2, 4], [2, 4]]
    assert supervise("distributed_work:threads", None, processes=2, threads=1) == [[1, 1], [1, 1]]


def test_a_batch_for_fewer_processes_is_refused_before_training() -> None:
    with together(Group(0, 40)), pytest.raises(InputError, match="a batch has 30 images, fewer than the 40 processes"):
        check(recipe_of({}), shapes(120), seed=0)


def test_verbs_other_than_train_refuse_to_run_in_several_processes(
    cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    said = (2, "", "nearfar: only train runs in several processes; start nearfar recipes without torchrun\n")
    assert cli("recipes") == said
    monkeypatch.setenv("RANK", "1")
    assert cli("recipes") == (2, "", "")


def test_an_environment_that_torchrun_did_not_leave_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place().world == 1
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("RANK", "2"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="RANK is 2 and WORLD_SIZE 2"):
        place()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(InputError, match="not a number"):
        place()
