"""The tree as a whole: its keys, its honesty, and that its parts agree with each other and with scikit-learn."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

import nearfar as nf
from nearfar.errors import InputError
from nearfar.evaluation import evaluate_embeddings
from nearfar.evaluation.figures import finite

GENERATOR = np.random.default_rng(0)
CENTRES = GENERATOR.normal(size=(4, 8))
NAMES = ["ant", "bee", "cow", "dog"]


def points(count: int) -> tuple[np.ndarray, np.ndarray]:
    labels = GENERATOR.integers(4, size=count)
    return (CENTRES[labels] + GENERATOR.normal(size=(count, 8))).astype(np.float32), labels


G, GL = points(200)
Q, QL = points(80)
V, VL = points(60)

KEYS = {
    "classification": {"accuracy", "precision_macro", "recall_macro", "f1_macro", "one_nn_accuracy", "k"},
    "retrieval": {"recall@1", "recall@5", "recall@10", "map@r", "r_precision", "mrr"},
    "clustering": {"rand", "adjusted_rand", "nmi", "davies_bouldin", "silhouette"},
    "verification": {"accuracy", "auroc", "eer", "threshold"},
    "geometry": {"within", "between", "effective_rank", "alignment", "uniformity"},
    "timing": {"search_seconds"},
    "data": {"gallery", "queries", "classes", "metric"},
    "confidence": {"level", "samples", "classification", "retrieval"},
}


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in numbers(value)]
    if isinstance(tree, list):
        return [number for value in tree for number in numbers(value)]
    return [tree] if isinstance(tree, float) else []


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_the_tree_has_its_keys_and_is_json(metric: str) -> None:
    tree = evaluate_embeddings(G, GL, Q, QL, classes=NAMES, metric=metric, validation=(V, VL), bootstrap=50)
    assert tree.keys() == KEYS.keys()
    for section, keys in KEYS.items():
        assert keys <= tree[section].keys()
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
    assert np.isfinite(numbers(tree)).all()


def test_parts_agree_with_scikit_learn_and_with_each_other() -> None:
    tree = evaluate_embeddings(G, GL, Q, QL, classes=NAMES, metric="euclidean", k=7, bootstrap=300)
    judged = tree["classification"]
    one = KNeighborsClassifier(1, algorithm="brute").fit(G, GL)
    assert judged["one_nn_accuracy"] == one.score(Q, QL)
    assert judged["one_nn_accuracy"] == tree["retrieval"]["recall@1"] == tree["retrieval"]["precision@1"]
    ours = nf.NeighborClassifier(nf.NeighborIndex(metric="euclidean"), k=7).fit(G, GL)
    assert judged["accuracy"] == ours.score(Q, QL)
    assert judged["k"] == 7
    assert judged["recall_by_probability"]["1"] == judged["accuracy"]
    assert judged["recall_by_probability"]["4"] == 1.0
    confusion = np.array(judged["confusion"])
    assert confusion.sum() == 80
    assert np.trace(confusion) / 80 == judged["accuracy"]
    for code, name in enumerate(NAMES):
        assert judged["per_class"][name]["queries"] == confusion[code].sum() == (code == QL).sum()
        assert judged["per_class"][name]["recall"] == pytest.approx(confusion[code, code] / confusion[code].sum())
    retrieval = tree["retrieval"]
    assert retrieval["macro"]["map@r"] == pytest.approx(np.mean([retrieval["per_class"][n]["map@r"] for n in NAMES]))
    for section, name in (("classification", "accuracy"), ("retrieval", "map@r")):
        low, high = tree["confidence"][section][name]
        assert low < tree[section][name] < high


def test_the_two_recalls_are_different_things() -> None:
    """Nine neighbours of class 0 and one of class 1: retrieval finds class 1 at 10, the vote has it second."""
    gallery = np.array([[1.0, 0.01 * i] for i in range(9)] + [[1.0, 0.2]])
    tree = evaluate_embeddings(
        gallery, np.array([0] * 9 + [1]), np.array([[1.0, 0.0]]), np.array([1]), classes=["a", "b"], bootstrap=0
    )
    assert tree["retrieval"]["recall@5"] == 0.0
    assert tree["retrieval"]["recall@10"] == 1.0
    assert tree["classification"]["recall_by_probability"]["1"] == 0.0
    assert tree["classification"]["recall_by_probability"]["2"] == 1.0


def test_one_set_never_finds_itself() -> None:
    """All points are alike to none but themselves: whoever finds itself would be right always."""
    z, labels = np.eye(40, 40)[GENERATOR.permutation(40)] + 0.01 * GENERATOR.normal(size=(40, 40)), np.arange(40) % 20
    honest = evaluate_embeddings(z, labels, z, labels, classes=[str(i) for i in range(20)], same_set=True, bootstrap=0)
    fooled = evaluate_embeddings(z, labels, z, labels, classes=[str(i) for i in range(20)], bootstrap=0)
    assert fooled["classification"]["one_nn_accuracy"] == fooled["retrieval"]["recall@1"] == 1.0
    assert honest["classification"]["one_nn_accuracy"] < 0.3
    assert honest["retrieval"]["recall@1"] == honest["classification"]["one_nn_accuracy"]
    assert honest["confidence"] == {"level": 0.95, "samples": 0}


def test_queries_without_their_class_in_the_gallery_are_left_out_and_counted() -> None:
    tree = evaluate_embeddings(G[GL > 0], GL[GL > 0], Q, QL, classes=[*NAMES, "eel"], bootstrap=20)
    assert tree["retrieval"]["left_out"] == (QL == 0).sum()
    assert tree["retrieval"]["per_class"]["ant"]["map@r"] is None
    assert tree["classification"]["per_class"]["ant"]["recall"] == 0.0
    assert tree["geometry"]["matrix"][4][4] is None


def test_small_sets_are_judged_by_as_many_neighbours_as_there_are() -> None:
    tree = evaluate_embeddings(G[:3], GL[:3], Q[:2], QL[:2], classes=NAMES, bootstrap=10)
    assert tree["classification"]["k"] == 3
    single = evaluate_embeddings(G, GL, Q[:1], QL[:1], classes=NAMES, bootstrap=10)
    assert single["verification"]["accuracy"] is None
    assert single["clustering"]["rand"] is None
    assert single["geometry"]["uniformity"] is None
    assert json.dumps(single, allow_nan=False)


def test_a_threshold_given_and_a_threshold_found() -> None:
    both = evaluate_embeddings(G, GL, Q, QL, classes=NAMES, threshold=0.5, validation=(V, VL), bootstrap=0)["verification"]
    found = evaluate_embeddings(G, GL, Q, QL, classes=NAMES, validation=(V, VL), bootstrap=0)["verification"]
    assert (both["threshold"], both["threshold_from"]) == (0.5, "given")
    assert found["threshold"] == both["threshold_best"]
    assert found["accuracy"] == both["accuracy_best"]
    # Chosen on validation pairs alone: the same whatever is judged.
    other = evaluate_embeddings(G, GL, G, GL, classes=NAMES, validation=(V, VL), same_set=True, bootstrap=0)
    assert other["verification"]["threshold"] == found["threshold"]


def test_the_seed_decides_everything() -> None:
    trees = [evaluate_embeddings(G, GL, Q, QL, classes=NAMES, seed=s, bootstrap=30) for s in (1, 1, 2)]
    for tree in trees:
        tree.pop("timing")
        tree["data"].pop("seed")
    assert trees[0] == trees[1]
    assert trees[0] != trees[2]


def test_many_classes_leave_the_matrices_out() -> None:
    labels = np.arange(300) % 250
    z = GENERATOR.normal(size=(300, 6))
    tree = evaluate_embeddings(z, labels, z, labels, classes=[str(i) for i in range(250)], same_set=True, bootstrap=5)
    assert tree["classification"]["confusion"] is None
    assert tree["geometry"]["matrix"] is None
    assert tree["retrieval"]["left_out"] == 200


def test_what_is_not_finite_becomes_none() -> None:
    tree = {"a": np.float32(1.5), 2: [np.nan, np.inf, np.int64(3)], "c": (np.array([1.0, -np.inf]), None, "x", True)}
    assert finite(tree) == {"a": 1.5, "2": [None, None, 3], "c": [[1.0, None], None, "x", True]}


def test_wrong_input_is_refused_in_one_line() -> None:
    for arguments, options, message in [
        ((G, GL[:-1], Q, QL), {}, "gallery_labels has shape"),
        ((G, GL, Q, QL.astype(float)), {}, "query_labels has shape .* expected 80 whole numbers"),
        ((G, GL, Q, QL + 1), {}, "query_labels holds 1 to 4, expected numbers of the 4 classes"),
        ((G, GL, Q[:, :3], QL), {}, "queries has 3 features"),
        ((G, GL, Q, QL), {"same_set": True}, "same_set is given, but gallery has 200 rows, queries has 80"),
        ((G[:1], GL[:1], G[:1], GL[:1]), {"same_set": True}, "leaves no neighbour"),
        ((G, GL, Q, QL), {"k": 0}, "k is 0"),
        ((G, GL, Q, QL), {"vote": "x"}, "vote is 'x'"),
        ((G, GL, Q, QL), {"metric": "x"}, "metric is 'x'"),
        ((G, GL, Q * 0, QL), {}, "queries row 0 is all zeros"),
        ((G, GL, Q, QL), {"validation": (V, VL[:-1])}, "validation labels has shape"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            evaluate_embeddings(*arguments, classes=NAMES, **options)
        assert "\n" not in str(caught.value)


@dataclass
class Images:
    """What ``evaluate`` needs of an ImageSet."""

    z: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    name: str = "set"

    def __len__(self) -> int:
        return len(self.z)

    def fingerprint(self) -> str:
        return str((self.z.tobytes(), None if self.labels is None else self.labels.tobytes(), self.classes))


@dataclass
class Model:
    """Embeds by returning what is there, and counts how often it was asked."""

    evaluate: SimpleNamespace = field(default_factory=SimpleNamespace)
    asked: int = 0

    @property
    def recipe(self) -> SimpleNamespace:
        return SimpleNamespace(evaluate=self.evaluate)

    def transform(self, images: Images) -> np.ndarray:
        self.asked += 1
        return images.z


def same_figures(one: dict[str, Any], other: dict[str, Any]) -> bool:
    sections = [section for section in KEYS if section not in ("timing", "data")]
    return all(one[section] == other[section] for section in sections)


def test_a_model_is_judged_by_its_recipe() -> None:
    model = Model(SimpleNamespace(metric="euclidean", k=3, vote="similarity", threshold=0.8))
    sets = [Images(z, labels, tuple(NAMES)) for z, labels in ((G, GL), (Q, QL), (V, VL))]
    tree = nf.evaluate(model, *sets[:2], validation=sets[2], bootstrap=10)
    expected = evaluate_embeddings(
        G, GL, Q, QL, classes=NAMES, metric="euclidean", k=3, vote="similarity", threshold=0.8, validation=(V, VL), bootstrap=10
    )
    assert same_figures(tree, expected)
    assert tree["timing"]["embed_seconds"] > 0
    assert tree["timing"]["images_per_second"] > 0
    assert tree["data"]["gallery_name"] == "set"
    plain = nf.evaluate(SimpleNamespace(transform=model.transform), *sets[:2], k=4, bootstrap=0)
    assert plain["classification"]["k"] == 4
    assert plain["data"]["metric"] == "cosine"


def test_one_set_is_known_by_identity_and_by_content() -> None:
    images = Images(G, GL, tuple(NAMES))
    for other in (images, Images(G.copy(), GL.copy(), tuple(NAMES))):
        model = Model()
        tree = nf.evaluate(model, images, other, bootstrap=0)
        assert tree["data"]["same_set"] is True
        assert model.asked == 1
        expected = evaluate_embeddings(G, GL, G, GL, classes=NAMES, same_set=True, bootstrap=0)
        assert same_figures(tree, expected)
    assert nf.evaluate(Model(), images, Images(G, GL[::-1].copy(), tuple(NAMES)), bootstrap=0)["data"]["same_set"] is False


def test_classes_are_matched_by_name() -> None:
    gallery = Images(G, GL, tuple(NAMES))
    turned = Images(Q, 3 - QL, tuple(reversed(NAMES)))
    straight = nf.evaluate(Model(), gallery, Images(Q, QL, tuple(NAMES)), bootstrap=0)
    assert same_figures(straight, nf.evaluate(Model(), gallery, turned, bootstrap=0))
    strange = nf.evaluate(Model(), gallery, Images(Q, QL, ("ant", "bee", "cow", "eel")), bootstrap=0)
    assert strange["data"]["classes"] == [*NAMES, "eel"]
    assert strange["retrieval"]["left_out"] == (QL == 3).sum()


def test_images_without_labels_are_refused() -> None:
    images = Images(G, GL, tuple(NAMES))
    with pytest.raises(InputError, match="queries has no labels"):
        nf.evaluate(Model(), images, Images(Q, None, tuple(NAMES)))
