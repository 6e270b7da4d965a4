"""Pieces of work in threads: order, errors, and how many threads PyTorch has afterwards; embedding by them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nearfar as nf
from nearfar import inference
from nearfar.cores import share_of
from nearfar.data.store import open_images, write_images
from nearfar.encoders import build_encoder
from nearfar.errors import InputError
from nearfar.recipe import load_recipe
from nearfar.threads import single_threads


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_each_piece_computes_with_one_thread_and_three_go_on_at_once() -> None:
    together = threading.Barrier(3, timeout=20)  # breaks unless three pieces are under way at the same time

    def work(item: int) -> tuple[int, int]:
        together.wait()
        return item, torch.get_num_threads()

    with single_threads() as spread:
        assert spread(work, range(9)) == [(item, 1) for item in range(9)]
    assert threads_of_a_new_thread() == torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_an_error_in_a_piece_arrives_and_the_number_of_threads_is_put_back() -> None:
    def work(item: int) -> int:
        if item == 4:
            raise ValueError("piece 4")
        return item

    with pytest.raises(ValueError, match="piece 4"), single_threads() as spread:
        spread(work, range(100))
    assert threads_of_a_new_thread() == torch.get_num_threads() == 3


def test_with_one_thread_the_caller_does_it() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with single_threads() as spread:
            assert spread(lambda item: (item, threading.current_thread()), range(3)) == [
                (item, threading.main_thread()) for item in range(3)
            ]
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("count", [1, 47, 48, 1000])
@pytest.mark.parametrize("stored", [False, True])
def test_embeddings_by_several_threads_are_those_of_one_image_after_the_other(count: int, stored: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 28, 28), dtype=np.uint8)
    images = nf.ImageSet(images=pixels)
    if stored:
        with write_images(tmp_path / "images", (1, 28, 28)) as writer:
            writer.append(pixels)
        images = nf.ImageSet(images=open_images(tmp_path / "images")[0])
    torch.manual_seed(0)
    recipe = load_recipe("mnist-fastest")
    encoder = build_encoder(recipe.encoder.kind, channels=1, size=(28, 28), **recipe.encoder.params).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    z = inference.embed(encoder, images, recipe.data)
    exact = copy.deepcopy(encoder).double()
    rows = np.arange(count) if count < 50 else np.r_[0:3, 127:130, 997:1000]
    for row in rows:
        with torch.no_grad():
            one = exact((torch.from_numpy(pixels[row : row + 1]).double() / 255 - 0.5) / 0.5)[0].numpy()
        np.testing.assert_allclose(z[row], one, atol=1e-5)
    assert threads_of_a_new_thread() == torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_embedding_is_spread_over_the_threads_unless_images_are_few_or_large(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, set[int]] = {}

    def noted(ready: nn.Module, pixels: np.ndarray, *others: object) -> np.ndarray:
        sizes.setdefault(f"{len(images)} x {images.size[0]}", set()).add(len(pixels) * 10 + torch.get_num_threads())
        return np.zeros((len(pixels), 2), dtype=np.float32)

    monkeypatch.setattr(inference, "embed_pixels", noted)
    section = load_recipe("mnist-fast").data
    for count, side in ((40, 28), (60, 28), (768, 28), (100, 512)):
        images = nf.ImageSet(images=np.zeros((count, 1, side, side), dtype=np.uint8))
        assert len(inference.embed(nn.Identity(), images, section)) == count
    # The last digit is how many threads computed with a batch.
    assert sizes == {"40 x 28": {403}, "60 x 28": {201}, "768 x 28": {1281}, "100 x 512": {323, 43}}


@pytest.mark.usefixtures("three_threads")
def test_broken_weights_are_said_from_whichever_thread() -> None:
    recipe = load_recipe("margin-plane")
    encoder = build_encoder(recipe.encoder.kind, channels=1, size=(28, 28), **recipe.encoder.params).eval()
    nn.init.constant_(next(encoder.parameters()), float("nan"))
    images = nf.ImageSet(images=np.full((500, 1, 28, 28), 9, dtype=np.uint8))
    with pytest.raises(InputError, match="not finite"):
        inference.embed(encoder, images, recipe.data)
    assert threads_of_a_new_thread() == torch.get_num_threads() == 3


def test_shares_give_every_thread_work() -> None:
    for items in range(1, 400):
        for threads in (1, 2, 3, 16):
            share = share_of(items, threads, most=64, least=16)
            if share is None:
                assert items <= 15 * threads
            else:
                assert 16 <= share <= 64
                pieces = -(-items // share)
                assert pieces <= threads or share == 64


def threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]
