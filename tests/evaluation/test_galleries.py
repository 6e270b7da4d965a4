"""Several galleries against single calls, and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nearfar.errors import InputError
from nearfar.evaluation.galleries import gallery_figures, rank_in_galleries
from nearfar.evaluation.retrieval import rank_queries, summarize


def test_each_gallery_gives_what_a_single_call_gives() -> None:
    generator = np.random.default_rng(0)
    z, labels = generator.normal(size=(60, 4)), generator.integers(5, size=60)
    other, other_labels = generator.normal(size=(35, 4)), generator.integers(3, size=35)
    own = np.arange(60)
    for metric in ("cosine", "dot", "euclidean"):
        found = rank_in_galleries(
            z, labels, {"itself": (z, labels), "other": (other, other_labels)}, metric=metric, exclude={"itself": own}
        )
        assert list(found) == ["itself", "other"]
        alone = {
            "itself": rank_queries(z, labels, z, labels, metric=metric, exclude=own),
            "other": rank_queries(z, labels, other, other_labels, metric=metric),
        }
        tree = gallery_figures(found, labels)
        answered = alone["itself"].answerable & alone["other"].answerable
        assert 0 < answered.sum() < 60
        for name, expected in alone.items():
            for what, values in expected.figures().items():
                np.testing.assert_array_equal(found[name].figures()[what], values)
                assert tree[name][what] == summarize({what: values}, labels)[0][what]
                assert tree[name]["common"][what] == pytest.approx(values[answered].mean(), rel=1e-12)
            assert tree[name]["left_out"] == np.isnan(expected.rank).sum()
            assert tree[name]["common"]["queries"] == answered.sum()


def test_where_no_query_has_an_answer_everywhere_the_common_figures_are_undefined() -> None:
    z = np.eye(2)
    tree = gallery_figures(rank_in_galleries(z, [0, 1], {"a": (z, [0, 0]), "b": (z, [1, 1])}), [0, 1])
    assert tree["a"]["common"] == {"queries": 0, **dict.fromkeys(set(tree["a"]) - {"macro", "left_out", "common"})}
    assert tree["a"]["recall@1"] == 1.0
    assert tree["b"]["left_out"] == 1


def test_wrong_input_names_the_gallery() -> None:
    z, labels = np.eye(3), np.arange(3)
    for galleries, options, message in [
        ({}, {}, "galleries is empty"),
        ({"a": (z, labels), "b": (z[:, :2], labels)}, {}, "gallery 'b': queries has 3 features, but gallery is expecting 2"),
        ({"a": (z * 0, labels)}, {}, "gallery 'a': gallery row 0 is all zeros"),
        ({"a": (z, labels)}, {"exclude": {"c": labels}}, "exclude names the gallery 'c', expected one of 'a'"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            rank_in_galleries(z, labels, galleries, **options)
        assert "\n" not in str(caught.value)
