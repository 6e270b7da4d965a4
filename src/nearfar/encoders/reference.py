"""The encoders of the five reference systems, A to E. Each maps float images [B, C, H, W] to [B, dim].

The defaults are the numbers that the systems state. Other sizes and channels work wherever the layers allow it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nearfar.encoders.checks import check_blocks, check_integer, check_integers, check_number, check_size, shrink
from nearfar.encoders.convolution import Conv2d
from nearfar.encoders.dropout import Dropout
from nearfar.encoders.flatten import Flatten
from nearfar.encoders.norm import BatchNorm


class Conv5(nn.Module):
    """System A: two blocks of 5x5 convolution, batch norm, ReLU, max-pool and dropout, then two linear layers.

    The ReLU stands behind the max-pool, which gives the same numbers (both keep order) from a quarter of the pixels.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        size: tuple[int, int] = (28, 28),
        filters: Sequence[int] = (32, 64),
        hidden: int = 512,
        dropout: float = 0.3,
        dim: int = 64,
    ) -> None:
        super().__init__()
        check_integer("channels", channels)
        filters = check_integers("filters", filters, 2)
        check_number("dropout", dropout, least=0, below=1)
        height, width = shrink("conv5", check_size(size), kernels=(5, 5))
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *filters), filters, strict=False):
            layers += [
                Conv2d(inputs, outputs, 5),
                BatchNorm(outputs),
                nn.MaxPool2d(2),
                nn.ReLU(inplace=True),
                Dropout(dropout),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            Flatten(),
            nn.Linear(filters[-1] * height * width, check_integer("hidden", hidden)),
            nn.ReLU(inplace=True),
            Dropout(dropout),
            nn.Linear(hidden, check_integer("dim", dim)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class MLP(nn.Module):
    """System B: linear layers with ReLU between, into the plane."""

    def __init__(
        self,
        *,
        channels: int = 1,
        size: tuple[int, int] = (28, 28),
        hidden: Sequence[int] = (256, 128, 32),
        dim: int = 2,
    ) -> None:
        super().__init__()
        height, width = check_size(size)
        hidden = check_integers("hidden", hidden)
        layers: list[nn.Module] = [Flatten()]
        for inputs, outputs in zip((check_integer("channels", channels) * height * width, *hidden), hidden, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], check_integer("dim", dim)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Conv2(nn.Module):
    """System C: blocks of unpadded 2x2 convolution, ReLU, max-pool and dropout, averaged over the image, and a linear layer.

    As in `Conv5` the ReLU stands behind the max-pool.
    Weights begin as Glorot and Bengio (2010) have it and biases at zero: PyTorch's own smaller start loses most of the signal
    between three dropouts, and learns as much only many epochs later.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        size: tuple[int, int] = (28, 28),
        filters: Sequence[int] = (128, 128, 64),
        kernel: int = 2,
        dropout: float = 0.4,
        dim: int = 128,
    ) -> None:
        super().__init__()
        check_integer("channels", channels)
        filters = check_integers("filters", filters)
        check_number("dropout", dropout, least=0, below=1)
        shrink("conv2", check_size(size), kernels=(check_integer("kernel", kernel),) * len(filters))
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *filters), filters, strict=False):
            convolution = Conv2d(inputs, outputs, kernel, even=True)
            layers += [convolution, nn.MaxPool2d(2), nn.ReLU(inplace=True), Dropout(dropout)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(filters[-1], check_integer("dim", dim)))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Conv3(nn.Module):
    """System D: 3x3 convolutions, each followed by ReLU and then batch norm, to one map; two linear layers on its pixels.

    There is nothing between the two linear layers: the system describes none.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        size: tuple[int, int] = (28, 28),
        filters: Sequence[int] = (8, 16),
        dim: int = 10,
    ) -> None:
        super().__init__()
        check_integer("channels", channels)
        filters = check_integers("filters", filters)
        height, width = shrink("conv3", check_size(size), kernels=(3,) * len(filters), padding=1)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *filters), filters, strict=False):
            for source in (inputs, outputs):
                layers += [Conv2d(source, outputs, 3, padding=1), nn.ReLU(inplace=True), BatchNorm(outputs)]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.Conv2d(filters[-1], 1, 3, padding=1), nn.ReLU(inplace=True))
        pixels = height * width
        self.head = nn.Sequential(Flatten(), nn.Linear(pixels, pixels), nn.Linear(pixels, check_integer("dim", dim)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class ResidualMLP(nn.Module):
    """System E: a linear layer, pre-norm residual blocks, a linear layer."""

    def __init__(
        self,
        *,
        channels: int = 1,
        size: tuple[int, int] = (28, 28),
        width: int = 256,
        blocks: int | Sequence[int] = 4,
        dim: int = 128,
        slope: float = 0.1,
    ) -> None:
        """``blocks``: how many of ``width``, or the output width of each; one that differs from the last has a bypass."""
        super().__init__()
        height, columns = check_size(size)
        check_integer("width", width)
        if isinstance(blocks, int):
            check_blocks(check_integer("blocks", blocks), blocks)
        widths = check_integers("blocks", (width,) * blocks if isinstance(blocks, int) else blocks)
        check_number("slope", slope, least=0, below=1)
        self.stem = nn.Sequential(Flatten(), nn.Linear(check_integer("channels", channels) * height * columns, width))
        self.blocks = nn.Sequential(*(_PreNormBlock(a, b, slope) for a, b in zip((width, *widths), widths, strict=False)))
        self.head = nn.Linear(widths[-1], check_integer("dim", dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class _PreNormBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, slope: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.LayerNorm(inputs),
            nn.LeakyReLU(slope),
            nn.Linear(inputs, outputs),
            nn.LayerNorm(outputs),
            nn.LeakyReLU(slope),
            nn.Linear(outputs, outputs),
        )
        self.bypass: nn.Module = nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bypass(x) + self.branch(x)
