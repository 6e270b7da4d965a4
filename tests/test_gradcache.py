"""Gradient caching against the plain step, and the bank of embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.gradcache import MemoryBank, cached_step
from nearfar.losses import LOSSES, ArcFaceLoss, InfoNCELoss, Loss, SupConLoss

CLASSES = 4
Y = torch.arange(24) % CLASSES


def images(count: int = 24) -> Tensor:
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


def network(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(10, 16), *middle, nn.Tanh(), nn.Linear(16, 6), Unit()).double()


def gradients(module: nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in module.parameters()]
    return [torch.zeros(()) if one is None else one.clone() for one in found]


@pytest.mark.parametrize("sizes", [(24,), (8, 8, 8), (1, 20, 3)])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_gradient_is_that_of_the_plain_step(name: str, sizes: tuple[int, ...]) -> None:
    home = LOSSES[name]
    torch.manual_seed(3)
    loss: Loss = home(**({"classes": CLASSES, "dim": 6} if home.needs_classes else {})).double()
    x = images()
    plain, cached = network(), network()
    value = loss(plain(x), Y)
    value.backward()
    wanted = gradients(plain) + gradients(loss)
    loss.zero_grad()
    found = cached_step(cached, x.split(sizes), lambda z: loss(z, Y))
    assert not found.requires_grad
    assert found.item() == pytest.approx(value.item(), rel=1e-12)
    for one, other in zip(gradients(cached) + gradients(loss), wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


def test_gradients_are_added_to_those_there_are() -> None:
    encoder, loss, x = network(), SupConLoss(), images()
    cached_step(encoder, x.split(8), lambda z: loss(z, Y))
    once = gradients(encoder)
    cached_step(encoder, x.split(8), lambda z: loss(z, Y))
    assert all(torch.allclose(twice, 2 * one) for twice, one in zip(gradients(encoder), once, strict=True))


def test_dropout_draws_the_same_both_times() -> None:
    loss, x = SupConLoss(), images()
    plain, cached = network(nn.Dropout(0.5)), network(nn.Dropout(0.5))
    torch.manual_seed(11)
    value = loss(torch.cat([plain(chunk) for chunk in x.split(6)]), Y)
    value.backward()
    after = torch.rand(3)
    torch.manual_seed(11)
    assert cached_step(cached, x.split(6), lambda z: loss(z, Y)).item() == pytest.approx(value.item(), rel=1e-12)
    # The numbers go on where one pass would have left them.
    assert torch.equal(torch.rand(3), after)
    for one, other in zip(gradients(cached), gradients(plain), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_augmentation_by_a_generator_of_its_own_draws_the_same_both_times() -> None:
    loss, x = SupConLoss(), images()
    plain, cached = network(), network()

    def embedding(encoder: nn.Module, generator: torch.Generator) -> Any:
        return lambda chunk: encoder(chunk + torch.randn(chunk.shape, generator=generator, dtype=chunk.dtype))

    generator = torch.Generator().manual_seed(5)
    embed = embedding(plain, generator)
    loss(torch.cat([embed(chunk) for chunk in x.split(8)]), Y).backward()
    after = torch.rand(3, generator=generator)
    generator = torch.Generator().manual_seed(5)
    embed = embedding(cached, generator)
    cached_step(embed, x.split(8), lambda z: loss(z, Y), encoder=cached, generators=[generator])
    assert torch.equal(torch.rand(3, generator=generator), after)
    for one, other in zip(gradients(cached), gradients(plain), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_batch_norm_is_by_chunk_and_counts_each_chunk_once() -> None:
    loss, x = SupConLoss(), images()
    plain, cached = network(nn.BatchNorm1d(16)), network(nn.BatchNorm1d(16))
    value = loss(torch.cat([plain(chunk) for chunk in x.split(8)]), Y)
    value.backward()
    found = cached_step(cached, x.split(8), lambda z: loss(z, Y))
    assert found.item() == pytest.approx(value.item(), rel=1e-12)
    for one, other in zip(gradients(cached), gradients(plain), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)
    for (name, one), (_, other) in zip(cached.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.allclose(one, other), name
    assert int(cached[1].num_batches_tracked) == 3
    # Statistics of chunks are not those of the batch: this is another, as good, gradient than that of one large batch.
    whole = network(nn.BatchNorm1d(16))
    assert abs(loss(whole(x), Y).item() - value.item()) > 1e-3


def test_in_eval_mode_batch_norm_is_the_plain_step() -> None:
    loss, x = SupConLoss(), images()
    plain, cached = network(nn.BatchNorm1d(16)).eval(), network(nn.BatchNorm1d(16)).eval()
    loss(plain(x), Y).backward()
    cached_step(cached, x.split(8), lambda z: loss(z, Y))
    for one, other in zip(gradients(cached), gradients(plain), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


def test_distributed_gradients_are_exchanged_once(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        plain, loss, x = network(), SupConLoss(), images()
        shared = nn.parallel.DistributedDataParallel(network())
        exchanged: list[torch.Size] = []

        def note(state: Any, bucket: Any) -> Any:
            exchanged.append(bucket.buffer().shape)
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        # PyTorch looks at the annotations themselves, which are text in this file.
        note.__annotations__ = {"bucket": torch.distributed.GradBucket, "return": torch.futures.Future[Tensor]}
        shared.register_comm_hook(None, note)
        loss(plain(x), Y).backward()
        cached_step(shared, x.split(6), lambda z: loss(z, Y))
    finally:
        torch.distributed.destroy_process_group()
    assert len(exchanged) == 1
    for one, other in zip(gradients(shared), gradients(plain), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


def test_no_more_than_one_chunk_is_held_with_its_graph() -> None:
    alive, most = 0, 0

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            nonlocal alive, most
            if ctx.needs_input_grad[0]:
                alive += 1
                most = max(most, alive)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            nonlocal alive
            alive -= 1
            return grad

    encoder, loss = network(), SupConLoss()
    cached_step(lambda x: Counted.apply(encoder(x)), images().split(3), lambda z: loss(z, Y), encoder=encoder)
    assert most == 1
    assert alive == 0


def test_works_inside_no_grad_as_outside() -> None:
    encoder, loss = network(), SupConLoss()
    with torch.no_grad():
        cached_step(encoder, images().split(8), lambda z: loss(z, Y))
    assert all(one.abs().sum() > 0 for one in gradients(encoder))


def test_what_does_not_fit_is_refused() -> None:
    encoder, x = network(), images()
    with pytest.raises(InputError, match="chunks is empty"):
        cached_step(encoder, [], lambda z: z.sum())
    with pytest.raises(InputError, match=r"embed returned shape \(8,\)"):
        cached_step(lambda chunk: encoder(chunk)[:, 0], x.split(8), lambda z: z.sum())
    with pytest.raises(InputError, match=r"loss returned shape \(24, 6\)"):
        cached_step(encoder, x.split(8), lambda z: z)
    with pytest.raises(InputError, match="without gradient"):
        cached_step(encoder, x.split(8), lambda z: z.detach().sum())
    sizes: Iterator[int] = iter((8, 8, 8, 7))
    with pytest.raises(InputError, match=r"chunk 0 has embeddings of shape \(7, 6\), and had \(8, 6\)"):
        cached_step(lambda chunk: encoder(chunk)[: next(sizes)], x.split(8), lambda z: z.sum(), encoder=encoder)


def test_a_bank_keeps_the_last_rows() -> None:
    bank = MemoryBank(size=5, dim=2)
    seen: list[int] = []
    for step, count in enumerate((2, 2, 2, 4, 9, 1, 5)):
        new = [100 * step + row for row in range(count)]
        bank.add(torch.tensor([[float(one), 0.0] for one in new]), torch.tensor(new))
        seen += new
        assert len(bank) == min(5, len(seen))
        assert sorted(bank.key_labels.tolist()) == sorted(seen[-5:])
        assert bank.keys[:, 0].long().tolist() == bank.key_labels.tolist()
    assert repr(bank) == "MemoryBank(size=5, dim=2, held=5)"
    bank.clear()
    assert len(bank) == 0
    assert bank.keys.shape == (0, 2)


def test_a_bank_as_keys() -> None:
    bank, loss = MemoryBank(size=40, dim=6), InfoNCELoss()
    first = F.normalize(images()[:, :6], dim=1).float()
    # An empty bank changes nothing.
    assert loss(first, Y, *bank.keys_with(first, Y), key_offset=0).item() == pytest.approx(loss(first, Y).item(), rel=1e-6)
    bank.add(first, Y)
    second = F.normalize(images()[:, 3:9], dim=1).float().requires_grad_()
    value = loss(second, Y, *bank.keys_with(second, Y), key_offset=0)
    everything, labels = torch.cat((second, first)), torch.cat((Y, Y))
    assert value.item() == pytest.approx(loss(second, Y, everything, labels, key_offset=0).item(), rel=1e-6)
    assert abs(value.item() - loss(second, Y).item()) > 1e-3
    value.backward()
    assert second.grad is not None
    assert not bank.keys.requires_grad


def test_a_bank_is_saved_with_the_state() -> None:
    bank = MemoryBank(size=4, dim=2)
    bank.add(torch.ones(3, 2), torch.arange(3))
    other = MemoryBank(size=4, dim=2)
    other.load_state_dict(bank.state_dict())
    assert len(other) == 3
    assert torch.equal(other.keys, bank.keys)
    assert torch.equal(other.key_labels, bank.key_labels)


def test_a_bank_takes_half_rows() -> None:
    bank = MemoryBank(size=4, dim=2)
    bank.add(torch.ones(3, 2, dtype=torch.bfloat16), torch.arange(3, dtype=torch.int32))
    assert bank.keys.dtype == torch.float32
    assert bank.key_labels.dtype == torch.int64


@pytest.mark.parametrize(("size", "dim", "name"), [(0, 2, "size"), (2.5, 2, "size"), (4, -1, "dim"), (4, True, "dim")])
def test_a_bank_of_no_size(size: Any, dim: Any, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is"):
        MemoryBank(size=size, dim=dim)


def test_rows_that_do_not_fit_a_bank() -> None:
    bank = MemoryBank(size=4, dim=2)
    with pytest.raises(InputError, match=r"z has shape \(3, 5\), the bank was made with dim=2"):
        bank.add(torch.ones(3, 5), torch.arange(3))
    with pytest.raises(InputError, match=r"labels has shape \(2,\), z has 3 rows"):
        bank.keys_with(torch.ones(3, 2), torch.arange(2))


def test_proxies_get_their_gradient_too() -> None:
    torch.manual_seed(0)
    loss = ArcFaceLoss(classes=CLASSES, dim=6).double()
    cached_step(network(), images().split(8), lambda z: loss(z, Y))
    assert loss.weight.grad is not None
    assert loss.weight.grad.abs().sum() > 0
