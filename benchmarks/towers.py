"""What two towers learn from captions: Fashion-MNIST with captions made from names and templates, judged on unread words.

    python benchmarks/towers.py [--seeds 3] [--recipe clip] [--set KEY=VALUE ...] [--epochs N] [--images N]
                                [--runs words classes] [--judge test|validation]

Every training image gets a caption anew in each epoch: one of its class's names in one of the templates. Names and templates
are split once, by a fixed seed: some are never in training. Two trainings a seed:

``words``: all ten classes. Images are classified by prompts of templates never read; of names never read, those that share a
word with names that were read and those of other words apart; and found by prompts never read.
``classes``: two classes are left out of training, images and names. A text tower from nothing knows no word that it never
read, so nothing but chance is to be expected of them; that is measured, not assumed.

``--judge validation`` trains on the first 50,000 training images and judges on the last 10,000, for choosing settings; the
test images are for the figures alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import nearfar as nf
from nearfar.evaluation.towers import class_precision, rank_towers
from nearfar.recipe import load_recipe, parse_changes
from nearfar.text import class_vectors, prompts_of, zero_shot

Ints = npt.NDArray[np.int64]

NAMES = {
    "T-shirt/top": ("t-shirt", "top", "short-sleeved shirt", "tee"),
    "Trouser": ("trouser", "pair of trousers", "pair of pants", "long trouser"),
    "Pullover": ("pullover", "sweater", "knitted jumper", "sweatshirt"),
    "Dress": ("dress", "sleeveless dress", "gown", "evening dress"),
    "Coat": ("coat", "overcoat", "long coat", "buttoned jacket"),
    "Sandal": ("sandal", "pair of sandals", "open sandal", "strappy shoe"),
    "Shirt": ("shirt", "button-down shirt", "blouse", "collared shirt"),
    "Sneaker": ("sneaker", "running shoe", "pair of sneakers", "trainer"),
    "Bag": ("bag", "handbag", "purse", "shoulder bag"),
    "Ankle boot": ("ankle boot", "boot", "pair of boots", "short boot"),
}
"""Names that captions are made of; the first is the one that prompts use."""
KIN = {
    "T-shirt/top": "tee top",
    "Trouser": "trousers",
    "Pullover": "knitted sweater",
    "Dress": "evening gown",
    "Coat": "jacket",
    "Sandal": "sandals",
    "Shirt": "button-down blouse",
    "Sneaker": "sneakers",
    "Bag": "bags",
    "Ankle boot": "boots",
}
"""Names never in captions, made of words that were read, alone or with others."""
STRANGE = {
    "T-shirt/top": "undershirt",
    "Trouser": "jeans",
    "Pullover": "cardigan",
    "Dress": "frock",
    "Coat": "parka",
    "Sandal": "flip-flop",
    "Shirt": "oxford",
    "Sneaker": "plimsoll",
    "Bag": "satchel",
    "Ankle boot": "chelsea",
}
"""Names of words never read."""
TEMPLATES = (
    "a photo of a {}.", "a picture of a {}.", "an image of a {}.", "a {}.", "one {}.", "this is a {}.",
    "a small picture of a {}.", "a grey photo of a {}.", "a {} on a black background.", "a {} in a catalogue.",
    "a product photo of a {}.", "here is a {}.", "the {} in this picture.", "look at this {}.", "a {} for sale.",
    "a close-up photo of a {}.", "we see a {} here.", "a photograph of this {}.", "a low-resolution image of a {}.",
    "a {}, seen from the front.", "a good photo of the {}.", "somebody took a picture of this {}.", "a blurry {}.",
    "in this image there is a {}.",
)  # fmt: skip
LEFT_OUT = ("Trouser", "Bag")
"""Classes that the second training never sees."""


def split_templates(share: float = 0.25) -> tuple[list[str], list[str]]:
    """Templates for captions, and those that are only for prompts."""
    order = np.random.default_rng(0).permutation(len(TEMPLATES)).tolist()
    cut = round(len(TEMPLATES) * share)
    return [TEMPLATES[row] for row in sorted(order[cut:])], [TEMPLATES[row] for row in sorted(order[:cut])]


READ, UNREAD = split_templates()


def captioned(images: nf.ImageSet) -> nf.ImageSet:
    """Every name of an image's class in every template that is read."""
    return images.with_texts({name: [form.format(one) for one in NAMES[name] for form in READ] for name in images.classes})


def names_of(names: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    return [names[name] if isinstance(names[name], str) else names[name][0] for name in classes]


def accuracy(model: nf.Embedder, z: npt.NDArray[Any], labels: Ints, names: Sequence[str], forms: Sequence[str]) -> float:
    """Share of images whose class is that of the nearest prompts, the mean over templates."""
    vectors = class_vectors(model.transform_text, prompts_of(names, forms))
    return float((zero_shot(z, vectors)[0] == labels).mean())


def judge_words(model: nf.Embedder, images: nf.ImageSet) -> dict[str, float]:
    """Figures of a model that learned all classes, on images it never saw."""
    z, labels, classes = model.transform(images), images.require_labels(), images.classes
    usual = names_of(NAMES, classes)
    figures = {"captions": accuracy(model, z, labels, usual, READ), "templates": accuracy(model, z, labels, usual, UNREAD)}
    single = [accuracy(model, z, labels, usual, [form]) for form in UNREAD]
    figures["one template"] = statistics.mean(single)
    for key, names in (("kin names", KIN), ("strange names", STRANGE)):
        figures[key] = accuracy(model, z, labels, names_of(names, classes), READ)
    prompts = [form.format(name) for name in usual for form in UNREAD]
    named = np.repeat(np.arange(len(classes)), len(UNREAD))
    found = model.transform_text(prompts)
    figures["precision@10"] = float(class_precision(found, named, z, labels, k=10).mean())
    # Both ways between images and prompts never read: right is every prompt of the image's class.
    own = np.arange(len(prompts)).reshape(len(classes), -1)
    for way, values in rank_towers(z, found, own[labels]).figures().items():
        figures |= {f"{way} {name}": value for name, value in values.items() if value is not None}
    return figures


def judge_classes(model: nf.Embedder, images: nf.ImageSet) -> dict[str, float]:
    """Figures of a model that never saw `LEFT_OUT`, on their images: among the two, and among all ten."""
    z, labels, classes = model.transform(images), images.require_labels(), images.classes
    vectors = class_vectors(model.transform_text, prompts_of(names_of(NAMES, classes), UNREAD))
    there = np.array([classes.index(name) for name in LEFT_OUT])
    unseen = np.isin(labels, there)
    return {
        "seen classes, among ten": float((zero_shot(z[~unseen], vectors)[0] == labels[~unseen]).mean()),
        "unseen classes, among ten": float((zero_shot(z[unseen], vectors)[0] == labels[unseen]).mean()),
        "unseen classes, among the two": float((there[zero_shot(z[unseen], vectors[there])[0]] == labels[unseen]).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, help="instead of the recipe's")
    parser.add_argument("--images", type=int, help="training images, for a quick look")
    parser.add_argument("--recipe", default="clip")
    parser.add_argument("--set", nargs="*", default=[], help="changes of the recipe, e.g. text.layers=2")
    parser.add_argument("--runs", nargs="+", choices=("words", "classes"), default=("words", "classes"))
    parser.add_argument("--judge", choices=("test", "validation"), default="test")
    options = parser.parse_args()

    changes = parse_changes(options.set) | ({} if options.epochs is None else {"train.epochs": options.epochs})
    recipe = load_recipe(options.recipe, changes)
    train, judged = nf.load_images("fashion-mnist", "train"), nf.load_images("fashion-mnist", "test")
    if options.judge == "validation":
        train, judged = train.subset(np.arange(50_000)), train.subset(np.arange(50_000, 60_000))
    if options.images:
        train = train.subset(np.random.default_rng(0).permutation(len(train))[: options.images])
    print(f"{recipe.name}: {len(train):,} images, {len(READ)} templates read and {len(UNREAD)} not; judged on {options.judge}")
    for run in options.runs:
        seeds: list[dict[str, float]] = []
        for seed in range(options.seeds):
            learned = train
            if run == "classes":
                unseen = [train.classes.index(name) for name in LEFT_OUT]
                learned = train.subset(~np.isin(train.require_labels(), unseen))
            started = time.perf_counter()
            model = nf.Embedder(recipe=recipe, seed=seed).fit(captioned(learned))
            seconds = time.perf_counter() - started
            figures = (judge_words if run == "words" else judge_classes)(model, judged)
            print(json.dumps({"run": run, "seed": seed, "seconds": round(seconds, 1)} | figures), flush=True)
            seeds.append(figures)
        for name in seeds[0]:
            values = [one[name] for one in seeds]
            print(f"  {run:8s} {name:32s} {statistics.median(values):.4f}  ({min(values):.4f} to {max(values):.4f})")


if __name__ == "__main__":
    main()
