from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap as scipys

from nearfar.errors import InputError
from nearfar.evaluation import bootstrap
from nearfar.evaluation.bootstrap import bootstrap_intervals

VALUES = np.random.default_rng(0).random(400)


def test_as_scipy_and_as_the_normal_distribution() -> None:
    found = bootstrap_intervals({"x": VALUES, "right": (VALUES < 0.9).astype(float)}, samples=4000, seed=1)
    expected = scipys((VALUES,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2))
    assert found["x"] is not None
    np.testing.assert_allclose(found["x"], expected.confidence_interval, atol=3e-3)
    share = (VALUES < 0.9).mean()
    half = 1.96 * np.sqrt(share * (1 - share) / 400)
    assert found["right"] is not None
    np.testing.assert_allclose(found["right"], [share - half, share + half], atol=5e-3)


def test_each_sample_is_the_mean_over_queries_drawn_with_replacement() -> None:
    drawn = np.random.default_rng(5).integers(0, 400, size=(1, 400))[0]
    assert bootstrap_intervals({"x": VALUES}, samples=1, seed=5)["x"] == pytest.approx((VALUES[drawn].mean(),) * 2)


def test_queries_that_a_figure_leaves_out_do_not_count() -> None:
    holes = np.where(VALUES < 0.5, np.nan, VALUES)
    found = bootstrap_intervals({"x": holes, "none": np.full(400, np.nan)}, samples=300)
    assert found["none"] is None
    assert found["x"] is not None
    low, high = found["x"]
    assert low < np.nanmean(holes) < high


def test_the_seed_decides_and_blocks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    one = bootstrap_intervals({"x": VALUES}, samples=50, seed=3)
    assert one == bootstrap_intervals({"x": VALUES}, samples=50, seed=3)
    assert one != bootstrap_intervals({"x": VALUES}, samples=50, seed=4)
    monkeypatch.setattr(bootstrap, "_BLOCK", 4000)
    blocks = bootstrap_intervals({"x": VALUES}, samples=50, seed=3)["x"]
    assert blocks == pytest.approx(one["x"])
    wide = bootstrap_intervals({"x": VALUES}, samples=500, level=0.99)["x"]
    narrow = bootstrap_intervals({"x": VALUES}, samples=500, level=0.5)["x"]
    assert wide is not None
    assert narrow is not None
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap_intervals({}) == {}


def test_wrong_input_is_refused() -> None:
    for values, options, message in [
        ({"x": VALUES, "y": VALUES[:3]}, {}, "values have"),
        ({"x": VALUES[:0]}, {}, "values have"),
        ({"x": VALUES}, {"samples": 0}, "samples is 0"),
        ({"x": VALUES}, {"level": 1.0}, "level is 1.0"),
    ]:
        with pytest.raises(InputError, match=message):
            bootstrap_intervals(values, **options)
