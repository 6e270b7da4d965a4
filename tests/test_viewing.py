"""The picture of a recipe's views: the right images, changed by the recipe and by nothing else; what is wrong is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import TINY, shapes

from nearfar import plots
from nearfar.recipe import Recipe
from nearfar.viewing import draw_views


def test_views_are_what_the_recipe_makes_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shift and a flip leave an image's colours as they are, and other numbers draw other views."""
    drawn: list[tuple[Any, Any]] = []
    real = plots.view_grid

    def note(images: Any, views: Any, **options: Any) -> Any:
        drawn.append((images, views))
        return real(images, views, **options)

    monkeypatch.setattr(plots, "view_grid", note)
    data = shapes(40, channels=3)
    recipe = Recipe.from_dict({**TINY, "data": {"test": 0.5}, "augment": {"flip": True}})
    for seed in (0, 0, 1):
        result = draw_views(recipe, data, out=tmp_path / "views.png", seed=seed)
    assert np.asarray(Image.open(tmp_path / "views.png")).ndim == 3
    assert result["views"] == 6
    (images, views), again, other = drawn
    assert views.shape == (6, 6, 3, 12, 12)
    assert views.dtype == np.uint8
    for image, row in zip(images, views, strict=True):
        assert (data.images == image).all(axis=(1, 2, 3)).any()
        kinds = {view.tobytes() for view in row}
        assert kinds <= {image.tobytes(), np.ascontiguousarray(image[:, :, ::-1]).tobytes()}
    np.testing.assert_array_equal(views, again[1])
    assert not np.array_equal(views, other[1])


def test_the_command_line_draws_and_refuses(
    cli: Callable[..., tuple[int, str, str]], folder_of_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v.svg"
    asked = ("recipes", "simclr", "--views", folder_of_images, "--set", "data.size=[16,16]", "data.channels=3")
    code, said, _ = cli(*asked, "--out", out)
    assert (code, said) == (0, f"6 images with 6 views of each, by simclr: {out}\n")
    assert out.read_text().startswith("<?xml")
    for arguments, words in (
        ((*asked, "--out", tmp_path / "v.gif"), "must end in .png or .svg"),
        (("recipes", "--views", folder_of_images), "name it: nearfar recipes NAME --views DATA"),
        (("recipes", "mnist-fastest", "--views", folder_of_images, "--set", "augment.shift=0"), "changes no image"),
        (("recipes", "nope", "--views", folder_of_images), "nope"),
    ):
        code, _, error = cli(*arguments)
        assert code == 2
        assert words in error
        assert error.count("\n") == 1
