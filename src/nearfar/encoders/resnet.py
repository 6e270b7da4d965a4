"""A small residual convolutional net for images of any size and channels, made for little time on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nearfar.encoders.checks import check_blocks, check_integer, check_integers, check_number, check_size
from nearfar.encoders.convolution import Conv2d
from nearfar.encoders.dropout import Dropout
from nearfar.encoders.flatten import Flatten
from nearfar.encoders.norm import BatchNorm
from nearfar.errors import InputError

_POOLS: dict[str, type[nn.Module] | None] = {"max": nn.AdaptiveMaxPool2d, "average": nn.AdaptiveAvgPool2d, "none": None}


class SmallResNet(nn.Module):
    """A stem that halves the image, stages that halve the maps and end in residual blocks (He et al. 2016); pooling, linear.

    Time on a CPU goes where maps are large, so nothing is computed at the full size of the image but the stem's own
    convolution, and residual blocks start behind the second halving. Within a stage the pooling comes straight after the
    convolution: batch norm and ReLU, which only move memory, then see a quarter of the pixels.

    A strided stem of 5 x 5 is the cheapest; one that looks at every pixel and keeps the largest of four ("pool") sees
    texture that the strided one steps over: worth a point of 10-NN accuracy on Fashion-MNIST. A second convolution before
    the pooling ("deep", as in ResNet-C; He et al. 2019) is worth half a point more, and costs as much as all that follows.

    For small images whose subject fills them, ``pool="none"`` keeps where things are, and ``padding=0`` leaves the empty
    border out: of an image of 28 x 28 they then make maps of 12 x 12, 5 x 5 and 1 x 1 instead of 14 x 14, 7 x 7 and 3 x 3.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        size: tuple[int, int] = (28, 28),
        widths: Sequence[int] = (32, 64, 128),
        blocks: int | Sequence[int] = 1,
        dim: int = 64,
        dropout: float = 0.0,
        pool: str = "max",
        stem: str = "stride",
        kernel: int = 5,
        padding: int = 1,
        halvings: int | None = None,
    ) -> None:
        """Args:
            channels: of the images.
            size: (height, width) of the images; each stage halves them, so three stages need 8 x 8.
            widths: channels of the stem and of each stage after it.
            blocks: residual blocks at the end of every stage after the stem; or a list, one number for each width.
            dim: length of the embedding.
            dropout: share of the pooled features that is dropped in training.
            pool: what makes one vector of the last maps: 'max' or 'average' of each, or 'none', their pixels side by side.
            stem: how the stem halves the image: by a 'stride' of two, or by max-pooling, 'pool', before which 'deep' has a
                second convolution, the first one with half as many channels.
            kernel: side of the stem's kernel, odd.
            padding: 1 to fill up the maps with zeros so that the convolutions of the stem and between the stages keep their
                size, 0 to let them shrink.
            halvings: how many of the stages after the stem halve the maps, the first ones; None: all.

        Raises:
            InputError: a value is not usable, or the images are too small.
        """
        super().__init__()
        check_integer("channels", channels)
        widths = check_integers("widths", widths)
        counts = _count_blocks(blocks, len(widths))
        check_number("dropout", dropout, least=0, below=1)
        if pool not in _POOLS:
            raise InputError(f"encoder.pool is {pool!r}; expected 'max', 'average' or 'none'")
        if stem not in ("stride", "pool", "deep"):
            raise InputError(f"encoder.stem is {stem!r}; expected 'stride', 'pool' or 'deep'")
        if check_integer("kernel", kernel) % 2 == 0:
            raise InputError(f"encoder.kernel is {kernel}; expected an odd number")
        if check_integer("padding", padding, least=0) > 1:
            raise InputError(f"encoder.padding is {padding}; expected 0 or 1")
        stages = len(widths) - 1
        halved = stages if halvings is None else min(stages, check_integer("halvings", halvings, least=0))
        height, width = check_size(size)
        least = _least_size(stem, kernel, stages, halved, padding)
        if min(height, width) < least:
            raise InputError(
                f"images of {height} x {width} pixels are too small for encoder 'resnet' with {len(widths)} widths, "
                f"which needs at least {least} x {least}; resize them or give fewer widths"
            )
        layers: list[nn.Module] = []
        border = kernel // 2 * padding
        if stem == "deep":
            half = max(1, widths[0] // 2)
            layers += [Conv2d(channels, half, kernel, padding=border, bias=False), BatchNorm(half), nn.ReLU()]
            channels = half
        stride = 2 if stem == "stride" else 1
        layers += [
            Conv2d(channels, widths[0], kernel, stride=stride, padding=border, bias=False, even=stem != "stride"),
            *([] if stem == "stride" else [nn.MaxPool2d(2)]),
            BatchNorm(widths[0]),
            nn.ReLU(),
            *(_Block(widths[0]) for _ in range(counts[0])),
        ]
        height, width = (_halved_by_stem(side, stem, kernel, padding) for side in (height, width))
        for stage, (inputs, outputs, count) in enumerate(zip(widths, widths[1:], counts[1:], strict=False)):
            layers.append(Conv2d(inputs, outputs, 3, padding=padding, bias=False, even=stage < halved))
            height, width = height + 2 * padding - 2, width + 2 * padding - 2
            if stage < halved:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            layers += [BatchNorm(outputs), nn.ReLU(), *(_Block(outputs) for _ in range(count))]
        self.features = nn.Sequential(*layers)
        pooling = _POOLS[pool]
        features = widths[-1] * (height * width if pooling is None else 1)
        self.head = nn.Sequential(
            nn.Identity() if pooling is None else pooling(1),
            Flatten(),
            Dropout(dropout),
            nn.Linear(features, check_integer("dim", dim)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class _Block(nn.Module):
    """x + two convolutions, each with batch norm and ReLU; nothing after the sum, so x passes through all blocks unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            Conv2d(width, width, 3, padding=1, bias=False),
            BatchNorm(width),
            nn.ReLU(),
            Conv2d(width, width, 3, padding=1, bias=False),
            BatchNorm(width),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _count_blocks(blocks: int | Sequence[int], stages: int) -> tuple[int, ...]:
    if not isinstance(blocks, int) and (not isinstance(blocks, list | tuple) or len(blocks) != stages):
        raise InputError(f"encoder.blocks is {blocks!r}; expected a whole number or {stages} of them, one for each width")
    counts = (0, *[blocks] * (stages - 1)) if isinstance(blocks, int) else tuple(blocks)
    check_blocks(sum(check_integer("blocks", count, least=0) for count in counts), blocks)
    return counts


def _halved_by_stem(side: int, stem: str, kernel: int, padding: int) -> int:
    lost = (kernel - 1) * (1 - padding)
    if stem == "stride":
        return (side - lost + 1) // 2
    return (side - lost * (2 if stem == "deep" else 1)) // 2


def _least_size(stem: str, kernel: int, stages: int, halved: int, padding: int) -> int:
    """The smallest side of an image of which something is left behind all stages."""
    side = 1
    for stage in reversed(range(stages)):
        side = side * (2 if stage < halved else 1) + 2 - 2 * padding
    least = 2 * side
    while _halved_by_stem(least, stem, kernel, padding) < side:
        least += 1
    return least
