"""A small residual convolutional net for images of any size and channels, made for little time on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nearfar.encoders.checks import check_integer, check_integers, check_number, check_size
from nearfar.encoders.dropout import Dropout
from nearfar.encoders.norm import BatchNorm
from nearfar.errors import InputError

_POOLS: dict[str, type[nn.Module]] = {"max": nn.AdaptiveMaxPool2d, "average": nn.AdaptiveAvgPool2d}


class SmallResNet(nn.Module):
    """A strided 5x5 stem, then stages that halve the maps and end in residual blocks (He et al. 2016); global pooling, linear.

    Time on a CPU goes where maps are large, so nothing is computed at the full size of the image but the stem's own
    strided convolution, and residual blocks start behind the second halving. Within a stage the pooling comes straight
    after the convolution: batch norm and ReLU, which only move memory, then see a quarter of the pixels.
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
    ) -> None:
        """Args:
            channels: of the images.
            size: (height, width) of the images; each stage halves them, so three stages need 8 x 8.
            widths: channels of the stem and of each stage after it.
            blocks: residual blocks at the end of every stage after the stem; or a list, one number for each width.
            dim: length of the embedding.
            dropout: share of the pooled features that is dropped in training.
            pool: what makes one vector of the last maps, 'max' or 'average'.

        Raises:
            InputError: a value is not usable, or the images are too small.
        """
        super().__init__()
        check_integer("channels", channels)
        widths = check_integers("widths", widths)
        counts = _count_blocks(blocks, len(widths))
        check_number("dropout", dropout, least=0, below=1)
        if pool not in _POOLS:
            raise InputError(f"encoder.pool is {pool!r}; expected 'max' or 'average'")
        least = 2 ** len(widths)
        if min(check_size(size)) < least:
            raise InputError(
                f"images of {size[0]} x {size[1]} pixels are too small for encoder 'resnet' with {len(widths)} widths, "
                f"which needs at least {least} x {least}; resize them or give fewer widths"
            )
        layers: list[nn.Module] = [
            nn.Conv2d(channels, widths[0], 5, stride=2, padding=2, bias=False),
            BatchNorm(widths[0]),
            nn.ReLU(),
            *(_Block(widths[0]) for _ in range(counts[0])),
        ]
        for inputs, outputs, count in zip(widths, widths[1:], counts[1:], strict=False):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.MaxPool2d(2),
                BatchNorm(outputs),
                nn.ReLU(),
                *(_Block(outputs) for _ in range(count)),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            _POOLS[pool](1), nn.Flatten(), Dropout(dropout), nn.Linear(widths[-1], check_integer("dim", dim))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class _Block(nn.Module):
    """x + two convolutions, each with batch norm and ReLU; nothing after the sum, so x passes through all blocks unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            BatchNorm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            BatchNorm(width),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _count_blocks(blocks: int | Sequence[int], stages: int) -> tuple[int, ...]:
    if isinstance(blocks, int):
        return (0, *[check_integer("blocks", blocks, least=0)] * (stages - 1))
    if not isinstance(blocks, list | tuple) or len(blocks) != stages:
        raise InputError(f"encoder.blocks is {blocks!r}; expected a whole number or {stages} of them, one for each width")
    return tuple(check_integer("blocks", count, least=0) for count in blocks)
