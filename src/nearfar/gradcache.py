"""Batches larger than the encoder's memory: gradient caching, and a bank of embeddings from earlier steps.

Both leave the loss as it is. Caching gives the very gradient of the whole batch for about one more forward pass; the bank
gives more negatives for next to nothing, from a slightly older encoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from nearfar.errors import InputError

Chunk = TypeVar("Chunk")


def cached_step(
    embed: Callable[[Chunk], Tensor],
    chunks: Sequence[Chunk],
    loss: Callable[[Tensor], Tensor],
    *,
    encoder: nn.Module | None = None,
    generators: Iterable[torch.Generator] = (),
) -> Tensor:
    """Add the gradient of a large batch's loss to the parameters, with memory for one chunk at a time.

    Three passes (Gao, Zhang, Han, Callan 2021): embed every chunk without gradient; the loss and its gradient by the
    embeddings; embed every chunk again, with gradient, and push that gradient through. The result is that of
    ``loss(embed(batch)).backward()``:

    - Dropout and augmentation inside ``embed`` draw the same numbers both times: the states of PyTorch's generators (the
      processor's and, where the embeddings are on one, the accelerator's) and of ``generators`` are kept for every chunk.
      Afterwards they stand where one pass over the chunks leaves them.
    - Batch norm takes its statistics over each chunk, not over the batch, as gradient accumulation does. Running
      statistics, and all other buffers of the encoder, are put back between the passes, so that they are updated once.
    - Under ``DistributedDataParallel`` gradients are exchanged with the last chunk only.

    Args:
        embed: embeddings ``[n, D]`` of a chunk; most often the encoder itself.
        chunks: the batch in pieces of whatever ``embed`` takes; each is taken twice.
        loss: a scalar from all embeddings ``[B, D]`` in the order of the chunks. Gradients of what it depends on besides,
            as the proxies of a loss, are added too.
        encoder: the module that ``embed`` runs, when ``embed`` is not the module itself.
        generators: generators that ``embed`` draws from besides PyTorch's own.

    Returns:
        The loss, detached.

    Raises:
        InputError: there is no chunk, a chunk's embeddings are not ``[n, D]`` or change from one pass to the next, or the
            loss is not a scalar that depends on them.
    """
    if not len(chunks):
        raise InputError("chunks is empty; give the batch in at least one piece")
    if encoder is None and isinstance(embed, nn.Module):
        encoder = embed
    own = list(generators)
    buffers = [] if encoder is None else [(buffer, buffer.clone()) for buffer in encoder.buffers()]

    states: list[_Draws] = []
    parts: list[Tensor] = []
    device = torch.device("cpu") if encoder is None else next((p.device for p in encoder.parameters()), torch.device("cpu"))
    with torch.no_grad():
        for chunk in chunks:
            states.append(_Draws(device, own))
            parts.append(embed(chunk))
            if parts[-1].ndim != 2:
                raise InputError(f"embed returned shape {tuple(parts[-1].shape)}; it must be [rows, columns] for every chunk")
    after = _Draws(device, own)

    sizes = [len(part) for part in parts]
    z = torch.cat(parts).requires_grad_()
    del parts
    with torch.enable_grad():
        value = loss(z)
    if value.numel() != 1 or not value.requires_grad:
        raise InputError(
            f"loss returned shape {tuple(value.shape)}{'' if value.requires_grad else ' without gradient'}; "
            "it must be one number that depends on the embeddings"
        )
    value.backward()
    assert z.grad is not None
    gradients = z.grad.split(sizes)

    for buffer, before in buffers:
        buffer.copy_(before)
    for number, (chunk, gradient, state) in enumerate(zip(chunks, gradients, states, strict=True)):
        state.restore()
        last = number == len(sizes) - 1
        with contextlib.nullcontext() if last else _no_sync(encoder), torch.enable_grad():
            part = embed(chunk)
            if part.shape != gradient.shape:
                raise InputError(
                    f"chunk {number} has embeddings of shape {tuple(part.shape)}, and had {tuple(gradient.shape)} the first "
                    "time; embed must do the same with a chunk every time"
                )
            part.backward(gradient)
    after.restore()
    return value.detach()


class _Draws:
    """Where the random numbers stand."""

    def __init__(self, device: torch.device, generators: list[torch.Generator]) -> None:
        self._processor = torch.get_rng_state()
        self._accelerator = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._device = device
        self._own = [(generator, generator.get_state()) for generator in generators]

    def restore(self) -> None:
        torch.set_rng_state(self._processor)
        if self._accelerator is not None:
            torch.cuda.set_rng_state(self._accelerator, self._device)
        for generator, state in self._own:
            generator.set_state(state)


def _no_sync(encoder: nn.Module | None) -> contextlib.AbstractContextManager[None]:
    return encoder.no_sync() if isinstance(encoder, nn.parallel.DistributedDataParallel) else contextlib.nullcontext()


class MemoryBank(nn.Module):
    """The embeddings of the last steps, as ``keys`` for any loss (Wang, Zhang, Huang, Scott 2020: cross-batch memory).

    The encoder changes slowly, so that rows of some steps ago still serve as negatives and positives::

        value = loss(z, labels, *bank.keys_with(z, labels), key_offset=0)
        bank.add(z, labels)

    compares the batch with itself (row i is key i, left out) and with the bank. Rows in the bank have no gradient. The
    bank is saved and moved with the module's state. Start to use it after the first steps, when the encoder has settled.

    Args:
        size: how many rows it holds; the oldest make room for new ones.
        dim: D, the width of the embeddings.
    """

    rows: Tensor
    row_labels: Tensor
    state: Tensor

    def __init__(self, *, size: int, dim: int) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1")
        self.register_buffer("rows", torch.zeros(size, dim))
        self.register_buffer("row_labels", torch.zeros(size, dtype=torch.long))
        self.register_buffer("state", torch.zeros(2, dtype=torch.long))  # rows held, and where the next one goes

    def __len__(self) -> int:
        return int(self.state[0])

    @property
    def keys(self) -> Tensor:
        """The rows held, ``[n, D]``, in no particular order; a view that the next ``add`` changes."""
        return self.rows[: len(self)]

    @property
    def key_labels(self) -> Tensor:
        """Their labels, ``[n]``."""
        return self.row_labels[: len(self)]

    def keys_with(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch followed by the bank, ``[B + n, D]`` and ``[B + n]``: keys for ``key_offset=0``."""
        self._check(z, labels)
        return torch.cat((z, self.keys.to(z.dtype))), torch.cat((labels, self.key_labels))

    @torch.no_grad()
    def add(self, z: Tensor, labels: Tensor) -> None:
        """Put rows ``[B, D]`` and their labels ``[B]`` in, in place of the oldest; of too many, the last stay."""
        self._check(z, labels)
        size = len(self.rows)
        z, labels = z[-size:], labels[-size:]
        held, start = self.state.tolist()
        places = (torch.arange(len(z), device=self.rows.device) + start) % size
        self.rows[places] = z.detach().to(self.rows.dtype)
        self.row_labels[places] = labels.long()
        self.state.copy_(torch.tensor([min(held + len(z), size), (start + len(z)) % size]))

    def clear(self) -> None:
        """Forget all rows."""
        self.state.zero_()

    def extra_repr(self) -> str:
        """Show how large and how full it is."""
        return f"size={len(self.rows)}, dim={self.rows.shape[1]}, held={len(self)}"

    def _check(self, z: Tensor, labels: Tensor) -> None:
        if z.ndim != 2 or z.shape[1] != self.rows.shape[1]:
            raise InputError(
                f"z has shape {tuple(z.shape)}, the bank was made with dim={self.rows.shape[1]}; give it such rows"
            )
        if labels.shape != z.shape[:1]:
            raise InputError(f"labels has shape {tuple(labels.shape)}, z has {len(z):,} rows; it must be one label a row")
