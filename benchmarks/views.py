"""A training step from two views of 512 images: ours, beside a DataLoader of two workers with transforms of single images.

    python benchmarks/views.py [--encoders simclr cosine-pairs mnist-fastest] [--steps 20] [--repeats 3]

All make the views of the recipe simclr: move, turn, enlarge, slant, bend, change the scale of light, blank out a square,
normalise; then comes the same network, loss and optimiser. The first DataLoader uses torchvision's transforms, as its
documentation shows them; the second, Pillow with one interpolation for all, by hand, and leaves the bending out. Runs
alternate, times are medians. ``--encoders`` are the recipes whose networks are used: the smaller, the more the views count.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from nearfar.augment import Augment, normalize
from nearfar.data import load_images
from nearfar.losses import NTXentLoss
from nearfar.recipe import Part, load_recipe
from nearfar.torchvision import make_importable
from nearfar.training.parts import build, build_encoder_for, build_optimizer, build_projector

make_importable()
import torchvision  # noqa: E402 - importable only now
from torchvision.transforms import v2 as transforms  # noqa: E402 - importable only now

BATCH = 512


class Views(Dataset[Any]):
    """Two views of each image, made one by one."""

    def __init__(self, images: np.ndarray, view: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images, self.view = images, view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        image = Image.fromarray(self.images[row, 0])
        return self.view(image), self.view(image), row


class TorchvisionView:
    """A view by the transforms of torchvision, one after the other, as its documentation shows them for SimCLR."""

    def __init__(self, augment: Augment, mean: float, std: float) -> None:
        a, side = augment, 28
        share = a.shift / side
        shear = [-a.shear, a.shear]
        steps: list[Any] = [
            transforms.RandomAffine(
                a.degrees,
                translate=(share, share),
                scale=(1 - a.scale, 1 + a.scale),
                shear=shear,
                interpolation=transforms.InterpolationMode.BILINEAR,
            ),
        ]
        if a.elastic:  # a field as wide as ours: ours moves the points of a grid that lie a quarter of the side apart
            steps.append(transforms.ElasticTransform(alpha=40.0, sigma=side / 8))
        steps += [
            transforms.ToImage(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Lambda(lambda x: x ** math.exp(random.uniform(-1, 1) * math.log1p(a.gamma))),
            transforms.RandomErasing(p=1.0, scale=(a.erase**2, a.erase**2), ratio=(1.0, 1.0)),
            transforms.Normalize([mean], [std]),
        ]
        self.view = transforms.Compose(steps)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        x: torch.Tensor = self.view(image)
        return x.as_subclass(torch.Tensor)


class PillowView:
    """The least that a view of a single image can take: one interpolation by Pillow for all that moves pixels, nothing bent."""

    def __init__(self, augment: Augment, mean: float, std: float) -> None:
        self.augment, self.mean, self.std = augment, mean, std

    def __call__(self, image: Image.Image) -> torch.Tensor:
        a, draw = self.augment, random.uniform
        width, height = image.size
        turn, slant = math.radians(draw(-a.degrees, a.degrees)), math.tan(math.radians(draw(-a.shear, a.shear)))
        grow = 1 + draw(-a.scale, a.scale)
        cos, sin = math.cos(turn) / grow, math.sin(turn) / grow
        m = np.array([[cos + slant * sin, sin - slant * cos], [-sin, cos]])
        middle = np.array([width / 2, height / 2])
        offset = middle - m @ middle + np.array([draw(-a.shift, a.shift), draw(-a.shift, a.shift)])
        data = (*m[0], offset[0], *m[1], offset[1])
        image = image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
        x = np.asarray(image, dtype=np.float32) / 255
        x = x ** math.exp(draw(-1, 1) * math.log1p(a.gamma))
        side = round(a.erase * min(width, height))
        top, left = (random.randrange(edge) - side // 2 for edge in (height, width))
        x[max(0, top) : top + side, max(0, left) : left + side] = 0
        return torch.from_numpy((x - self.mean) / self.std)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["simclr", "cosine-pairs", "mnist-fastest"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"two views of {BATCH} images; {versions}, {torch.get_num_threads()} threads")
    for name in options.encoders:
        measure(name, options.steps, options.repeats)


def measure(name: str, steps: int, repeats: int) -> None:
    """Print what a step takes with the network of a recipe, by each way to make views."""
    images = load_images("mnist", "train")
    recipe, network = load_recipe("simclr"), load_recipe(name).encoder
    params = {key: value for key, value in network.params.items() if key != "tta"}
    recipe = dataclasses.replace(recipe, encoder=Part(kind=network.kind, params=params))
    mean, std = recipe.data.mean[0], recipe.data.std[0]
    augment: Augment = build("augment", Augment, recipe.augment)
    torch.manual_seed(0)
    encoder = build_encoder_for(recipe, 1, (28, 28))
    project = build_projector(recipe, encoder, images)
    loss = NTXentLoss(temperature=0.2)
    optimizer = build_optimizer(recipe.train, [*encoder.parameters(), *project.parameters()])
    labels = torch.arange(BATCH).repeat_interleave(2)

    def step(x: torch.Tensor) -> None:
        optimizer.forget_gradients()
        loss(project(encoder(x)), labels).backward()
        optimizer.step()

    def ours() -> Iterator[None]:
        generator = torch.Generator().manual_seed(0)
        pixels = np.asarray(images.images)
        for number in range(steps):
            rows = np.repeat(np.arange(number * BATCH, (number + 1) * BATCH) % len(pixels), 2)
            step(normalize(augment(torch.from_numpy(pixels[rows]), generator), mean, std, channels_last=True))
            yield

    def loaded(view: Callable[[Image.Image], torch.Tensor]) -> Iterator[None]:
        some = np.asarray(images.images[: (steps + 1) * BATCH])
        loader = DataLoader(Views(some, view), batch_size=BATCH, num_workers=2)
        for (a, b, _), _step in zip(loader, range(steps), strict=False):
            step(torch.stack([a, b], dim=1).flatten(0, 1).contiguous(memory_format=torch.channels_last))
            yield

    def views_alone() -> Iterator[None]:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.from_numpy(np.repeat(np.asarray(images.images[:BATCH]), 2, axis=0))
        for _ in range(steps):
            augment(pixels, generator)
            yield

    ways: dict[str, Callable[[], Iterator[None]]] = {
        "ours": ours,
        "DataLoader, torchvision": lambda: loaded(TorchvisionView(augment, mean, std)),
        "DataLoader, Pillow by hand": lambda: loaded(PillowView(augment, mean, std)),
        "our views alone": views_alone,
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            turns = run()
            next(turns)
            started = time.perf_counter()
            count = sum(1 for _ in turns)
            times[way].append((time.perf_counter() - started) / count)
    middle = {way: statistics.median(found) for way, found in times.items()}
    print(f"network of {name}")
    for way, seconds in middle.items():
        print(f"  {way:28} {1000 * seconds:8.1f} ms a step   {seconds / middle['ours']:5.2f} times ours")


if __name__ == "__main__":
    main()
