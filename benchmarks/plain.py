"""The reference systems as plain PyTorch programs, the way tutorials write them: what ours is timed against.

A ``Dataset`` that hands out one image, or one pair, at a time; a ``DataLoader`` that puts them together; a model of stock
layers; a loss written as it stands in the description; Adam. Nothing clumsy is done on purpose, and nothing clever.

    python benchmarks/plain.py fashion-cross-entropy [--seeds 0 1 2] [--epochs 5] [--held-out 10000]

trains one of them whole, and prints the 1-NN accuracy of training images that were held out.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

# ---- data, one by one ----------------------------------------------------------------------------------------------------


class Images(Dataset):
    """One image and its label at a time, the pixels as (x / 255 - mean) / std."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: float, std: float) -> None:
        self.images, self.labels, self.mean, self.std = images, labels, mean, std

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        return self.pixels(at), int(self.labels[at])

    def pixels(self, at: int) -> Tensor:
        return (torch.from_numpy(self.images[at]).float() / 255 - self.mean) / self.std


class FreshPairs(Images):
    """An image, a partner drawn anew, and whether both are of one class, which they are half the time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: float, std: float) -> None:
        super().__init__(images, labels, mean, std)
        self.rows = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor, float]:
        partner, same = self.partner(at, random.random() < 0.5)
        return self.pixels(at), self.pixels(partner), same

    def partner(self, at: int, same: bool) -> tuple[int, float]:
        label = self.labels[at]
        if not same:
            label = random.choice([other for other in self.rows if other != label])
        return int(random.choice(self.rows[label])), float(same)


class FixedPairs(FreshPairs):
    """Partners drawn once: one for each image, or (``both``) one of its class and one of another."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: float, std: float, both: bool) -> None:
        super().__init__(images, labels, mean, std)
        kinds = [(True, False) if both else (random.random() < 0.5,) for _ in range(len(images))]
        self.pairs = [(at, *self.partner(at, same)) for at, wanted in enumerate(kinds) for same in wanted]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor, float]:
        first, second, same = self.pairs[at]
        return self.pixels(first), self.pixels(second), same


# ---- models --------------------------------------------------------------------------------------------------------------


def conv5() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 5), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3)]

    head = [nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Dropout(0.3), nn.Linear(512, 64)]
    return nn.Sequential(*block(1, 32), *block(32, 64), *head)


def mlp() -> nn.Module:
    hidden = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 2))


def conv2() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.4)]

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 128)]
    return nn.Sequential(*block(1, 128), *block(128, 128), *block(128, 64), *head)


def conv3() -> nn.Module:
    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(outputs)]

    first = [*layer(1, 8), *layer(8, 8), nn.MaxPool2d(2)]
    second = [*layer(8, 16), *layer(16, 16), nn.MaxPool2d(2)]
    head = [nn.Conv2d(16, 1, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(49, 49), nn.Linear(49, 10)]
    return nn.Sequential(*first, *second, *head)


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(F.leaky_relu(self.norms[0](x), 0.1))
        return x + self.second(F.leaky_relu(self.norms[1](y), 0.1))


class ResidualMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(784, 256), nn.Linear(256, 128)
        self.blocks = nn.Sequential(*(ResidualBlock(256) for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(self.blocks(self.stem(x.flatten(1)))))


# ---- losses --------------------------------------------------------------------------------------------------------------


def cosine_mse(a: Tensor, b: Tensor, same: Tensor) -> Tensor:
    return F.mse_loss(F.cosine_similarity(a, b, eps=1e-7), same)


def squared_margin(a: Tensor, b: Tensor, same: Tensor) -> Tensor:
    h = (a - b).square().sum(1)
    return (same * h / 2 + (1 - same) * (1 - h).clamp_min(0) / 2).mean()


def margin(a: Tensor, b: Tensor, same: Tensor, m: float = 1.0, weight: float = 0.5) -> Tensor:
    d = F.pairwise_distance(a, b)
    return weight * (same * d.square() + (1 - same) * (m - d).clamp_min(0).square()).mean()


def wide_margin(a: Tensor, b: Tensor, same: Tensor) -> Tensor:
    return margin(a, b, same, m=2.5, weight=1.0)


def decoupled(z: Tensor, labels: Tensor) -> Tensor:
    """Of all ordered pairs of one class, each positive against all negatives of its anchor, on lists of pairs."""
    scores = z @ z.T / 0.07
    same = labels[:, None] == labels[None, :]
    anchors, positives = (same & ~torch.eye(len(z), dtype=torch.bool)).nonzero(as_tuple=True)
    against = torch.logsumexp(scores.masked_fill(same, -torch.inf), 1)
    return (against[anchors] - scores[anchors, positives]).mean()


# ---- the systems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A plain program: its data set, model, loss, optimiser and batch size."""

    data: Callable[[np.ndarray, np.ndarray], Dataset]
    model: Callable[[], nn.Module]
    loss: Callable[..., Tensor]
    batch: int
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    rate: float = 1e-3


PLAIN = {
    "cosine-pairs": Plain(data=lambda x, y: FixedPairs(x, y, 0.5, 0.5, False), model=conv5, loss=cosine_mse, batch=64),
    "margin-plane": Plain(data=lambda x, y: FreshPairs(x, y, 0.0, 1.0), model=mlp, loss=squared_margin, batch=100),
    "siamese-verification": Plain(data=lambda x, y: FixedPairs(x, y, 0.0, 1.0, True), model=conv2, loss=margin, batch=64),
    "fashion-contrastive": Plain(data=lambda x, y: FreshPairs(x, y, 0.0, 1.0), model=conv3, loss=wide_margin, batch=128),
    "fashion-cross-entropy": Plain(data=lambda x, y: Images(x, y, 0.0, 1.0), model=conv3, loss=F.cross_entropy, batch=128),
    "decoupled": Plain(
        data=lambda x, y: Images(x, y, 0.1307, 0.3081),
        model=ResidualMLP,
        loss=decoupled,
        batch=50,
        optimizer=torch.optim.AdamW,
        rate=3e-4,
    ),
}


def train_step(system: Plain, model: nn.Module, optimizer: torch.optim.Optimizer, batch: list[Tensor]) -> None:
    if len(batch) == 3:
        a, b, same = batch
        value = system.loss(model(a), model(b), same.float())
    else:
        value = system.loss(model(batch[0]), batch[1])
    optimizer.zero_grad()
    value.backward()
    optimizer.step()


def step_seconds(name: str, images: np.ndarray, labels: np.ndarray, *, steps: int, warmup: int = 5) -> float:
    """Mean seconds of a training step of the plain program ``name`` on images uint8 [N, C, H, W] and labels [N]."""
    system = PLAIN[name]
    random.seed(0)
    torch.manual_seed(0)
    model = system.model().train()
    optimizer = system.optimizer(model.parameters(), lr=system.rate)
    batches = _endless(DataLoader(system.data(images, labels), batch_size=system.batch, shuffle=True))
    for number in range(warmup + steps):
        if number == warmup:
            start = time.perf_counter()
        train_step(system, model, optimizer, next(batches))
    return (time.perf_counter() - start) / steps


def _endless(loader: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


@torch.no_grad()
def knn_accuracy(model: nn.Module, data: Images, held: Images, k: int) -> float:
    """Share of the held-out images whose ``k`` nearest training images, by Euclidean distance, are mostly of their class."""
    model.eval()
    z, queries = (
        torch.cat([model(torch.stack([part.pixels(at) for at in some])) for some in torch.arange(len(part.images)).split(1000)])
        for part in (data, held)
    )
    labels = torch.from_numpy(data.labels)
    votes = [labels[torch.cdist(some, z).topk(k, largest=False).indices] for some in queries.split(500)]
    return float((torch.cat(votes).mode(1).values.numpy() == held.labels).mean())


def train_whole(name: str, images: np.ndarray, labels: np.ndarray, *, held_out: int, epochs: int, seed: int) -> float:
    """Train the plain program ``name`` on all but ``held_out`` images, always the same ones; their 1-NN accuracy."""
    system = PLAIN[name]
    order = np.random.default_rng(77).permutation(len(images))
    held, kept = order[:held_out], order[held_out:]
    random.seed(seed)
    torch.manual_seed(seed)
    data = system.data(images[kept], labels[kept])
    assert isinstance(data, Images)
    model = system.model()
    optimizer = system.optimizer(model.parameters(), lr=system.rate)
    for _ in range(epochs):
        model.train()
        for batch in DataLoader(data, batch_size=system.batch, shuffle=True):
            train_step(system, model, optimizer, batch)
    return knn_accuracy(model, data, Images(images[held], labels[held], data.mean, data.std), 1)


def main() -> None:
    import nearfar as nf

    parser = argparse.ArgumentParser(description="A reference system as a plain program, trained whole.")
    parser.add_argument("system", choices=[name for name in PLAIN if name.startswith("fashion")])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--held-out", type=int, default=10_000)
    options = parser.parse_args()
    train = nf.load_images("fashion-mnist", split="train")
    images, labels = np.asarray(train.images), train.require_labels()
    for seed in options.seeds:
        start = time.perf_counter()
        right = train_whole(options.system, images, labels, held_out=options.held_out, epochs=options.epochs, seed=seed)
        print(f"{options.system}, seed {seed}: 1-NN {100 * right:.2f} %, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
