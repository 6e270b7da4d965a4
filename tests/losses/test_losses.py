"""One suite over all losses."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.cases import CASES, CLASSES, DIM, KEYED, TILED, Case, assert_same, expected, gradients, labels, rows
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses import LOSSES, DCLLoss, Loss, SupConLoss, tiled, tiles

EVERY = pytest.mark.parametrize("case", CASES, ids=str)
OF_CLASSES = [case for case in CASES if LOSSES[case.name].needs_classes or LOSSES[case.name].scores]
OF_ROWS = pytest.mark.parametrize("case", [case for case in CASES if case not in OF_CLASSES], ids=str)
WITH_KEYS = pytest.mark.parametrize("case", KEYED, ids=str)
# Losses in which every pair counts for itself have something to say to a batch without positives.
NEVER_IDLE = {"contrastive", "cosine-mse", "siglip"}


@pytest.fixture(params=["whole", "tiles"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small batches go whole or, for this test, in tiles of 5 x 5."""
    if request.param == "tiles":
        monkeypatch.setattr(tiled, "_SMALL", 0)
        monkeypatch.setattr(tiles, "tile_size", lambda device: 5)
    return request.param


@EVERY
def test_equals_the_loop(case: Case, way: str) -> None:
    loss, z, y = case.make(), rows(13), labels(13)
    assert_same(gradients(loss, z, y), expected(case, loss, z, y))


@WITH_KEYS
def test_equals_the_loop_with_keys(case: Case, way: str) -> None:
    loss, z, y, k, ky = case.make(), rows(11), labels(11), rows(8, 1), labels(8, 1)
    k[2] = z[3]  # a key at the place of a row is a key as any other
    assert_same(gradients(loss, z, y, k, ky), expected(case, loss, z, y, k, ky))


@WITH_KEYS
def test_equals_the_loop_when_the_rows_are_among_the_keys(case: Case, way: str) -> None:
    loss, z, y = case.make(), rows(7), labels(7)
    k, ky = torch.cat((rows(6, 1), z, rows(2, 2))), torch.cat((labels(6, 1), y, labels(2, 2)))
    found = gradients(loss, z, y, k, ky, key_offset=6)
    assert_same(found, expected(case, loss, z, y, k, ky, key_offset=6))


@WITH_KEYS
def test_keys_that_are_the_batch_itself_are_no_keys(case: Case) -> None:
    loss, y = case.make(), labels(9)
    z = rows(9).requires_grad_()
    plain = loss(z, y)
    keyed = loss(z, y, z, y, key_offset=0)
    assert torch.allclose(plain, keyed, rtol=1e-12)
    assert torch.allclose(*(torch.autograd.grad(value, z)[0] for value in (plain, keyed)), rtol=1e-9, atol=1e-12)
    copy = loss(z, y, z.clone(), y, key_offset=0)
    assert torch.allclose(plain, copy, rtol=1e-12)
    assert torch.allclose(*(torch.autograd.grad(value, z)[0] for value in (loss(z, y), copy)), rtol=1e-9, atol=1e-12)


# The weights of circle loss are constants in the gradient by definition, so that the value's slope is another.
@pytest.mark.parametrize("case", [case for case in CASES if case.name != "circle"], ids=str)
def test_gradient_by_finite_differences(case: Case) -> None:
    loss, z, y = case.make(), rows(7).requires_grad_(), labels(7)
    parameters = tuple(loss.parameters())
    assert torch.autograd.gradcheck(lambda z, *_: loss(z, y), (z, *parameters))


@WITH_KEYS
def test_the_same_rows_under_other_labels_are_other_keys(case: Case, way: str) -> None:
    loss, z, y = case.make(), rows(9), labels(9)
    for key_labels in (y, labels(9, 5)):
        z = z.detach().requires_grad_()
        copy = z.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(z, y, z, key_labels), z)
        one, other = torch.autograd.grad(loss(z, y, copy, key_labels), (z, copy))
        assert_same([found], [one + other])


@EVERY
def test_the_order_of_a_batch_does_not_matter(case: Case) -> None:
    loss, z, y = case.make(), rows(12), labels(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    one, other = gradients(loss, z, y), gradients(loss, z[order], y[order])
    assert_same([other[0], *other[2:]], [one[0], *one[2:]])
    assert_same([other[1]], [one[1][order]])


@OF_ROWS
def test_names_of_classes_do_not_matter(case: Case) -> None:
    loss, z, y = case.make(), rows(12), labels(12)
    renamed = torch.tensor([10**12, -5, 3, 0])[y]
    assert_same(gradients(loss, z, renamed), gradients(loss, z, y))


@pytest.mark.parametrize("situation", ["no positive", "no negative", "one row", "two rows alike"])
@EVERY
def test_batches_that_lack_something(case: Case, situation: str, way: str) -> None:
    loss = case.make()
    count = {"one row": 1, "no positive": CLASSES}.get(situation, 6)
    z, y = rows(count), torch.arange(count) if situation == "no positive" else torch.zeros(count, dtype=torch.long)
    if situation == "two rows alike":
        y = labels(6)
        z[1], z[4], y[4] = z[0], z[3], (y[3] + 1) % CLASSES
    found = gradients(loss, z, y)
    assert_same(found, expected(case, loss, z, y))
    idle = situation == "one row" or (situation == "no positive" and case.name not in NEVER_IDLE)
    if idle and case not in OF_CLASSES:
        assert found[0] == 0
        assert not found[1].any()


@WITH_KEYS
def test_an_empty_bank_of_keys_is_a_loss_of_zero(case: Case) -> None:
    loss, z, y = case.make(), rows(5), labels(5)
    value, gradient, *rest = gradients(loss, z, y, z[:0], y[:0])
    assert value == 0
    assert not gradient.any()
    assert not any(part.any() for part in rest)


@EVERY
def test_no_gradient_is_asked_for(case: Case, way: str) -> None:
    loss, z, y = case.make(), rows(9), labels(9)
    with torch.no_grad():
        value = loss(z, y)
    assert not value.requires_grad
    assert torch.allclose(value, gradients(loss, z, y)[0])


@EVERY
def test_float32(case: Case, way: str) -> None:
    z, y = rows(13, dtype=torch.float32), labels(13)
    found = gradients(case.make(torch.float32), z, y)
    assert [part.dtype for part in found] == [torch.float32] * len(found)
    # A temperature of 0.012 turns a rounding of the similarity, 6e-8, into some 5e-6 of a weight.
    assert_same(found, gradients(case.make(), z.double(), y), tolerance=3e-5)


@EVERY
def test_bfloat16_is_computed_in_float32(case: Case, way: str) -> None:
    z, y = rows(13, dtype=torch.bfloat16), labels(13)
    loss = case.make(torch.float32)
    value, gradient, *_ = gradients(loss, z, y)
    wide, wide_gradient, *_ = gradients(loss, z.float(), y)
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    assert torch.allclose(value, wide, rtol=1e-6)
    assert torch.allclose(gradient.float(), wide_gradient, rtol=1e-2, atol=1e-3 * float(wide_gradient.abs().max()))


@EVERY
def test_autocast_does_not_reach_inside(case: Case, way: str) -> None:
    loss, z, y = case.make(torch.float32), rows(13, dtype=torch.float32).requires_grad_(), labels(13)
    plain = loss(z, y)
    (gradient,) = torch.autograd.grad(plain, z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss(z, y)
    (cast_gradient,) = torch.autograd.grad(cast, z)
    assert torch.equal(plain, cast)
    assert torch.allclose(gradient, cast_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", TILED, ids=str)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_tiles_change_nothing(case: Case, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 17), label="rows")
    y = torch.tensor(data.draw(st.lists(st.integers(-2, 3), min_size=count, max_size=count), label="labels"))
    keys: tuple[Any, ...] = ()
    z = rows(count, data.draw(st.integers(0, 9), label="seed"))
    offset = None
    if data.draw(st.booleans(), label="keys"):
        more = data.draw(st.integers(0, 9), label="more keys")
        keys = (torch.cat((rows(more, 77), z)), torch.cat((labels(more), y)))
        offset = data.draw(st.sampled_from([None, more]), label="offset")
    loss = case.make()
    whole = gradients(loss, z, y, *keys, key_offset=offset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "_SMALL", 0)
        size = data.draw(st.integers(1, 6), label="tile")
        patch.setattr(tiles, "tile_size", lambda device: size)
        assert_same(gradients(loss, z, y, *keys, key_offset=offset), whole)


@pytest.mark.parametrize("name", ["contrastive", "cosine-mse", "info-nce", "supcon", "dcl", "siglip", "clip"])
def test_processes_that_share_their_keys_make_the_gradient_of_the_whole_batch(name: str) -> None:
    loss, z, y = LOSSES[name]().double(), rows(12).requires_grad_(), torch.arange(12) % 3
    (whole,) = torch.autograd.grad(loss(z, y), z)
    parts = [loss(z[at : at + 4], y[at : at + 4], z, y, key_offset=at) for at in (0, 4, 8)]
    shared = torch.stack(parts).mean()
    assert torch.allclose(shared, loss(z, y), rtol=1e-12)
    assert torch.allclose(torch.autograd.grad(shared, z)[0], whole, rtol=1e-9, atol=1e-12)


@EVERY
def test_rows_that_do_not_lie_side_by_side(case: Case, way: str) -> None:
    loss, z, y = case.make(torch.float32), rows(13, dtype=torch.float32), labels(13)
    wide, many = torch.zeros(26, 2 * DIM), torch.zeros(26, dtype=torch.int32)
    wide[::2, ::2], many[::2] = z, y.int()
    assert_same(gradients(loss, wide[::2, ::2], many[::2]), gradients(loss, z, y), tolerance=1e-5)


@pytest.mark.parametrize("op", ["gone", "changed", "off"])
def test_without_the_quick_product(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed:
        def _linear_pointwise(self, *arguments: Any) -> Tensor:
            return torch.zeros(2, 4)

    z, y, loss = rows(700, dtype=torch.float32), labels(700), SupConLoss()
    usual = gradients(loss, z, y)
    if op == "off":
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
        assert_same(gradients(loss, z, y), usual, tolerance=1e-6)
        return
    monkeypatch.setattr(torch.ops, "mkldnn", Changed() if op == "changed" else object())
    tiles._onednn.cache_clear()
    try:
        assert tiles._onednn() is None
        assert_same(gradients(loss, z, y), usual, tolerance=1e-6)
    finally:
        tiles._onednn.cache_clear()


@pytest.mark.parametrize("temperature", [0.01, 0.015, 0.1, 1.0])
@pytest.mark.parametrize("name", ["supcon", "dcl", "nt-xent", "dclw", "clip"])
def test_float32_gradients_of_real_tiles_are_right_to_five_digits(name: str, temperature: float) -> None:
    count = 1200
    y = labels(count, classes=9)
    z = torch.nn.functional.normalize(rows(count, dim=32) + 0.7 * rows(9, 5, dim=32)[y], dim=1)
    loss = LOSSES[name](temperature=temperature)
    narrow = z.float()
    assert_same(gradients(loss, narrow, y), gradients(loss, narrow.double(), y), tolerance=1e-5)


def test_rows_far_from_all_their_negatives_keep_their_digits() -> None:
    # Two classes at opposite poles: every negative has cosine -1, and e^(-1/0.01 - 1/0.01) is far below float32.
    y = torch.arange(800) % 2
    pole = torch.tensor([1.0] + [0.0] * 7, dtype=torch.float64)
    z = torch.nn.functional.normalize((1 - 2 * y[:, None]) * pole + 0.1 * rows(800, dim=8), dim=1)
    loss = DCLLoss(temperature=0.01)
    assert_same(gradients(loss, z.float(), y), gradients(loss, z.float().double(), y), tolerance=1e-5)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Watches every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor) and one.untyped_storage().nbytes() > 0:
                self.numel = max(self.numel, one.untyped_storage().nbytes() // one.element_size())
        return out


@pytest.mark.parametrize("case", TILED, ids=str)
def test_memory_grows_with_the_batch_not_with_its_square(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tile_size", lambda device: 64)
    loss, y = case.make(torch.float32), labels(900, classes=30)
    z = rows(900, dtype=torch.float32).requires_grad_()
    with Largest() as largest:
        loss(z, y).backward()
    # The matrix would be 810,000 numbers; a tile is 4,096, rows are 5,400, and near pairs are taken 4,096 rows at once.
    assert largest.numel <= 2 * 4096 * DIM


def test_the_watch_over_memory_sees_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "_SMALL", 10**9)
    with Largest() as largest:
        SupConLoss()(rows(900), labels(900))
    assert largest.numel >= 900 * 900


@EVERY
def test_settings_are_keywords_and_are_checked(case: Case) -> None:
    home = LOSSES[case.name]
    sizes = {"classes": CLASSES, "dim": DIM} if home.needs_classes else {}
    known = inspect.signature(home).parameters
    assert {"classes", "dim"} <= set(known) or not home.needs_classes
    for name, one in known.items():
        assert one.kind is one.KEYWORD_ONLY
        if name in sizes:
            wrong: list[Any] = [0, -1, 2.5, True]
        elif isinstance(one.default, bool):
            wrong = ["yes", 1]
        elif isinstance(one.default, str):
            wrong = ["nonsense", 1, None]
        elif isinstance(one.default, int):
            wrong = [0, 1.5, True]
        else:
            wrong = [float("nan"), float("inf"), -1e9, "1", None, True]
        for value in wrong:
            with pytest.raises(InputError, match=name):
                home(**(sizes | {name: value}))
    assert all(
        hasattr(home, flag)
        for flag in ("needs_unit_rows", "takes_pairs", "scores", "needs_classes", "takes_keys", "goes_both_ways")
    )
    assert home.takes_pairs == hasattr(home, "pairs")


def test_a_printed_loss_can_be_typed_in_again() -> None:
    assert repr(SupConLoss(temperature=0.2)) == "SupConLoss(temperature=0.2, mean='outside')"
    assert repr(LOSSES["arcface"](classes=3, dim=4)) == "ArcFaceLoss(classes=3, dim=4, margin=0.5, scale=64.0)"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda z, y: (z.tolist(), y), "z is a list"),
        (lambda z, y: (z, y.tolist()), "labels is a list"),
        (lambda z, y: (z[0], y), r"z has shape \(6,\)"),
        (lambda z, y: (z.long(), y), "z is int64"),
        (lambda z, y: (z[:0], y[:0]), "z is empty"),
        (lambda z, y: (z, y[:-1]), r"labels has shape \(8,\), z has 9 rows"),
        (lambda z, y: (z, y[:, None]), "one label a row"),
        (lambda z, y: (z, y.float()), r"labels is float32; .* use labels.long\(\)"),
        (lambda z, y: (z, y > 1), "labels is bool"),
        (
            lambda z, y: (z.index_fill(0, torch.tensor([4]), float("nan")), y),
            "NaN or infinity in 1 of 9 rows, the first in row 4",
        ),
        (lambda z, y: (z.index_fill(0, torch.tensor([2, 5]), float("inf")), y), "in 2 of 9 rows, the first in row 2"),
        (lambda z, y: (z, y.to("meta")), "labels is on meta, z on cpu"),
    ],
)
@EVERY
def test_bad_batches_are_refused_in_one_line(case: Case, spoil: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        case.make()(*spoil(rows(9), labels(9)))
    assert "\n" not in str(refused.value)


@EVERY
def test_rows_that_are_no_unit_rows(case: Case) -> None:
    loss, z, y = case.make(), rows(9), labels(9)
    z[3] *= 1.5
    if not loss.needs_unit_rows:
        loss(z, y)
        return
    with pytest.raises(InputError, match=r"row 3 of z has length 1.5; .*normalize\(z, dim=1\)"):
        loss(z, y)
    if loss.takes_keys:
        with pytest.raises(InputError, match="row 3 of keys has length"):
            loss(rows(9), y, z, y)


@EVERY
def test_keys_that_do_not_fit(case: Case) -> None:
    loss, z, y, k, ky = case.make(), rows(9), labels(9), rows(4, 1), labels(4, 1)
    if not loss.takes_keys:
        with pytest.raises(InputError, match="was given keys"):
            loss(z, y, k, ky)
        return
    for arguments, offset, message in (
        ((k, None), None, "keys came without key_labels"),
        ((None, ky), None, "key_labels came without keys"),
        ((k, ky[:-1]), None, r"key_labels has shape \(3,\), keys has 4 rows"),
        ((k, ky.float()), None, "key_labels is float32"),
        ((rows(4, dim=5), ky), None, "keys has 5 columns, z has 6"),
        ((k, ky), 0, "key_offset is 0; with 9 rows in z and 4 keys"),
        ((None, None), 0, "key_offset=0 came without keys"),
        ((torch.cat((k, z)), torch.cat((ky, y + 1))), 4, r"row 0 of z has label \d, key 4 has \d; key_offset=4"),
        ((k.to("meta"), ky.to("meta")), None, "keys is on meta"),
    ):
        with pytest.raises(InputError, match=message):
            loss(z, y, *arguments, key_offset=offset)


@pytest.mark.parametrize("case", OF_CLASSES, ids=str)
def test_labels_that_are_no_classes(case: Case) -> None:
    loss, z, y = case.make(), rows(9), labels(9)
    for wrong in (-1, 99):
        y[5] = wrong
        with pytest.raises(InputError, match=rf"labels has {wrong}; .* must lie in 0\.\."):
            loss(z, y)
    if loss.needs_classes:
        with pytest.raises(InputError, match=f"z has 5 columns, the loss was made with dim={DIM}"):
            loss(rows(9, dim=5), labels(9))


def test_recipe_names_are_classes_that_are_exported() -> None:
    from nearfar import losses

    for name, home in LOSSES.items():
        assert name == name.lower()
        assert issubclass(home, Loss)
        assert getattr(losses, home.__name__) is home
        assert home.__name__ in losses.__all__
        assert home.__doc__
    assert {case.name for case in CASES} == set(LOSSES)
