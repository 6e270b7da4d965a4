"""The figures of a run as tables of HTML: every number as ``metrics.json`` holds it, beside what no training would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nearfar.report.markup import name, table, text

FIGURES: tuple[tuple[str, str, str, str], ...] = (
    ("views", "recall@1", "Recall@1", "views that find their own image first"),
    ("views", "recall@5", "Recall@5", "that find it among 5"),
    ("views", "recall@10", "Recall@10", "that find it among 10"),
    ("views", "mrr", "MRR", "mean of 1 / rank of the own image"),
    ("classification", "accuracy", "{k}-NN accuracy", "images whose {k} nearest vote for their class"),
    ("classification", "one_nn_accuracy", "1-NN accuracy", "images whose nearest is of their class"),
    ("classification", "head_accuracy", "Accuracy of the linear head", "images that it gives their class"),
    ("classification", "precision_macro", "Precision", "of the {k}-NN vote, mean over classes"),
    ("classification", "recall_macro", "Recall", "of the {k}-NN vote, mean over classes"),
    ("classification", "f1_macro", "F1", "of the {k}-NN vote, mean over classes"),
    ("retrieval", "recall@1", "Recall@1", "the nearest image is of the class"),
    ("retrieval", "recall@5", "Recall@5", "one of the 5 nearest is of the class"),
    ("retrieval", "recall@10", "Recall@10", "one of the 10 nearest is of the class"),
    ("retrieval", "map@r", "MAP@R", "mean average precision among the R nearest, R being the size of the class"),
    ("retrieval", "r_precision", "R-precision", "share of the class among the R nearest"),
    ("retrieval", "mrr", "MRR", "mean of 1 / rank of the first image of the class"),
    ("verification", "accuracy", "Pair accuracy", "pairs rightly called same or different"),
    ("verification", "auroc", "AUROC", "chance that a pair of one class is nearer than a pair of two"),
    ("verification", "eer", "Equal error rate", "smaller is better"),
    ("clustering", "rand", "Rand index", "K-means clusters against classes"),
    ("clustering", "adjusted_rand", "Adjusted Rand index", "0 is chance"),
    ("clustering", "nmi", "NMI", "K-means clusters against classes"),
    ("clustering", "davies_bouldin", "Davies-Bouldin", "of the classes; smaller is better"),
    ("clustering", "silhouette", "Silhouette", "of the classes, -1 to 1"),
    ("geometry", "within", "Cosine within classes", "mean over pairs of one class"),
    ("geometry", "between", "Cosine between classes", "mean over pairs of two"),
    ("geometry", "effective_rank", "Effective rank", "directions in use"),
    ("geometry", "alignment", "Alignment", "smaller is tighter"),
    ("geometry", "uniformity", "Uniformity", "smaller is more even"),
)
"""Section and key in ``metrics.json``, title, and what it means."""

BASELINES = {"pca": "PCA of pixels", "pixels": "Raw pixels", "model": "Other model"}
_MOST_CLASSES = 60  # rows of the table by class


def number(value: Any) -> str:
    """A figure with four decimals, as everywhere in nearfar."""
    return "\N{EN DASH}" if value is None else f"{value:.4f}".replace("-", "\N{MINUS SIGN}")


def amount(value: float | None, unit: str = "") -> str:
    """A time, a speed or a count in three digits or more."""
    if value is None:
        return "\N{EN DASH}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}{unit}"


def interval(tree: Mapping[str, Any], section: str, key: str) -> str:
    """The interval of a figure as "0.9431 to 0.9520", or nothing."""
    found = tree.get("confidence", {}).get(section, {}).get(key)
    return f"{number(found[0])} to {number(found[1])}" if found else ""


def cards(tree: Mapping[str, Any], titles: Sequence[tuple[str, str, str]]) -> str:
    """A few figures in large letters, each by section, key and title, with its interval and that of raw pixels."""
    pixels = tree.get("baselines", {}).get("pixels", {})
    lines = ['<ul class="key">']
    for section, key, title in titles:
        value = tree[section].get(key)
        if value is None:
            continue
        notes = [interval(tree, section, key)]
        if key in pixels.get(section, {}):
            notes.append(f"raw pixels {number(pixels[section][key])}")
        below = "".join(f"<small>{note}</small>" for note in notes if note)
        lines.append(f"<li>{text(title)}<strong>{number(value)}</strong>{below}</li>")
    return "\n".join([*lines, "</ul>"])


def search_table(tree: Mapping[str, Any], caption: str) -> str:
    """Figures of search and of pairs with their intervals, and those of the baselines that there are."""
    return _figures(tree, caption, ("views", "classification", "retrieval", "verification"))


def shape_table(tree: Mapping[str, Any], caption: str) -> str:
    """Figures of how the embedding lies in space; lengths and angles say little of pixels and are not compared with them."""
    return _figures(tree, caption, ("clustering", "geometry"))


def towers_table(found: Mapping[str, Any]) -> str:
    """How images and texts find each other, and what the names of classes tell alone."""
    ways = [
        (title, found[key])
        for title, key in (("Text to image", "text_to_image"), ("Image to text", "image_to_text"))
        if key in found
    ]
    parts = []
    if ways:
        head = ["", *(key.replace("mrr", "MRR").replace("recall", "Recall") for key in ways[0][1])]
        rows = [[title, *(number(value) for value in row.values())] for title, row in ways]
        caption = f"Images and texts: {found['images']:,} images and their {found['captions']:,} different captions."
        parts.append(table(caption, head, rows))
    if shot := found.get("zero_shot"):
        parts.append(
            f"<p>The names of {shot['classes']:,} classes alone, put into {len(shot['templates']):,} templates, give the right "
            f"class for {100 * shot['accuracy']:.2f} % of the images; of the 10 images nearest to a name, "
            f"{100 * shot['precision@10']:.2f} % are of that class.</p>"
        )
    return "\n".join(parts)


def unseen_table(tree: Mapping[str, Any], caption: str) -> str:
    """Figures of seen and of unseen classes beside each other, with those of the baselines below each."""
    apart = tree["unseen"]
    columns = {"Seen classes": tree, "Unseen, among themselves": apart}
    if "with_seen" in apart:
        columns["Unseen, among all"] = apart["with_seen"]
    rows = []
    for section, key, title, meaning in FIGURES:
        if section == "geometry" or apart.get(section, {}).get(key) is None:
            continue
        k = tree["classification"]["k"]
        cells = []
        for each in columns.values():
            if each.get(section, {}).get(key) is None:
                cells.append(number(None))
                continue
            below = [interval(each, section, key)]
            for baseline, short in (("pca", "PCA"), ("pixels", "pixels"), ("model", "other model")):
                value = each.get("baselines", {}).get(baseline, {}).get(section, {}).get(key)
                below.append("" if value is None else f"{short} {number(value)}")
            notes = "".join(f"<small>{note}</small>" for note in below if note)
            cells.append(f"<b>{number(each[section][key])}</b>{notes}")
        rows.append([f"{text(title.format(k=k))}<small>{text(meaning.format(k=k))}</small>", *cells])
    return table(caption, ["Figure", *map(text, columns)], rows, kind="figures")


def copies_table(leaks: Mapping[str, Any], k: int | None, caption: str) -> str:
    """What figures are with the queries that have a copy in the gallery, and without them; ``k`` is how many voted."""
    titles = {key: title.format(k=k) for _, key, title, _ in reversed(FIGURES)}
    parts = leaks["figures"]
    rows = [
        [text(titles[key]), f"<b>{number(parts['all'][key])}</b>", f"<b>{number(parts['without'][key])}</b>"]
        for key in ("accuracy", "one_nn_accuracy", "recall@1", "map@r", "mrr")
        if key in parts["all"]
    ]
    head = ["Figure", f"All {parts['all']['queries']:,}", f"The {parts['without']['queries']:,} without a copy"]
    return table(caption, head, rows, kind="figures")


def _figures(tree: Mapping[str, Any], caption: str, sections: tuple[str, ...]) -> str:
    found = tree.get("baselines", {})
    baselines = {key: found[key] for key in BASELINES if key in found}
    rows = []
    for section, key, title, meaning in FIGURES:
        value = tree.get(section, {}).get(key)
        if section not in sections or value is None:
            continue
        k = tree.get("classification", {}).get("k")
        spread = interval(tree, section, key)
        own = f"<b>{number(value)}</b>{f'<small>{spread}</small>' if spread else ''}"
        others = [number(each.get(section, {}).get(key)) for each in baselines.values()]
        rows.append([f"{text(title.format(k=k))}<small>{text(meaning.format(k=k))}</small>", own, *others])
    return table(caption, ["Figure", "This run", *(text(BASELINES[key]) for key in baselines)], rows, kind="figures")


def classes_table(tree: Mapping[str, Any]) -> str:
    """Figures of each class that there are queries of; of very many classes, those with the lowest F1."""
    own, ranked = tree["classification"]["per_class"], tree["retrieval"]["per_class"]
    among_all = tree.get("with_seen", {}).get("retrieval", {}).get("per_class")
    names = list(own)
    there = [at for at, one in enumerate(names) if own[one]["queries"]]
    shown = there
    caption = f"The vote of the {tree['classification']['k']} nearest, and retrieval, for each class."
    if len(there) > _MOST_CLASSES:
        shown = sorted(there, key=lambda at: own[names[at]]["f1"])[:_MOST_CLASSES]
        caption = f"The {_MOST_CLASSES} classes of {len(there):,} with the lowest F1; <code>metrics.json</code> has them all."
    rows = []
    for at in shown:
        one = names[at]
        mean = ranked.get(one, {})
        figures = [own[one]["precision"], own[one]["recall"], own[one]["f1"], mean.get("recall@1"), mean.get("map@r")]
        if among_all is not None:
            figures += [among_all.get(one, {}).get(key) for key in ("recall@1", "map@r")]
        taken = _taken_for(tree["classification"]["confusion"], names, at)
        rows.append([name(one), f"{own[one]['queries']:,}", *map(number, figures), taken])
    head = ["Class", "Images", "Precision", "Recall", "F1", "Recall@1", "MAP@R", "Most often taken for"]
    if among_all is not None:
        head[-1:-1] = ["Recall@1 among all", "MAP@R among all"]
    return table(caption, head, rows, kind="wide")


def _taken_for(confusion: list[list[int]] | None, names: list[str], at: int) -> str:
    if confusion is None:
        return ""
    wrong = [0 if other == at else count for other, count in enumerate(confusion[at])]
    most = max(wrong)
    return f"{name(names[wrong.index(most)])} ({most:,})" if most else "\N{EN DASH}"
