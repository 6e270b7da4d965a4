"""Convolutions in training and in embedding, ours against PyTorch's, layer by layer, in turns. Run it when idle.

    python benchmarks/convolutions.py [--images 256] [--rounds 15]

Layers of the recipes' nets on random maps, float32, channels innermost; medians of the rounds. In training forwards and
backwards, all cores together; in embedding forwards, each core batches of its own, with the max-pooling and the ReLU that
follow. "taken" marks those that `nearfar.encoders.convolution` takes by fewer multiplications; the others are PyTorch's own
there. Errors are root mean squares against float64, in those of the gradient of the weights, or of the maps.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
from collections.abc import Callable

import torch
from losses import take_turns
from torch import Tensor, nn

from nearfar.encoders import channels_last, winograd
from nearfar.encoders.convolution import Conv2d, settle
from nearfar.memory import keep_freed_memory
from nearfar.threads import single_threads

# Where it stands, channels in and out, side of the maps, kernel, padding, whether pooling of 2 x 2 follows.
LAYERS = [
    ("fashion-best, stem", 16, 32, 28, 3, 1, True),
    ("fashion-best, 14 x 14", 32, 32, 14, 3, 1, False),
    ("fashion-best, 14 x 14", 32, 80, 14, 3, 1, True),
    ("fashion-best, 7 x 7", 80, 80, 7, 3, 1, False),
    ("fashion-best, 7 x 7", 80, 160, 7, 3, 1, True),
    ("fashion-best, 3 x 3", 160, 160, 3, 3, 1, False),
    ("mnist-best, 12 x 12", 32, 64, 12, 3, 0, True),
    ("mnist-best, 5 x 5", 64, 128, 5, 3, 0, False),
    ("system A, second", 32, 64, 12, 5, 0, True),
    ("system C, second", 128, 128, 13, 2, 0, True),
    ("system C, third", 128, 64, 6, 2, 0, True),
    ("ResNet-18, 56 x 56", 64, 64, 56, 3, 1, False),
]


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).square().mean().sqrt() / b.square().mean().sqrt())


def train(channels: int, width: int, side: int, kernel: int, padding: int, even: bool, *, images: int, rounds: int) -> str:
    """A line of the first table."""
    x = torch.randn(images, channels, side, side).relu_().contiguous(memory_format=torch.channels_last).requires_grad_()
    layer = Conv2d(channels, width, kernel, padding=padding, bias=False, even=even)
    channels_last(layer)
    weight = layer.weight
    made = side + 2 * padding - kernel + 1
    kept = made - made % 2 if even else made
    some = torch.randn(images, width, kept, kept).contiguous(memory_format=torch.channels_last)
    # What pooling drops has no gradient.
    grad = nn.functional.pad(some, (0, made - kept) * 2).contiguous(memory_format=torch.channels_last)

    def direct() -> None:
        x.grad = weight.grad = None
        torch.conv2d(x, weight, padding=padding).backward(grad)

    def fewer() -> None:
        x.grad = weight.grad = None
        winograd.convolve(x, weight, None, (padding, padding), (kept, kept)).backward(some)

    exact = weight.detach().double().requires_grad_()
    torch.conv2d(x.detach().double(), exact, padding=padding).backward(grad.double())
    assert exact.grad is not None
    errors = []
    for way in (direct, fewer):
        way()
        assert weight.grad is not None
        errors.append(apart(weight.grad, exact.grad))
    return describe([direct, fewer], rounds, taken=layer._outputs(x) is not None, errors=errors)


def embed(channels: int, width: int, side: int, kernel: int, padding: int, even: bool, *, images: int, rounds: int) -> str:
    """A line of the second table."""
    x = torch.randn(images, channels, side, side).relu_().contiguous(memory_format=torch.channels_last)
    following = [nn.MaxPool2d(2), nn.ReLU(inplace=True)] if even else [nn.ReLU(inplace=True)]
    plain = channels_last(nn.Sequential(Conv2d(channels, width, kernel, padding=padding, even=even), *following)).eval()
    settled = settle(copy.deepcopy(plain))
    taken = settled[0]._outputs(x) is not None
    settled[0]._worth = math.inf  # also where it does not pay
    with torch.inference_mode(), single_threads() as spread:
        exact = copy.deepcopy(plain).double()(x.double())
        errors = [apart(net(x), exact) for net in (plain, settled)]
        parts = x.split(max(1, len(x) // torch.get_num_threads()))

        def through(net: nn.Module) -> None:
            spread(torch.inference_mode()(net), parts)

        ways = [functools.partial(through, net) for net in (plain, settled)]
        return describe(ways, rounds, taken=taken, errors=errors)


def describe(ways: list[Callable[[], None]], rounds: int, *, taken: bool, errors: list[float]) -> str:
    """PyTorch's way and ours, in turns."""
    plain, ours = (1e3 * seconds for seconds in take_turns(ways, [rounds, rounds]))
    return (
        f"{plain:>7.1f} ms{ours:>7.1f} ms{plain / ours:>7.2f}  {'taken' if taken else '':7}{errors[0]:>8.0e}{errors[1]:>8.0e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    for measure in (train, embed):
        title = f"{measure.__name__}, layer"
        print(f"{title:24}{'channels':>10}{'kernel':>8}{'torch':>10}{'fewer':>10}{'times':>7}  {'':7}{'errors':>16}")
        for name, channels, width, side, kernel, padding, even in LAYERS:
            images = options.images if side < 56 else options.images // 8
            line = measure(channels, width, side, kernel, padding, even, images=images, rounds=options.rounds)
            print(f"{name:24}{f'{channels} > {width}':>10}{f'{kernel} x {kernel}':>8}{line}", flush=True)


if __name__ == "__main__":
    main()
