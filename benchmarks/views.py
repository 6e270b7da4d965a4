"""A training step from two views of 512 images: ours, beside a DataLoader of two workers with transforms of single images.

    python benchmarks/views.py [--encoder simclr] [--steps 20] [--repeats 3]

Both do the same: turn, enlarge, slant and cut out (one bilinear interpolation), bend the scale of light, blank out a square,
normalise; then the same network, loss and optimiser. The transforms of single images are Pillow's and NumPy's, as torchvision
has them. Runs alternate, times are medians. ``--encoder`` names the recipe whose network it is: the smaller, the more the
views count.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from nearfar.augment import Augment, normalize
from nearfar.data import load_images
from nearfar.losses import NTXentLoss
from nearfar.parts import build, build_encoder_for, build_optimizer, build_projector
from nearfar.recipe import Part, load_recipe

BATCH = 512


class Views(Dataset[Any]):
    """Two views of each image, made one by one."""

    def __init__(self, images: np.ndarray, augment: Augment, mean: float, std: float) -> None:
        self.images, self.augment, self.mean, self.std = images, augment, mean, std

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        image = Image.fromarray(self.images[row, 0])
        return self.view(image), self.view(image), row

    def view(self, image: Image.Image) -> torch.Tensor:
        a, random = self.augment, np.random.default_rng(torch.initial_seed() % 2**32 + int(torch.randint(1 << 30, ()).item()))
        width, height = image.size
        area, aspect = random.uniform(a.crop, 1), math.exp(random.uniform(-1, 1) * math.log(4 / 3))
        w, h = min(1.0, math.sqrt(area * aspect)), min(1.0, math.sqrt(area / aspect))
        centre = ((1 - w) * random.uniform(-1, 1) * width / 2, (1 - h) * random.uniform(-1, 1) * height / 2)
        turn = math.radians(random.uniform(-a.degrees, a.degrees))
        slant = math.tan(math.radians(random.uniform(-a.shear, a.shear)))
        grow = 1 + random.uniform(-a.scale, a.scale)
        cos, sin = math.cos(turn) / grow, math.sin(turn) / grow
        m = np.array([[cos + slant * sin, sin - slant * cos], [-sin, cos]]) @ np.diag([w, h])
        middle = np.array([width / 2, height / 2])
        offset = middle + m @ (-middle) + np.array(centre)
        data = (*m[0], offset[0], *m[1], offset[1])
        image = image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
        x = np.asarray(image, dtype=np.float32) / 255
        x = x ** math.exp(random.uniform(-1, 1) * math.log1p(a.gamma))
        side = round(a.erase * min(width, height))
        top, left = (int(random.integers(0, edge)) - side // 2 for edge in (height, width))
        x[max(0, top) : top + side, max(0, left) : left + side] = 0
        return torch.from_numpy((x - self.mean) / self.std)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="simclr")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    images = load_images("mnist", "train")
    recipe, network = load_recipe("simclr"), load_recipe(options.encoder).encoder
    params = {name: value for name, value in network.params.items() if name != "tta"}
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
        for number in range(options.steps):
            rows = np.repeat(np.arange(number * BATCH, (number + 1) * BATCH) % len(pixels), 2)
            step(normalize(augment(torch.from_numpy(pixels[rows]), generator), mean, std, channels_last=True))
            yield

    def plain() -> Iterator[None]:
        some = np.asarray(images.images[: (options.steps + 1) * BATCH])
        loader = DataLoader(Views(some, augment, mean, std), batch_size=BATCH, num_workers=2)
        for (a, b, _), _step in zip(loader, range(options.steps), strict=False):
            step(torch.stack([a, b], dim=1).flatten(0, 1).contiguous(memory_format=torch.channels_last))
            yield

    def views_alone() -> Iterator[None]:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.from_numpy(np.repeat(np.asarray(images.images[:BATCH]), 2, axis=0))
        for _ in range(options.steps):
            augment(pixels, generator)
            yield

    times: dict[str, list[float]] = {"ours": [], "plain": [], "our views alone": []}
    for _ in range(options.repeats):
        for name, run in (("ours", ours), ("plain", plain), ("our views alone", views_alone)):
            turns = run()
            next(turns)
            started = time.perf_counter()
            count = sum(1 for _ in turns)
            times[name].append((time.perf_counter() - started) / count)
    for name, found in times.items():
        print(f"{name:18} {1000 * statistics.median(found):8.1f} ms a step of two views of {BATCH} images")
    print(f"ratio {statistics.median(times['plain']) / statistics.median(times['ours']):.2f}")


if __name__ == "__main__":
    main()
