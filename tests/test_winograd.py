"""Convolutions by fewer multiplications, against PyTorch's own in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from nets import stir
from torch import Tensor, nn

from nearfar.encoders import Conv2, Conv3, Conv5, SmallResNet, channels_last, fuse, winograd
from nearfar.encoders.convolution import Conv2d, Settled, quicken, settle
from nearfar.encoders.winograd import MOST_POINTS, at_points, convolve, convolve_at, tiles


@pytest.fixture(autouse=True)
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which layers are taken is asked for one kind of processor, whatever the tests run on."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def draw(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def apart(a: Tensor, b: Tensor) -> float:
    """The root mean square of the difference, in that of ``b``."""
    a, b = a.detach().double(), b.detach()
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


@pytest.mark.parametrize("kernel", [2, 3, 5, 7])
def test_a_tile_is_inner_products(kernel: int) -> None:
    rng = np.random.default_rng(0)
    for outputs in range(1, MOST_POINTS - kernel + 2):
        after, before, of_kernel = winograd._tile(outputs, kernel)
        pixels, weights = rng.integers(-9, 10, outputs + kernel - 1), rng.integers(-9, 10, kernel)
        expected = np.correlate(pixels, weights, mode="valid")
        np.testing.assert_allclose(after @ ((of_kernel @ weights) * (before @ pixels)), expected, atol=1e-9)


@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_as_few_tiles_as_points_allow_cover_every_output(kernel: int) -> None:
    for outputs in range(1, 40):
        count, made = tiles(outputs, kernel)
        assert (count - 1) * made < outputs <= count * made
        assert made + kernel - 1 <= MOST_POINTS
        assert count == 1 or -(-outputs // (count - 1)) + kernel - 1 > MOST_POINTS  # with one less a tile is too large


Case = tuple[int, int, int, int, int, tuple[int, int], tuple[int, int], tuple[int, int]]
CASES: list[Case] = [
    # images, channels, height, width, width out, kernel, padding, outputs
    (5, 4, 7, 7, 6, (3, 3), (1, 1), (7, 7)),
    (5, 4, 7, 7, 6, (3, 3), (1, 1), (6, 6)),
    (3, 3, 14, 9, 2, (3, 3), (1, 0), (14, 7)),
    (1, 1, 3, 3, 1, (3, 3), (1, 1), (3, 3)),
    (4, 2, 12, 13, 3, (5, 5), (0, 0), (8, 8)),
    (4, 5, 6, 11, 3, (2, 2), (0, 0), (5, 10)),
    (2, 3, 8, 8, 4, (3, 5), (1, 2), (8, 8)),
    (2, 3, 5, 5, 4, (3, 3), (2, 2), (7, 7)),
    (2, 3, 13, 24, 4, (3, 3), (1, 1), (13, 24)),
]


@pytest.mark.parametrize("chunk", [1 << 21, 400])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_pytorch(monkeypatch: pytest.MonkeyPatch, case: Case, chunk: int) -> None:
    images, channels, height, width, wide, kernel, padding, outputs = case
    monkeypatch.setattr(winograd, "_CHUNK", chunk)  # 400 numbers: an image or two at a time
    x = draw(images, channels, height, width).requires_grad_()
    weight, bias = draw(wide, channels, *kernel, seed=1).requires_grad_(), draw(wide, seed=2).requires_grad_()
    y = convolve(x, weight, bias, padding, outputs)
    grad = draw(*y.shape, seed=3)
    y.backward(grad)
    exact = [each.detach().double().requires_grad_() for each in (x, weight, bias)]
    z = torch.conv2d(exact[0], exact[1], exact[2], padding=padding)[:, :, : outputs[0], : outputs[1]]
    z.backward(grad.double())
    assert y.shape == (images, wide, *outputs)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert apart(y, z) < 5e-5
    for ours, theirs in zip((x, weight, bias), exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.shape == theirs.grad.shape
        assert apart(ours.grad, theirs.grad) < 5e-5


@pytest.mark.parametrize("chunk", [1 << 21, 400])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_inference_is_that_of_pytorch_with_the_pooling_and_the_relu_behind_it(
    monkeypatch: pytest.MonkeyPatch, case: Case, pool: bool, relu: bool, chunk: int
) -> None:
    images, channels, height, width, wide, kernel, padding, outputs = case
    monkeypatch.setattr(winograd, "_CHUNK", chunk)
    if pool:
        outputs = (outputs[0] - outputs[0] % 2, outputs[1] - outputs[1] % 2)
    x, weight, bias = draw(images, channels, height, width), draw(wide, channels, *kernel, seed=1), draw(wide, seed=2)
    for offset in (bias, None):
        y = convolve_at(x, at_points(weight, outputs), offset, kernel, padding, outputs, pool=pool, relu=relu)
        exact = torch.conv2d(x.double(), weight.double(), None if offset is None else offset.double(), padding=padding)
        z = exact[:, :, : outputs[0], : outputs[1]]
        z = nn.functional.max_pool2d(z, 2) if pool else z
        z = z.relu() if relu else z
        assert y.shape == z.shape
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert apart(y, z) < 5e-5


@pytest.mark.parametrize("frozen", [{0}, {1, 2}, {0, 1}])
def test_what_needs_no_gradient_gets_none_and_the_rest_is_right(frozen: set[int]) -> None:
    parts = [draw(3, 4, 7, 7), draw(5, 4, 3, 3, seed=1), draw(5, seed=2)]
    ours = [each.clone().requires_grad_(i not in frozen) for i, each in enumerate(parts)]
    exact = [each.double().requires_grad_(i not in frozen) for i, each in enumerate(parts)]
    convolve(ours[0], ours[1], ours[2], (1, 1), (7, 7)).square().sum().backward()
    torch.conv2d(exact[0], exact[1], exact[2], padding=1).square().sum().backward()
    for i, (a, b) in enumerate(zip(ours, exact, strict=True)):
        if i in frozen:
            assert a.grad is None
        else:
            assert a.grad is not None
            assert b.grad is not None
            assert apart(a.grad, b.grad) < 5e-5


def test_an_image_is_convolved_alike_in_any_company() -> None:
    x, weight = draw(9, 40, 7, 7), draw(48, 40, 3, 3, seed=1)
    whole = convolve(x, weight, None, (1, 1), (7, 7))
    parts = torch.cat([convolve(part, weight, None, (1, 1), (7, 7)) for part in x.split((4, 2, 3))])
    assert apart(parts, whole.double()) < 5e-5


LAYER: dict[str, Any] = {"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 1}


def taken(x: Tensor, **settings: Any) -> bool:
    return Conv2d(**{**LAYER, **settings})._outputs(x) is not None


def test_which_layers_are_taken_is_decided_by_their_shapes() -> None:
    x = draw(2, 64, 7, 7)
    assert taken(x)
    assert taken(draw(500, 64, 7, 7))  # not by the batch
    assert taken(draw(2, 32, 12, 12), in_channels=32, kernel_size=5, padding=0)  # system A's second
    assert not taken(draw(2, 1, 28, 28), in_channels=1, kernel_size=5)  # its first
    assert not taken(x, kernel_size=1, padding=0)
    assert not taken(x, kernel_size=(1, 3), padding=(0, 1))
    assert not taken(x, stride=2)
    assert not taken(x, dilation=2, padding=2)
    assert not taken(x, groups=2)
    assert not taken(x, padding_mode="reflect")
    assert not taken(x, padding="same")
    assert not taken(x, kernel_size=11, padding=5)
    assert not taken(x.contiguous())
    assert not taken(x.double())
    assert not taken(x[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert not taken(x)


@pytest.mark.parametrize(
    ("capability", "few_channels", "large_maps"), [("AVX2", True, True), ("AVX512", False, False), ("DEFAULT", False, False)]
)
def test_processors_whose_direct_convolutions_are_faster_take_fewer_layers(
    monkeypatch: pytest.MonkeyPatch, capability: str, few_channels: bool, large_maps: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert taken(draw(2, 64, 7, 7))
    assert taken(draw(2, 32, 12, 12), in_channels=32, kernel_size=5, padding=0)
    assert taken(draw(2, 32, 14, 14), in_channels=32, out_channels=32) is few_channels
    assert taken(draw(2, 64, 56, 56)) is large_maps


def test_in_eval_mode_it_is_pytorchs_own() -> None:
    torch.manual_seed(0)
    layer, x = Conv2d(**LAYER), draw(4, 64, 7, 7)
    plain = nn.Conv2d(**LAYER)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), plain(x))
    assert repr(layer) == repr(plain)
    trained = layer.train()(x)
    assert not torch.equal(trained, plain(x))
    assert apart(trained, copy.deepcopy(plain).double()(x.double())) < 5e-5


def test_nets_of_others_are_quickened_in_place() -> None:
    class Own(nn.Conv2d):
        pass

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Sequential(nn.Conv2d(64, 8, 1)), Own(8, 8, 3))
    plain = copy.deepcopy(net)
    assert quicken(net) is net
    assert [type(layer) for layer in net.modules() if isinstance(layer, nn.Conv2d)] == [Conv2d, Conv2d, Own]
    assert list(net.state_dict()) == list(plain.state_dict())
    x = draw(3, 64, 7, 7)
    assert torch.equal(net.eval()(x), plain.eval()(x))
    assert not torch.equal(net.train()(x), plain(x))
    assert apart(net(x), plain.double()(x.double())) < 5e-5


def test_inputs_that_are_wrong_are_refused_as_pytorch_refuses_them() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        Conv2d(**LAYER)(draw(2, 60, 7, 7))
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        Conv2d(**{**LAYER, "padding": 0})(draw(2, 64, 2, 2))


@pytest.mark.parametrize("side", [7, 8, 9])
def test_an_odd_last_row_is_left_out_only_where_pooling_drops_it(side: int) -> None:
    torch.manual_seed(0)
    x = draw(4, 64, side, side)
    layer = Conv2d(**LAYER, even=True)
    pooled = nn.functional.max_pool2d(layer(x), 2)
    whole = copy.deepcopy(layer).double()(x.double())
    assert layer(x).shape[2:] == (side - side % 2,) * 2
    assert apart(pooled, nn.functional.max_pool2d(whole, 2)) < 5e-5


ENCODERS: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (SmallResNet, {"widths": (32, 64, 96), "blocks": (0, 1, 1), "stem": "deep", "kernel": 3, "pool": "none"}),
    (SmallResNet, {"widths": (32, 64, 64), "blocks": 0, "stem": "pool", "padding": 0, "halvings": 1, "pool": "none"}),
    (Conv5, {"dropout": 0.0}),
    (Conv2, {"dropout": 0.0}),
]


def smooth(net: nn.Module) -> nn.Module:
    """``net`` itself without its ReLU and max-pooling, which rounding may decide otherwise, and all gradients behind them."""
    for module in net.modules():
        for name, layer in module.named_children():
            if isinstance(layer, nn.ReLU):
                setattr(module, name, nn.Tanh())
            elif isinstance(layer, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(2))
    return net


@pytest.mark.parametrize(("kind", "params"), ENCODERS, ids=["padded", "unpadded", "system A", "system C"])
def test_whole_encoders_train_as_in_float64(kind: type[nn.Module], params: dict[str, Any]) -> None:
    ways: list[nn.Module] = []

    def see(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        if isinstance(layer, Conv2d) and layer._outputs(inputs[0]) is not None:
            ways.append(layer)

    torch.manual_seed(0)
    encoder = smooth(kind(**params))
    ours = channels_last(copy.deepcopy(encoder)).train()
    for layer in ours.modules():
        layer.register_forward_pre_hook(see)
    exact = copy.deepcopy(encoder).double().train()
    x = draw(12, 1, 28, 28)
    weights = draw(12, ours(x).shape[1], seed=1)
    ways.clear()
    (ours(x) * weights).sum().backward()
    (exact(x.double()) * weights).sum().backward()
    assert ways
    for (name, a), b in zip(ours.named_parameters(), exact.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        if b.grad.abs().max() > 1e-9:  # a bias before a batch norm has none
            assert apart(a.grad, b.grad) < 1e-3, name


SETTLED = [*ENCODERS, (Conv3, {"filters": (32, 64)}), (SmallResNet, {"widths": (32, 64, 96), "pool": "average"})]


def taken_in(net: nn.Module) -> int:
    """How many layers have embedded by fewer multiplications."""
    return sum(bool(layer._weights) for layer in net.modules() if isinstance(layer, Settled))


@pytest.mark.parametrize(("kind", "params"), SETTLED, ids=lambda value: getattr(value, "__name__", ""))
def test_settled_encoders_embed_as_in_float64(
    kind: type[nn.Module], params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settled, "_entry", lambda *_: 0.0)  # layers are taken that would not gain, too
    torch.manual_seed(0)
    encoder = channels_last(stir(kind(**params), negative=False).eval())
    x = draw(40, 1, 28, 28)
    exact = copy.deepcopy(encoder).double()(x.double())
    settled = settle(fuse(encoder))
    with torch.inference_mode():
        few, taken_of_few = settled(x[:2]), taken_in(settled)
        z = settled(x)
    assert not taken_of_few
    assert taken_in(settled)
    assert not any(type(layer) is Conv2d for layer in settled.modules())
    assert apart(z, exact) < 2e-5
    assert apart(few, exact[:2]) < 2e-5
    assert apart(encoder(x), exact) < 2e-5  # the net itself is as it was


def halving(**settings: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Conv2d(**LAYER), nn.MaxPool2d(**settings), nn.ReLU())


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"kernel_size": 2}, 1),
        ({"kernel_size": (2, 2), "stride": (2, 2)}, 1),
        ({"kernel_size": 3}, 3),
        ({"kernel_size": 2, "stride": 1}, 3),
        ({"kernel_size": 2, "padding": 1}, 3),
        ({"kernel_size": 2, "dilation": 2}, 3),
        ({"kernel_size": 2, "ceil_mode": True}, 3),
    ],
)
@pytest.mark.parametrize("side", [7, 8])
def test_only_max_pooling_of_two_by_two_becomes_part_of_a_convolution(settings: dict[str, Any], left: int, side: int) -> None:
    net = halving(**settings).eval()
    x = draw(40, 64, side, side)
    exact = copy.deepcopy(net).double()(x.double())
    settled = settle(net)
    assert isinstance(settled, nn.Sequential)
    assert len(settled) == left
    assert apart(settled(x), exact) < 5e-5
    assert apart(settled(x.contiguous()), exact) < 5e-5  # PyTorch's way, in which pooling and ReLU must not be lost
    assert apart(settled.double()(x.double()), exact) < 1e-12


def test_a_relu_straight_behind_a_convolution_becomes_part_of_it_and_another_layer_does_not() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        Conv2d(**LAYER), nn.ReLU(), Conv2d(**LAYER), nn.Tanh(), nn.ReLU(), nn.MaxPool2d(2), Conv2d(**LAYER)
    ).eval()
    x = draw(40, 64, 7, 7)
    exact = copy.deepcopy(net).double()(x.double())
    settled = settle(net)
    assert isinstance(settled, nn.Sequential)
    assert [type(layer) for layer in settled] == [Settled, Settled, nn.Tanh, nn.ReLU, nn.MaxPool2d, Settled]
    assert apart(settled(x), exact) < 5e-5


def test_a_net_of_another_forward_keeps_its_layers() -> None:
    class Own(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + self[1](self[0](x))

    torch.manual_seed(0)
    net = Own(Conv2d(**LAYER), nn.ReLU()).eval()
    x = draw(40, 64, 7, 7)
    exact = copy.deepcopy(net).double()(x.double())
    assert apart(settle(net)(x), exact) < 5e-5


def test_what_embedding_has_made_serves_training() -> None:
    """Matrices that are made once, here where no gradients are known of, are used afterwards where they are."""
    winograd.line.cache_clear()
    winograd._grid.cache_clear()
    torch.manual_seed(0)
    layer, x = Conv2d(**LAYER), draw(40, 64, 7, 7)
    with torch.inference_mode():
        settle(nn.Sequential(copy.deepcopy(layer).eval()))(x)
    layer(x).square().sum().backward()
    exact = copy.deepcopy(layer).double()
    exact.zero_grad()
    exact(x.double()).square().sum().backward()
    assert layer.weight.grad is not None
    assert exact.weight.grad is not None
    assert apart(layer.weight.grad, exact.weight.grad) < 5e-5
