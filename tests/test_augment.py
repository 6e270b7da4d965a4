"""Augmentations against slow loops, symmetries, and the distributions that they promise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nearfar.augment import (
    Augment,
    affine,
    blur,
    brightness,
    contrast,
    erase,
    flip,
    gamma,
    grey,
    hue,
    noise,
    normalize,
    numbers,
    places,
    rotate,
    saturation,
    shift,
    solarise,
)
from nearfar.errors import InputError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 6, channels: int = 2, height: int = 9, width: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(1, 256, (batch, channels, height, width), dtype=torch.uint8, generator=seeded(seed))


EACH: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "shift": lambda x, g: shift(x, 2, g, fill=3),
    "flip": flip,
    "affine": lambda x, g: affine(x, g, degrees=20, scale=0.2, shear=10, translate=0.1, fill=40),
    "rotate": lambda x, g: rotate(x, 15, g),
    "brightness": lambda x, g: brightness(x, 0.4, g),
    "contrast": lambda x, g: contrast(x, 0.4, g),
    "noise": lambda x, g: noise(x, 0.1, g),
    "erase": lambda x, g: erase(x, 0.5, g, fill=7),
    "crop": lambda x, g: affine(x, g, crop=0.2, fill=40),
    "gamma": lambda x, g: gamma(x, 0.5, g),
    "solarise": lambda x, g: solarise(x, 0.5, g),
    "blur": lambda x, g: blur(x, 0.3, g),
    "all": Augment(
        **{"shift": 2, "flip": True, "degrees": 9, "scale": 0.1, "shear": 5, "crop": 0.5, "brightness": 0.2, "contrast": 0.2},
        **{"gamma": 0.3, "solarise": 0.1, "blur": 0.1, "noise": 0.05, "erase": 0.3, "fill": 9},
    ),
}
KEEP_TYPE = {"shift", "flip", "erase"}


# ---- what holds for every one


@pytest.mark.parametrize("name", EACH)
def test_the_generator_decides_everything(name: str) -> None:
    x = images()
    torch.manual_seed(1)
    one = EACH[name](x, seeded(3))
    torch.manual_seed(2)
    assert torch.equal(one, EACH[name](x, seeded(3)))
    assert not torch.equal(one, EACH[name](x, seeded(4)))


@pytest.mark.parametrize("name", EACH)
def test_type_shape_scale_and_the_original(name: str) -> None:
    x = images()
    before = x.clone()
    out = EACH[name](x, seeded())
    assert torch.equal(x, before)
    assert out.shape == x.shape
    assert out.dtype == (torch.uint8 if name in KEEP_TYPE else torch.float32)
    assert out.min() >= 0
    assert out.max() <= 255
    assert EACH[name](x.double(), seeded()).dtype == torch.float64
    assert torch.equal(EACH[name](x.float(), seeded()).float(), out.float())


@pytest.mark.parametrize("name", EACH)
def test_every_image_has_its_own_numbers(name: str) -> None:
    same = images(batch=1).expand(64, -1, -1, -1)
    out = EACH[name](same, seeded())
    assert len({tuple(row.flatten().tolist()) for row in out}) > 1


@pytest.mark.parametrize("name", EACH)
def test_only_batches_of_images_are_taken(name: str) -> None:
    with pytest.raises(InputError, match=r"images have shape \(1, 28, 28\); expected \[B, C, H, W\]"):
        EACH[name](torch.zeros(1, 28, 28), seeded())


@pytest.mark.parametrize("name", EACH)
def test_an_empty_batch_stays_empty(name: str) -> None:
    assert EACH[name](images(batch=0), seeded()).shape == (0, 2, 9, 7)


# ---- shift


def moved(image: Tensor, down: int, right: int, fill: int) -> Tensor:
    """The slow loop: what was at (i, j) is now at (i + down, j + right)."""
    out = torch.full_like(image, fill)
    _, height, width = image.shape
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                out[:, i + down, j + right] = image[:, i, j]
    return out


def test_a_shifted_image_is_the_image_moved() -> None:
    x = images(batch=20, channels=3)
    out = shift(x, 2, seeded(), fill=17)
    for image, result in zip(x, out, strict=True):
        found = [torch.equal(moved(image, i, j, 17), result) for i in range(-2, 3) for j in range(-2, 3)]
        assert sum(found) == 1


def test_shifts_are_uniform() -> None:
    x = torch.zeros(10_000, 1, 7, 7, dtype=torch.uint8)
    x[:, 0, 3, 3] = 1
    places = shift(x, 2, seeded()).sum(0, dtype=torch.int64)[0]
    assert places.sum() == 10_000
    assert (places[1:6, 1:6] - 400).abs().max() < 5 * math.sqrt(400)


def test_an_image_may_be_shifted_out_of_view() -> None:
    out = shift(images(batch=200, height=3, width=3), 5, seeded(), fill=0)
    assert (out.flatten(1).max(1).values == 0).any()


# ---- flip


def test_flipping_twice_alike_changes_nothing() -> None:
    x = images()
    assert torch.equal(flip(flip(x, seeded(5)), seeded(5)), x)


def test_each_image_is_mirrored_or_not() -> None:
    x = images(batch=2000, height=3, width=4)
    out = flip(x, seeded())
    mirrored = (out == torch.from_numpy(x.numpy()[..., ::-1].copy())).flatten(1).all(1)
    same = (out == x).flatten(1).all(1)
    assert (mirrored | same).all()
    assert abs(mirrored.float().mean() - 0.5) < 5 * 0.5 / math.sqrt(2000)


# ---- affine


def slow_affine(x: np.ndarray, matrices: np.ndarray, moves: np.ndarray, fill: float) -> np.ndarray:
    """Bilinear interpolation in float64, pixel by pixel: output p comes from M^-1 (p - move) about the centre."""
    out = np.empty_like(x)
    batch, channels, height, width = x.shape
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    for b in range(batch):
        inverse = np.linalg.inv(matrices[b])
        for i in range(height):
            for j in range(width):
                u, v = inverse @ (np.array([j, i]) - centre - moves[b]) + centre
                for c in range(channels):
                    value = 0.0
                    for y in (math.floor(v), math.floor(v) + 1):
                        for z in (math.floor(u), math.floor(u) + 1):
                            inside = 0 <= y < height and 0 <= z < width
                            value += (1 - abs(v - y)) * (1 - abs(u - z)) * (x[b, c, y, z] if inside else fill)
                    out[b, c, i, j] = value
    return out


@pytest.mark.parametrize("fill", [0, 80])
def test_affine_is_turn_slant_grow_and_move(fill: int) -> None:
    x = images(batch=4, height=8, width=11).double()
    turn, grow, slant, down, right = numbers.uniform((5, 4), seeded(9), x).numpy()
    turn, grow, slant = np.radians(30 * turn), 1 + 0.3 * grow, np.tan(np.radians(20 * slant))
    one, zero = np.ones(4), np.zeros(4)
    rotation = np.stack([np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)], 1).reshape(4, 2, 2)
    shearing = np.stack([one, slant, zero, one], 1).reshape(4, 2, 2)
    moves = np.stack([0.2 * right * 11, 0.2 * down * 8], 1)
    wanted = slow_affine(x.numpy(), rotation @ shearing * grow[:, None, None], moves, fill)
    out = affine(x, seeded(9), degrees=30, scale=0.3, shear=20, translate=0.2, fill=fill)
    np.testing.assert_allclose(out.numpy(), wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("amounts", "wanted"),
    [
        ({"degrees": 90}, lambda x: torch.rot90(x, -1, (2, 3))),
        ({"degrees": 180}, lambda x: torch.rot90(x, 2, (2, 3))),
        ({"translate": 0.25}, lambda x: torch.stack([moved(image, 2, 2, 0) for image in x])),
        ({"elastic": 0.25}, lambda x: torch.stack([moved(image, -2, -2, 0) for image in x])),
    ],
)
def test_affine_at_its_limits(amounts: Any, wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "uniform", lambda shape, generator, like, **dim: torch.ones(shape, dtype=like.dtype))
    x = images(height=8, width=8).double()
    torch.testing.assert_close(affine(x, seeded(), **amounts), wanted(x), atol=1e-9, rtol=0)


def test_elastic_moves_the_points_of_its_grid_as_they_were_drawn() -> None:
    down, right = (ramp.double().expand(6, 1, 9, 9) for ramp in (torch.arange(9)[:, None], torch.arange(9)))
    _, drawn = numbers.uniform((5, 6), g := seeded(3), down), numbers.uniform((6, 2, 5, 5), g, down)
    for axis, ramp in ((0, right), (1, down)):  # where a pixel comes from is what it shows
        bent = affine(ramp, seeded(3), elastic=0.05)[:, 0, 2:7:2, 2:7:2]
        torch.testing.assert_close(bent, ramp[:, 0, 2:7:2, 2:7:2] + 0.05 * 9 * drawn[:, axis, 1:4, 1:4], atol=1e-9, rtol=0)


def test_affine_by_nothing_changes_nothing() -> None:
    x = images()
    torch.testing.assert_close(affine(x, seeded()), x.float(), atol=1e-3, rtol=0)


def test_random_numbers_are_uniform_from_minus_one_to_one() -> None:
    drawn = numbers.uniform((20_000,), seeded(), torch.zeros(0)).numpy()
    counts = np.histogram(drawn, bins=10, range=(-1, 1))[0]
    assert counts.sum() == 20_000
    assert abs(counts - 2000).max() < 5 * math.sqrt(2000)


# ---- brightness, contrast, noise


def test_brightness_multiplies_each_image_by_one_factor() -> None:
    x = torch.randint(50, 150, (500, 2, 3, 3), generator=seeded(), dtype=torch.uint8)
    factors = (brightness(x, 0.5, seeded()).double() / x).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), atol=1e-6, rtol=0)
    assert 0.5 <= factors.min() < 0.52
    assert 1.48 < factors.max() <= 1.5
    assert brightness(torch.full((50, 1, 1, 1), 255.0), 0.5, seeded()).max() == 255


def test_contrast_stretches_each_image_about_its_mean() -> None:
    x = torch.randint(100, 156, (500, 2, 3, 3), generator=seeded(), dtype=torch.uint8).double()
    out = contrast(x, 0.5, seeded())
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(out.mean((1, 2, 3), keepdim=True), mean)
    factors = ((out - mean).flatten(1) * (x - mean).flatten(1)).sum(1) / (x - mean).flatten(1).square().sum(1)
    torch.testing.assert_close(out, mean + factors[:, None, None, None] * (x - mean))
    assert 0.5 <= factors.min() < 0.52
    assert 1.48 < factors.max() <= 1.5


def test_noise_is_normal_and_independent() -> None:
    drawn = noise(torch.full((100, 1, 20, 20), 128, dtype=torch.uint8), 0.1, seeded()).double() - 128
    assert abs(drawn.mean()) < 5 * 25.5 / 200
    assert abs(drawn.std() - 25.5) < 5 * 25.5 / math.sqrt(2 * 40_000)
    assert abs((drawn[..., 1:] * drawn[..., :-1]).mean()) < 5 * 25.5**2 / math.sqrt(38_000)
    assert abs((drawn.abs() < 25.5).double().mean() - math.erf(math.sqrt(0.5))) < 5 * 0.5 / 200


# ---- erase


def test_one_square_is_erased_from_each_image() -> None:
    x = images(batch=400, channels=3, height=10, width=12)
    out = erase(x, 0.4, seeded(), fill=0)
    hole = (out == 0).all(1)
    assert torch.equal(torch.where(hole[:, None], torch.zeros_like(x), x), out)
    centres = np.zeros((10, 12))
    for one in hole.numpy():
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        assert one.sum() == len(rows) * len(columns) == len(rows) * (np.ptp(columns) + 1) == (np.ptp(rows) + 1) * len(columns)
        assert 2 <= len(rows) <= 4
        assert 2 <= len(columns) <= 4
        centres[rows[0] if rows[-1] < 9 else rows[-1] - 3, columns[0] if columns[-1] < 11 else columns[-1] - 3] += 1
    assert (hole.sum((1, 2)) == 16).any()
    assert hole.any(0).all(), "the square reaches every pixel"


def test_the_centre_of_the_square_is_a_uniform_pixel() -> None:
    hole = erase(torch.ones(20_000, 1, 4, 5, dtype=torch.uint8), 0.25, seeded(), fill=0)[:, 0] == 0  # a square of one pixel
    assert (hole.sum((1, 2)) == 1).all()
    assert (hole.sum(0) - 1000).abs().max() < 5 * math.sqrt(1000)


# ---- normalize


@settings(max_examples=25, deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    channels_last=st.booleans(),
    per_channel=st.booleans(),
    source=st.sampled_from([torch.uint8, torch.float32]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_normalize_is_the_formula(
    channels: int, channels_last: bool, per_channel: bool, source: torch.dtype, dtype: torch.dtype
) -> None:
    x = images(channels=channels).to(source)
    before = x.clone()
    mean: Any = [0.1, 0.2, 0.3][:channels] if per_channel else 0.1307
    std: Any = (0.3, 0.2, 0.4)[:channels] if per_channel else 0.3081
    out = normalize(x, mean, std, dtype, channels_last)
    means, stds = (torch.tensor(v, dtype=torch.float64).reshape(1, -1, 1, 1) for v in (mean, std))
    wanted = (x.double() / 255 - means) / stds
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 4e-3}[dtype]
    torch.testing.assert_close(out.double(), wanted, atol=tolerance, rtol=tolerance)
    assert out.dtype == dtype
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert out.stride() == torch.empty(out.shape).to(memory_format=layout).stride()
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), 0.5, "mean has 2 numbers, the images have 3 channels"),
        (0.5, (1, 1), "std has 2 numbers, the images have 3 channels"),
        (0.5, 0, "std is 0; expected positive numbers"),
        (0.5, (1, 1, -1), "expected positive numbers"),
    ],
)
def test_numbers_that_do_not_fit(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        normalize(images(channels=3), mean, std)


# ---- Augment


def test_nothing_asked_for_changes_nothing_and_draws_nothing() -> None:
    x, generator = images(), seeded()
    before = generator.get_state()
    assert Augment(fill=9)(x, generator) is x
    assert torch.equal(generator.get_state(), before)
    assert not Augment(fill=9)
    assert Augment(shift=1)


def test_the_parts_follow_each_other_in_the_stated_order() -> None:
    x, g = images(), seeded(8)
    out = shift(flip(x, g), 1, g, fill=5)
    out = contrast(brightness(affine(out, g, degrees=5, scale=0.1, shear=3, fill=5), 0.2, g), 0.3, g)
    out = erase(noise(out, 0.1, g), 0.3, g, fill=5)
    whole = Augment(
        shift=1, flip=True, degrees=5, scale=0.1, shear=3, brightness=0.2, contrast=0.3, noise=0.1, erase=0.3, fill=5
    )
    assert torch.equal(whole(x, seeded(8)), out)


@pytest.mark.parametrize("field", [field for field in dataclasses.fields(Augment) if field.name != "fill"])
def test_each_part_alone_is_its_function(field: dataclasses.Field[Any]) -> None:
    value: Any = {"shift": 2, "flip": True, "degrees": 30, "shear": 30}.get(field.name, 0.5)
    alone = {
        "shift": lambda x, g: shift(x, 2, g, fill=30),
        "flip": flip,
        "brightness": lambda x, g: brightness(x, 0.5, g),
        "contrast": lambda x, g: contrast(x, 0.5, g),
        "noise": lambda x, g: noise(x, 0.5, g),
        "erase": lambda x, g: erase(x, 0.5, g, fill=30),
        "gamma": lambda x, g: gamma(x, 0.5, g),
        "saturation": lambda x, g: saturation(x, 0.5, g),
        "hue": lambda x, g: hue(x, 0.5, g),
        "grey": lambda x, g: grey(x, 0.5, g),
        "solarise": lambda x, g: solarise(x, 0.5, g),
        "blur": lambda x, g: blur(x, 0.5, g),
    }.get(field.name, lambda x, g: affine(x, g, **{field.name: value}, fill=30))
    out = Augment(**{field.name: value}, fill=30)(images(channels=3), seeded(1))
    assert torch.equal(out, alone(images(channels=3), seeded(1)))
    assert out.dtype == (torch.uint8 if field.name in KEEP_TYPE else torch.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shift": -1}, "augment.shift is -1; expected a whole number from 0$"),
        ({"shift": 1.5}, "augment.shift is 1.5; expected a whole number"),
        ({"shift": True}, "augment.shift is True"),
        ({"flip": 1}, "augment.flip is 1; expected true or false"),
        ({"degrees": 181}, "augment.degrees is 181; expected a number from 0 to 180"),
        ({"scale": 1.0}, "augment.scale is 1.0; expected a number from 0 up to, not including, 1"),
        ({"shear": 90}, "augment.shear is 90; expected a number from 0 up to, not including, 90"),
        ({"brightness": -0.1}, "augment.brightness is -0.1"),
        ({"contrast": "0.1"}, "augment.contrast is '0.1'"),
        ({"noise": float("nan")}, "augment.noise is nan"),
        ({"elastic": -1}, "augment.elastic is -1; expected a number from 0 to 1"),
        ({"erase": 2}, "augment.erase is 2; expected a number from 0 to 1"),
        ({"fill": 256}, "augment.fill is 256; expected a whole number from 0 to 255"),
    ],
)
def test_numbers_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augment(**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, g: shift(x, -1, g), "^pixels is -1"),
        (lambda x, g: shift(x, 1, g, fill=300), "^fill is 300"),
        (lambda x, g: affine(x, g, translate=1.5), "^translate is 1.5"),
        (lambda x, g: rotate(x, -5, g), "^degrees is -5"),
        (lambda x, g: brightness(x, 2, g), "^brightness is 2"),
        (lambda x, g: contrast(x, 2, g), "^contrast is 2"),
        (lambda x, g: noise(x, -1, g), "^noise is -1"),
        (lambda x, g: erase(x, 1.1, g), "^erase is 1.1"),
    ],
)
def test_functions_check_their_numbers(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(images(), seeded())


# ---- crop, light and colour


def test_a_crop_is_a_window_inside_the_image_enlarged() -> None:
    """A ramp tells where each pixel was found: linear interpolation gives it back exactly."""
    height, width, count = 40, 60, 500
    down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramps = torch.stack([down, right]).double().expand(count, -1, -1, -1)
    found = affine(ramps, seeded(), crop=0.2)
    top, left = found[:, 0, 1, 5], found[:, 1, 5, 1]
    tall = (found[:, 0, -2, 5] - top) / (height - 3)  # pixels of the image to one of the view
    wide = (found[:, 1, 5, -2] - left) / (width - 3)
    straight = top[:, None] + tall[:, None] * torch.arange(height - 2)
    assert torch.allclose(found[:, 0, 1:-1, 5], straight, atol=1e-9)
    area, aspect = tall * wide, (wide / tall).log()
    assert area.min() >= 0.2 * 0.999
    assert area.max() <= 1.0 + 1e-9
    assert abs(float(area.mean()) - 0.6) < 0.03
    assert aspect.abs().max() <= math.log(4 / 3) + 1e-9
    for first, step, whole in ((top - tall, tall, height), (left - wide, wide, width)):  # the first pixel, the step, the edge
        assert (first - step / 2).min() >= -0.5 - 1e-6
        assert (first - step / 2 + step * whole).max() <= whole - 0.5 + 1e-6


def test_gamma_keeps_black_white_and_order() -> None:
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(200, -1, -1, -1)
    out = gamma(x, 0.5, seeded()).double()
    assert torch.equal(out[:, 0, 0, 0], torch.zeros(200).double())
    assert torch.allclose(out[:, 0, -1, -1], torch.full((200,), 255.0).double())
    exponents = (out[:, 0, 8, 0] / 255).log() / math.log(128 / 255)
    assert exponents.min() >= 1 / 1.5 - 1e-5
    assert exponents.max() <= 1.5 + 1e-5
    assert abs(float(exponents.log().mean())) < 0.05
    again = 255 * (x.double() / 255) ** exponents[:, None, None, None]
    assert torch.allclose(out, again, atol=1e-2)


def test_saturation_moves_along_the_line_to_grey() -> None:
    x = images(batch=50, channels=3).double()
    out = saturation(x, 0.5, seeded())
    luma = (x * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(1, keepdim=True)
    inside = (out > 0) & (out < 255) & ((x - luma).abs() > 20)
    factor = torch.where(inside, (out - luma) / (x - luma), torch.nan)
    first = factor.flatten(1).nanmedian(1).values
    assert first.min() >= 0.5 - 1e-6
    assert first.max() <= 1.5 + 1e-6
    assert torch.allclose(factor[inside], first[:, None, None, None].expand_as(factor)[inside], atol=1e-6)


def test_hue_keeps_luma_greys_and_the_distance_from_grey() -> None:
    flat = torch.full((8, 3, 2, 2), 77.0).double()
    assert torch.allclose(hue(flat, 0.5, seeded()), flat, atol=0.2)  # the three-digit numbers of the colour space
    x = 128 + 20 * torch.randn(40, 3, 4, 4, generator=seeded()).clamp(-2, 2).double()
    out = hue(x, 0.5, seeded())
    into = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=torch.float64)
    before, after = (torch.einsum("ij,bjhw->bihw", into, one) for one in (x, out))
    assert torch.allclose(before[:, 0], after[:, 0], atol=1e-6)
    assert torch.allclose(before[:, 1:].norm(dim=1), after[:, 1:].norm(dim=1), atol=1e-6)
    turned = torch.atan2(after[:, 2], after[:, 1]) - torch.atan2(before[:, 2], before[:, 1])
    angle = torch.atan2(turned.sin(), turned.cos())
    assert float((angle - angle[:, :1, :1]).sin().abs().max()) < 1e-6
    assert len(torch.unique(angle[:, 0, 0].round(decimals=6))) == 40


def test_shares_of_images_lose_their_colour_or_are_turned_around() -> None:
    x = images(batch=4000, channels=3, height=3, width=3)
    greyed = grey(x, 0.3, seeded())
    whole = (greyed[:, 0] == greyed[:, 1]).flatten(1).all(1)
    assert abs(int(whole.sum()) - 1200) < 5 * math.sqrt(4000 * 0.3 * 0.7)
    assert torch.equal(greyed[~whole], x[~whole].float())
    turned = solarise(x, 0.2, seeded())
    changed = (turned != x).flatten(1).any(1)
    assert abs(int(changed.sum()) - 800) < 5 * math.sqrt(4000 * 0.2 * 0.8)
    assert torch.equal(turned[changed], torch.where(x >= 128, 255 - x.float(), x.float())[changed])


def test_blur_is_a_gaussian_of_a_width_in_its_range() -> None:
    side, most = 41, 0.05 * 41
    point = torch.zeros(300, 1, side, side, dtype=torch.float64)
    point[:, 0, 20, 20] = 255
    out = blur(point, 0.05, seeded()) / 255
    assert torch.allclose(out.sum((1, 2, 3)), torch.ones(300).double())
    blurred = out[:, 0, 20, 20] < 1 - 1e-9
    assert abs(int(blurred.sum()) - 150) < 50
    across = out[blurred, 0, 20]
    sigma = (-0.5 / (across[:, 21] / across[:, 20]).log()).sqrt()
    assert sigma.min() >= 0.1 * most - 1e-9
    assert sigma.max() <= most + 1e-9
    reach = math.ceil(2.5 * most)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).double() / sigma[:, None]) ** 2)
    line /= line.sum(1, keepdim=True)
    expected = line[:, :, None] * line[:, None, :]
    cut = slice(20 - reach, 21 + reach)
    assert torch.allclose(out[blurred, 0, cut, cut], expected, atol=1e-12)


def test_colour_changes_leave_grey_images_alone() -> None:
    x = images(channels=1)
    for change in (saturation, hue, grey):
        assert torch.equal(change(x, 0.5, seeded()), x.float())
