"""One suite over all encoders, and the numbers of the reference systems in closed form."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import stir
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nearfar.encoders import (
    ENCODERS,
    MLP,
    Conv2,
    Conv3,
    Conv5,
    Encoder,
    ResidualMLP,
    SmallResNet,
    UnitNorm,
    build_encoder,
    channels_last,
    format_summary,
    fuse,
    summary,
)
from nearfar.encoders.dropout import Dropout
from nearfar.encoders.flatten import Flatten
from nearfar.encoders.norm import BatchNorm, _fold
from nearfar.errors import InputError

# Small versions of every encoder, and forms of them that take other ways through the code.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("conv5", {"filters": (4, 6), "hidden": 10, "dim": 5}),
    ("mlp", {"hidden": (12, 6)}),
    ("conv2", {"filters": (6, 6, 4), "dim": 5}),
    ("conv3", {"filters": (3, 4)}),
    ("residual-mlp", {"width": 12, "blocks": 2, "dim": 5}),
    ("residual-mlp", {"width": 12, "blocks": (12, 8, 8), "dim": 5}),
    ("resnet", {"widths": (4, 6, 8), "dim": 5}),
    ("resnet", {"widths": (4, 6), "blocks": (1, 2), "dim": 5, "pool": "average", "dropout": 0.2}),
    ("resnet", {"widths": (4, 6, 8), "blocks": 0, "dim": 5, "pool": "none", "padding": 0, "halvings": 1}),
    ("resnet", {"widths": (4, 6, 8), "dim": 5, "stem": "pool", "kernel": 3, "halvings": 1}),
    ("resnet", {"widths": (5, 6), "dim": 5, "stem": "deep", "kernel": 3}),
]
IDS = [f"{kind}-{i}" for i, (kind, _) in enumerate(VARIANTS)]
each = pytest.mark.parametrize(("kind", "params"), VARIANTS, ids=IDS)


def build(kind: str, params: dict[str, Any], *, channels: int = 1, size: tuple[int, int] = (28, 28), **more: Any) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(kind, channels=channels, size=size, **params, **more)


def images(batch: int = 6, channels: int = 1, size: tuple[int, int] = (28, 28), seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


# ---- every encoder


@each
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (64, 64), (29, 35)])
@pytest.mark.parametrize("normalize", [True, False])
def test_shapes_and_lengths(kind: str, params: dict[str, Any], channels: int, size: tuple[int, int], normalize: bool) -> None:
    encoder = build(kind, params, channels=channels, size=size, normalize=normalize)
    z = encoder(images(channels=channels, size=size))
    assert z.shape == (6, params.get("dim", {"mlp": 2, "conv3": 10}.get(kind)))
    assert z.dtype == torch.float32
    assert encoder.normalize is normalize
    lengths = z.norm(dim=1)
    assert torch.allclose(lengths, torch.ones(6), atol=1e-6) is normalize


@each
def test_gradients_reach_every_parameter(kind: str, params: dict[str, Any]) -> None:
    encoder = build(kind, params)
    encoder(images(batch=16)).mul(torch.randn(16, 1)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        place, _, what = name.rpartition(".")
        if (kind, what) == ("conv5", "bias") and isinstance(encoder.get_submodule(place), nn.Conv2d):
            continue  # the batch norm behind it takes the bias out again: its gradient is zero but for rounding
        assert parameter.grad.abs().max() > 0, name


@each
def test_in_eval_mode_an_image_is_embedded_alike_always_and_in_any_company(kind: str, params: dict[str, Any]) -> None:
    encoder = stir(build(kind, params)).eval()
    x = images(batch=8)
    with torch.no_grad():
        z = encoder(x)
        torch.testing.assert_close(encoder(x), z, atol=0, rtol=0)
        torch.testing.assert_close(encoder(x[2:5]), z[2:5], atol=1e-6, rtol=1e-5)
        order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(encoder(x[order]), z[order], atol=1e-6, rtol=1e-5)


@each
def test_weights_go_through_a_file(kind: str, params: dict[str, Any], tmp_path: Path) -> None:
    encoder = stir(build(kind, params)).eval()
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(99)
    other = build_encoder(kind, channels=1, size=(28, 28), **params).eval()
    assert not torch.equal(other(images()), encoder(images()))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(images()), encoder(images()))


@each
@pytest.mark.parametrize("training", [True, False])
def test_the_memory_layout_changes_nothing(kind: str, params: dict[str, Any], training: bool) -> None:
    params = {**params, **({"dropout": 0.0} if kind in ("conv5", "conv2", "resnet") else {})}
    encoder = stir(build(kind, params, channels=3, normalize=False)).train(training).double()
    last = channels_last(copy.deepcopy(encoder))
    x = images(channels=3).double()
    one, other = encoder(x), last(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
    one.square().sum().backward()
    other.square().sum().backward()
    for a, b in zip(encoder.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-8, rtol=1e-8)


@each
@pytest.mark.parametrize("normalize", [True, False])
def test_bfloat16_arithmetic_ends_in_float32(kind: str, params: dict[str, Any], normalize: bool) -> None:
    encoder = build(kind, params, normalize=normalize).eval()
    with torch.autocast("cpu", torch.bfloat16):
        z = encoder(images())
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, encoder(images()), atol=0.05, rtol=0.05)
    if normalize:
        torch.testing.assert_close(z.norm(dim=1), torch.ones(6), atol=1e-6, rtol=0)
    z.square().mul(torch.arange(6)[:, None]).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


@each
def test_fused_encoders_embed_alike(kind: str, params: dict[str, Any]) -> None:
    encoder = stir(build(kind, params, normalize=False)).train()
    before = copy.deepcopy(encoder.state_dict())
    fused = fuse(encoder)
    torch.testing.assert_close(fused(images()), copy.deepcopy(encoder).eval()(images()), atol=1e-5, rtol=1e-5)
    assert encoder.training
    assert not fused.training
    assert not any(p.requires_grad for p in fused.parameters())
    assert not any(isinstance(module, Dropout) for module in fused.modules())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.requires_grad for p in encoder.parameters())


@each
def test_the_summary_tells_what_is_there(kind: str, params: dict[str, Any]) -> None:
    encoder = build(kind, params)
    encoder.net.eval()
    before = copy.deepcopy(encoder.state_dict())
    rows = summary(encoder, (1, 28, 28))
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in encoder.parameters())
    assert rows[-1].shape == tuple(encoder(images())[0].shape)
    assert encoder.training
    assert not encoder.net.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not any(module._forward_hooks for module in encoder.modules())


# ---- unit length


def test_a_zero_row_stays_finite() -> None:
    z = torch.zeros(2, 3, requires_grad=True)
    with torch.no_grad():
        z[1] = torch.tensor([3.0, 0.0, 4.0])
    out = UnitNorm()(z)
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.8]]))
    out.sum().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("length", [1e-5, 1.0, 1e15])
def test_unit_length_of_long_and_short_rows(length: float) -> None:
    z = torch.tensor([[3.0, 4.0]]) * length
    torch.testing.assert_close(UnitNorm()(z), torch.tensor([[0.6, 0.8]]))


def test_unit_length_has_the_right_gradient() -> None:
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(UnitNorm(), (z,))


# ---- the numbers of the reference systems


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel**2 + outputs


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


@pytest.mark.parametrize(
    ("encoder", "parameters", "dim"),
    [
        (Conv5(), conv(1, 32, 5) + 2 * 32 + conv(32, 64, 5) + 2 * 64 + linear(1024, 512) + linear(512, 64), 64),
        (MLP(), linear(784, 256) + linear(256, 128) + linear(128, 32) + linear(32, 2), 2),
        (Conv2(), conv(1, 128, 2) + conv(128, 128, 2) + conv(128, 64, 2) + linear(64, 128), 128),
        (
            Conv3(),
            conv(1, 8, 3) + conv(8, 8, 3) + conv(8, 16, 3) + conv(16, 16, 3) + 2 * (8 + 8 + 16 + 16)
            + conv(16, 1, 3) + linear(49, 49) + linear(49, 10),
            10,
        ),
        (ResidualMLP(), linear(784, 256) + 4 * 2 * (2 * 256 + linear(256, 256)) + linear(256, 128), 128),
        (
            ResidualMLP(width=20, blocks=(20, 30)),
            linear(784, 20) + 2 * (2 * 20 + linear(20, 20))
            + 2 * 20 + linear(20, 30) + 2 * 30 + linear(30, 30) + linear(20, 30) + linear(30, 128),
            128,
        ),
        (
            SmallResNet(channels=3, size=(64, 64)),
            3 * 32 * 25 + 2 * 32
            + 32 * 64 * 9 + 2 * 64 + 2 * (64 * 64 * 9 + 2 * 64)
            + 64 * 128 * 9 + 2 * 128 + 2 * (128 * 128 * 9 + 2 * 128) + linear(128, 64),
            64,
        ),
    ],
    ids=["A", "B", "C", "D", "E", "E-bypass", "resnet"],
)  # fmt: skip
def test_parameters_in_closed_form(encoder: nn.Module, parameters: int, dim: int) -> None:
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    x = images(batch=2, channels=3, size=(64, 64)) if isinstance(encoder, SmallResNet) else images(batch=2)
    assert encoder.eval()(x).shape == (2, dim)


def kinds(encoder: nn.Module) -> list[str]:
    return [row.layer.split()[1] for row in summary(encoder, (1, 28, 28))]


def test_layers_stand_in_the_order_of_the_systems() -> None:
    block = ["Conv2d", "BatchNorm", "MaxPool2d", "ReLU", "Dropout"]
    assert kinds(Conv5()) == [*block, *block, "Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    assert kinds(MLP()) == ["Flatten", *["Linear", "ReLU"] * 3, "Linear"]
    assert kinds(Conv2()) == [*["Conv2d", "MaxPool2d", "ReLU", "Dropout"] * 3, "AdaptiveAvgPool2d", "Flatten", "Linear"]
    pair = ["Conv2d", "ReLU", "BatchNorm"] * 2
    assert kinds(Conv3()) == [*pair, "MaxPool2d", *pair, "MaxPool2d", "Conv2d", "ReLU", "Flatten", "Linear", "Linear"]
    norm = ["LayerNorm", "LeakyReLU", "Linear"]
    assert kinds(ResidualMLP()) == ["Flatten", "Linear", *norm * 8, "Linear"]


@pytest.mark.parametrize(
    ("encoder", "rates"), [(Conv5(), {0.3}), (Conv2(), {0.4}), (SmallResNet(), {0.0}), (Conv5(dropout=0.1), {0.1})]
)
def test_dropout_rates(encoder: nn.Module, rates: set[float]) -> None:
    assert {module.p for module in encoder.modules() if isinstance(module, Dropout)} == rates


def test_a_pre_norm_block_by_hand() -> None:
    net = ResidualMLP(width=6, blocks=(6, 4), slope=0.2).double()
    for i, h in enumerate((torch.randn(3, 6).double(), torch.randn(3, 6).double())):
        block: Any = net.blocks[i]
        wanted = h
        for norm, line in ((block.branch[0], block.branch[2]), (block.branch[3], block.branch[5])):
            wanted = (wanted - wanted.mean(1, keepdim=True)) / (wanted.var(1, keepdim=True, correction=0) + norm.eps).sqrt()
            wanted = torch.where(wanted > 0, wanted, 0.2 * wanted) @ line.weight.T + line.bias
        bypass = h if i == 0 else h @ block.bypass.weight.T + block.bypass.bias
        torch.testing.assert_close(block(h), bypass + wanted)


def test_a_residual_block_adds_to_what_comes_in() -> None:
    net = SmallResNet(widths=(4, 6), blocks=(1, 0))
    block: Any = net.features[3]
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        block.branch[4].weight.zero_()
        block.branch[4].bias.fill_(-1)
    assert torch.equal(block(x), x)


def test_one_image_whose_maps_shrink_to_a_pixel_can_be_trained_on() -> None:
    net = SmallResNet(size=(8, 8), widths=(4, 6, 8))
    net(images(batch=1, size=(8, 8))).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    first, last = net.features[1], net.features[10]
    assert isinstance(first, nn.BatchNorm2d)
    assert isinstance(last, nn.BatchNorm2d)
    assert first.running_mean is not None
    assert last.running_mean is not None
    assert first.running_mean.any(), "16 pixels: an ordinary step"
    assert not last.running_mean.any(), "one pixel says nothing about the spread"


# ---- what is folded


@pytest.mark.parametrize(
    ("encoder", "left"), [(Conv5(), 0), (Conv3(), 4), (SmallResNet(), 0), (SmallResNet(blocks=(2, 1, 0)), 0)]
)
def test_batch_norms_behind_a_convolution_are_folded_and_others_left(encoder: nn.Module, left: int) -> None:
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fuse(encoder).modules()) == left


@pytest.mark.parametrize(("weights", "left"), [((0.5, 1.5), 0), ((0.0, 1.5), 0), ((-0.5, 1.5), 1), (None, 0)])
def test_a_batch_norm_behind_a_max_pooling_is_folded_where_they_may_change_places(
    weights: tuple[float, float] | None, left: int
) -> None:
    norm = nn.BatchNorm2d(6)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.MaxPool2d(3, 2, padding=1), norm, nn.BatchNorm2d(6))
    stir(net).eval()
    if weights is None:
        norm.affine = False
        norm.register_parameter("weight", None)
        norm.register_parameter("bias", None)
    else:
        norm.weight.data = torch.linspace(*weights, 6)
    fused = fuse(net)
    # The last one has another batch norm before it, which is none of what may stand between.
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules()) == 1 + left
    torch.testing.assert_close(fused(images()), net(images()))


class _Twice(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        convolution, norm = self
        return norm(norm(convolution(x)))


def test_layers_that_another_forward_calls_are_left_as_they_are() -> None:
    net = stir(_Twice(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6))).eval()
    torch.testing.assert_close(fuse(net)(images()), net(images()))


def test_fusing_works_where_no_gradients_are_kept() -> None:
    with torch.inference_mode():
        fused = fuse(SmallResNet())
        assert torch.isfinite(fused(images())).all()


def test_a_fused_encoder_can_be_fused_again() -> None:
    fused = fuse(stir(SmallResNet(widths=(4, 6))))
    torch.testing.assert_close(fuse(fused)(images()), fused(images()))


# ---- summary


def test_the_table_of_system_c() -> None:
    table = format_summary(summary(build("conv2", {}, normalize=False), (1, 28, 28)), (1, 28, 28))
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["layer", "output", "shape", "parameters"]
    assert lines[2].split() == ["input", "1", "x", "28", "x", "28", "0"]
    assert lines[3].split() == ["net.features.0", "Conv2d", "128", "x", "27", "x", "27", "640"]
    assert lines[-1].split() == ["total", f"{conv(1, 128, 2) + conv(128, 128, 2) + conv(128, 64, 2) + linear(64, 128):,}"]


def test_a_layer_that_several_views_pass_is_counted_once() -> None:
    one, several = (summary(build("mlp", {}, tta=tta), (1, 28, 28)) for tta in ([], ["mirror", "shift"]))
    assert several == one


def test_a_summary_of_the_wrong_shape() -> None:
    encoder = build("mlp", {})
    with pytest.raises(InputError, match=r"the encoder does not take images of shape \(3, 28, 28\)"):
        summary(encoder, (3, 28, 28))
    assert encoder.training
    assert not any(module._forward_hooks for module in encoder.modules())


# ---- wrong arguments


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("resnt", {}, "there is no encoder 'resnt'; did you mean 'resnet'"),
        ("resnet", {"width": (8,)}, "encoder 'resnet' has no parameter 'width'; did you mean 'widths'"),
        ("mlp", {"dropout": 0.1}, "encoder 'mlp' has no parameter 'dropout'; known are dim, hidden"),
        ("mlp", {"dim": 0}, "encoder.dim is 0; expected a whole number of at least 1"),
        ("mlp", {"hidden": ()}, r"encoder.hidden is \(\); expected a list of positive whole numbers"),
        ("mlp", {"hidden": "256"}, "encoder.hidden is '256'"),
        ("mlp", {"hidden": 256}, "encoder.hidden is 256"),
        ("resnet", {"widths": (8, 8), "blocks": (10**40, 1)}, "encoder.blocks is .*; expected 512 blocks at most"),
        ("residual-mlp", {"blocks": 10**9}, "encoder.blocks is 1000000000; expected 512 blocks at most"),
        ("mlp", {"normalize": "yes"}, "encoder.normalize is 'yes'; expected true or false"),
        ("conv5", {"filters": (8,)}, r"encoder.filters is \(8,\); expected 2 positive whole numbers"),
        ("conv5", {"hidden": 2.5}, "encoder.hidden is 2.5"),
        ("conv5", {"dropout": 1.0}, "encoder.dropout is 1.0; expected a number from 0 to below 1"),
        ("conv2", {"kernel": 0}, "encoder.kernel is 0"),
        ("conv2", {"filters": (8, True)}, "encoder.filters is"),
        ("residual-mlp", {"blocks": 0}, "encoder.blocks is 0"),
        ("residual-mlp", {"blocks": [8, 0]}, r"encoder.blocks is \[8, 0\]"),
        ("residual-mlp", {"slope": -0.1}, "encoder.slope is -0.1"),
        ("resnet", {"blocks": (1, 1)}, r"encoder.blocks is \(1, 1\); expected a whole number or 3 of them"),
        ("resnet", {"blocks": "2"}, "encoder.blocks is '2'"),
        ("resnet", {"blocks": -1}, "encoder.blocks is -1; expected a whole number of at least 0"),
        ("resnet", {"pool": "mean"}, "encoder.pool is 'mean'; expected 'max', 'average' or 'none'"),
        ("resnet", {"stem": "max"}, "encoder.stem is 'max'; expected 'stride', 'pool' or 'deep'"),
        ("resnet", {"kernel": 4}, "encoder.kernel is 4; expected an odd number"),
        ("resnet", {"padding": 2}, "encoder.padding is 2; expected 0 or 1"),
        ("resnet", {"halvings": -1}, "encoder.halvings is -1; expected a whole number of at least 0"),
    ],
)
def test_wrong_parameters(kind: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(kind, params)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind != "timm"])  # which has tests of its own
def test_wrong_images(kind: str) -> None:
    with pytest.raises(InputError, match=r"encoder\.channels is 0"):
        build(kind, {}, channels=0)
    with pytest.raises(InputError, match=r"encoder.size is \(28,\)"):
        build(kind, {}, size=(28,))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "least"), [("conv5", 16), ("conv2", 15), ("conv3", 4), ("resnet", 8)])
def test_too_small_images_are_told_the_least_size(kind: str, least: int) -> None:
    small = {"filters": (2, 2)} if kind in ("conv5", "conv3") else {}
    z = build(kind, small, size=(least, least)).eval()(images(size=(least, least)))
    assert torch.isfinite(z).all()
    with pytest.raises(InputError, match=f"images of {least - 1} x 40 pixels are too small.*at least {least} x {least}"):
        build(kind, small, size=(least - 1, 40))


@pytest.mark.parametrize("stem", ["stride", "pool", "deep"])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("halvings", [0, 1, 2, 3])
def test_the_least_size_of_a_residual_net_is_told_and_works(padding: int, halvings: int, stem: str) -> None:
    params = {"widths": (2, 3, 4, 5), "blocks": 0, "pool": "none", "padding": padding, "halvings": halvings, "stem": stem}
    with pytest.raises(InputError, match=r"at least (\d+) x \1;") as refusal:
        build("resnet", params, size=(1, 1))
    least = int(str(refusal.value).split("at least ")[1].split(" ")[0])
    assert build("resnet", params, size=(least, least + 3)).eval()(images(size=(least, least + 3))).shape == (6, 64)
    with pytest.raises(InputError, match=f"images of {least} x {least - 1} pixels"):
        build("resnet", params, size=(least, least - 1))


def test_lists_as_a_recipe_file_gives_them() -> None:
    encoder = build("conv5", {"filters": [4, 6], "hidden": 8}, size=[28, 28])  # type: ignore[arg-type]
    assert encoder(images()).shape == (6, 64)


@pytest.mark.parametrize("p", [0.1, 0.4, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dropout_keeps_the_share_that_it_says_and_the_mean(p: float, dtype: torch.dtype) -> None:
    layer, x = Dropout(p).train(), torch.ones(40, 5, 31, 33, dtype=dtype)
    y = layer(x.to(memory_format=torch.channels_last))
    kept = y != 0
    count = x.numel()
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * (p * (1 - p) / count) ** 0.5
    assert (y[kept] == torch.tensor(1 / (1 - p), dtype=dtype)).all()
    # No pattern along any axis: each slice keeps its share too.
    for axis in range(4):
        shares = kept.double().mean(dim=[d for d in range(4) if d != axis])
        assert float((shares - (1 - p)).abs().max()) < 6 * (p * (1 - p) * x.shape[axis] / count) ** 0.5


def test_dropout_of_almost_all_keeps_almost_none() -> None:
    assert int(Dropout(1 - 1e-9).train()(torch.ones(100_000)).count_nonzero()) < 20  # 2^-16 of them is 1.5


def test_dropout_is_decided_by_the_seed_and_sends_gradient_where_it_keeps() -> None:
    layer, x = Dropout(0.3).train(), torch.randn(7, 3, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    torch.manual_seed(5)
    first, second = layer(x), layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(first != 0, 1 / 0.7, 0.0))
    assert torch.equal(layer.eval()(x), x)
    strided = torch.randn(6, 8)[:, ::2]
    assert layer.train()(strided).shape == (6, 4)


@pytest.mark.parametrize("encoder", [Conv5(dropout=0.0), Conv2(dropout=0.0)])
def test_relu_behind_the_pooling_gives_the_same_numbers(encoder: nn.Module) -> None:
    layers = list(encoder.eval().features)  # type: ignore[arg-type]
    for place, layer in enumerate(layers[:-1]):
        if isinstance(layer, nn.MaxPool2d):
            layers[place], layers[place + 1] = layers[place + 1], layer
    x = images(batch=3)
    assert torch.equal(nn.Sequential(*layers)(x), encoder.features(x))  # type: ignore[operator]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    ("channels", "width"), [(1, 8), (3, 12), (8, 28), (8, 7), (12, 6), (12, 13), (16, 4), (20, 8), (40, 6)]
)
def test_batch_norm_of_few_channels_is_that_of_pytorch(channels: int, width: int, momentum: float | None) -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(channels, momentum=momentum).double(), nn.BatchNorm2d(channels, momentum=momentum).double()
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(2):
        x = (3 * torch.randn(5, channels, 6, width, dtype=torch.float64) + 2).to(memory_format=torch.channels_last)
        own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        pull = torch.randn_like(x)
        y, wanted = ours(own), theirs(other)
        (y * pull).sum().backward()
        (wanted * pull).sum().backward()
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(own.grad, other.grad)
        assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
    for (name, value), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, msg=name)


def test_batch_norm_of_few_channels_takes_its_statistics_in_float32_from_bfloat16() -> None:
    x = (torch.randn(64, 8, 16, 16) + 30).bfloat16().to(memory_format=torch.channels_last)
    layer = BatchNorm(8)
    y = layer(x.requires_grad_())
    (y.float() ** 3).sum().backward()
    assert (y.dtype, x.grad.dtype, layer.weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    wide = x.detach().double()
    torch.testing.assert_close(layer.running_mean.double(), 0.1 * wide.mean((0, 2, 3)), rtol=1e-5, atol=0)
    torch.testing.assert_close(y.float().var((0, 2, 3), correction=0), torch.ones(8), rtol=1e-2, atol=0)


def test_batch_norm_of_few_channels_folds_pixels_and_no_more_than_a_row_has() -> None:
    maps = [(8, 28), (3, 12), (8, 7), (16, 28), (20, 28), (24, 12), (40, 14), (56, 14)]

    def folds(dtype: torch.dtype) -> list[int]:
        batches = (torch.zeros(2, channels, 4, width, dtype=dtype) for channels, width in maps)
        return [_fold(x.to(memory_format=torch.channels_last)) for x in batches]

    assert folds(torch.float32) == [4, 12, 7, 1, 4, 2, 2, 1]
    assert folds(torch.bfloat16) == [28, 12, 7, 1, 28, 4, 14, 1]  # registers hold twice as many
    assert _fold(torch.zeros(2, 8, 4, 28)) == 1  # channels outermost


def test_system_c_begins_by_glorots_rule() -> None:
    torch.manual_seed(0)
    layers = [layer for layer in Conv2().modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        own, fan = layer.weight, layer.weight[0].numel() + layer.weight.numel() // layer.weight.shape[1]
        assert own.abs().max() <= (6 / fan) ** 0.5
        torch.testing.assert_close(own.var().item(), 2 / fan, rtol=0.15, atol=0)
        assert not layer.bias.any()


@pytest.mark.parametrize("normalize", [True, False])
def test_the_mean_over_views_by_hand(normalize: bool) -> None:
    params = {"filters": (4, 6), "hidden": 10, "dim": 5, "dropout": 0.0}
    encoder = build("conv5", params, normalize=normalize, tta=["mirror", "shift"])
    plain = build("conv5", params, normalize=normalize)
    plain.load_state_dict(encoder.state_dict())
    x = images()
    assert torch.equal(encoder.train()(x), plain.train()(x))  # training sees the image alone

    encoder.eval(), plain.eval()
    with torch.no_grad():
        rows = []
        for image in x:
            views = []
            for one in (image, image.flip(2)):
                views.append(one)
                for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                    moved = torch.empty_like(one)
                    for row in range(28):
                        for column in range(28):
                            above, left = min(max(row - down, 0), 27), min(max(column - right, 0), 27)
                            moved[:, row, column] = one[:, above, left]
                    views.append(moved)
            mean = plain(torch.stack(views)).mean(0)
            rows.append(mean / mean.norm() if normalize else mean)
        torch.testing.assert_close(encoder(x), torch.stack(rows))
        torch.testing.assert_close(fuse(encoder)(x), encoder(x))


@pytest.mark.parametrize(
    ("tta", "message"),
    [("mirror", "encoder.tta is 'mirror'; expected a list"), (["miror"], "an unknown view 'miror'; did you mean 'mirror'")],
)
def test_wrong_views(tta: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("mlp", {}, tta=tta)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_flatten_is_that_of_pytorch_and_keeps_the_layout_of_the_gradient(layout: torch.memory_format) -> None:
    x = images(4, channels=3, size=(5, 7)).contiguous(memory_format=layout)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    factor = torch.randn(4, 105, generator=torch.Generator().manual_seed(2))
    assert torch.equal(Flatten()(ours), nn.Flatten()(theirs))
    middle, seen = ours * 1.0, list[Tensor]()
    middle.register_hook(seen.append)
    (Flatten()(middle) * factor).sum().backward()
    (nn.Flatten()(theirs * 1.0) * factor).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]  # there after backward
    assert seen[0].is_contiguous(memory_format=layout)
    assert Flatten()(torch.zeros(3, 2)).shape == (3, 2)
