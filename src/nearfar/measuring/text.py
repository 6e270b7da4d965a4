"""The figures of a run as text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_FIGURES = (
    ("views", "recall@1", "recall@1"),
    ("views", "recall@5", "recall@5"),
    ("views", "recall@10", "recall@10"),
    ("views", "mrr", "MRR"),
    ("classification", "accuracy", "{k}-NN accuracy"),
    ("classification", "one_nn_accuracy", "1-NN accuracy"),
    ("classification", "head_accuracy", "linear head accuracy"),
    ("classification", "precision_macro", "precision (macro)"),
    ("classification", "recall_macro", "recall (macro)"),
    ("classification", "f1_macro", "F1 (macro)"),
    ("retrieval", "recall@1", "recall@1"),
    ("retrieval", "recall@5", "recall@5"),
    ("retrieval", "recall@10", "recall@10"),
    ("retrieval", "map@r", "MAP@R"),
    ("retrieval", "r_precision", "R-precision"),
    ("retrieval", "mrr", "MRR"),
    ("clustering", "rand", "Rand index"),
    ("clustering", "adjusted_rand", "adjusted Rand index"),
    ("clustering", "nmi", "NMI"),
    ("clustering", "davies_bouldin", "Davies-Bouldin"),
    ("clustering", "silhouette", "silhouette"),
    ("verification", "accuracy", "pair accuracy"),
    ("verification", "auroc", "AUROC"),
    ("verification", "eer", "equal error rate"),
    ("verification", "threshold", "threshold (distance)"),
    ("geometry", "within", "mean cosine within classes"),
    ("geometry", "between", "mean cosine between classes"),
    ("geometry", "effective_rank", "effective rank"),
    ("geometry", "alignment", "alignment"),
    ("geometry", "uniformity", "uniformity"),
)


def figures(tree: Mapping[str, Any]) -> str:
    """The tree of ``metrics.json``, with intervals."""
    data = tree["data"]
    lines = [
        *skipped(data),
        f"{data['queries']:,} images ({data['source']}, {data['split']}) against {data['gallery']:,}: {data['gallery_is']}",
        *_table(tree, _columns_of(tree)),
        *_towers(tree),
        *_copies(tree),
        *_beside(tree),
        *_certainty(tree),
    ]
    if "unseen" in tree:
        apart, both = tree["unseen"], tree["unseen"].get("with_seen")
        lines += [
            "",
            f"{apart['data']['queries']:,} images of {apart['data']['new_classes']:,} classes never trained on, "
            "each left out of its own search"
            + (f": among themselves, and among all {both['data']['gallery']:,} images" if both else ""),
            *_table(apart, _columns_of(apart, tree)),
            *_copies(apart),
        ]
    timing = tree.get("timing", {})
    parts = [f"embedding {timing['images_per_second']:,.0f} images/s"] if timing.get("images_per_second") else []
    if timing.get("train_seconds") is not None:
        parts.insert(0, f"training {timing['train_seconds']:.1f} s")
    warned = [f"warning: {message}" for message in tree.get("training", {}).get("warnings", [])]
    return "\n".join([*lines, "", ", ".join(parts), *warned])


def _columns_of(tree: Mapping[str, Any], seen: Mapping[str, Any] | None = None) -> dict[str, Mapping[str, Any]]:
    """The trees whose figures stand in one row, by heading: those of a search, what others find, and of ``seen`` classes."""
    columns = {"": tree} if seen is None else {"themselves": tree}
    if "with_seen" in tree:
        columns["all"] = tree["with_seen"]
    if seen is not None:
        columns["seen classes"] = seen
    found = tree.get("baselines", {})
    named = (("pca", "PCA"), ("pixels", "pixels"), ("model", found.get("model", {}).get("name", "")))
    return columns | {title: found[name] for name, title in named if name in found}


def _table(tree: Mapping[str, Any], columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The figures of ``tree`` with their intervals, and in ``columns`` itself and those of others beside it."""
    rows, section = [], ""
    for name, key, title in _FIGURES:
        value = tree.get(name, {}).get(key)
        if value is None:
            continue
        interval = tree.get("confidence", {}).get(name, {}).get(key)
        spread = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        found = [column.get(name, {}).get(key) for column in columns.values()]
        cells = ["" if one is None else f"{one:.4f}" for one in found]
        heading = title.format(k=tree[name].get("k", "k"))
        rows.append((name if name != section else "", heading, cells[0], spread, *cells[1:]))
        section = name
    spread = "95 % interval" if any(row[3] for row in rows) else ""
    if spread or len(columns) > 1:
        first, *others = columns
        rows.insert(0, ("", "", first, spread, *others))
    return aligned(rows)


def _towers(tree: Mapping[str, Any]) -> list[str]:
    """How images and texts find each other, and what class names alone tell."""
    found = tree.get("towers", {})
    ways = [
        (way, found[key])
        for way, key in (("text to image", "text_to_image"), ("image to text", "image_to_text"))
        if key in found
    ]
    lines = []
    if ways:
        lines.append(f"{found['images']:,} images and {found['captions']:,} different captions, right is what belongs together")
        head = ("", *(key.replace("mrr", "MRR") for key in ways[0][1]))
        lines += aligned([head, *((way, *("" if one is None else f"{one:.4f}" for one in row.values())) for way, row in ways)])
    if shot := found.get("zero_shot"):
        lines.append(
            f"by the names of {shot['classes']:,} classes in {len(shot['templates']):,} templates: "
            f"accuracy {shot['accuracy']:.4f}, precision@10 of text to image {shot['precision@10']:.4f}"
        )
    return lines


def _copies(tree: Mapping[str, Any]) -> list[str]:
    """What was found of copies in the gallery, and what figures are without them."""
    found = tree.get("leaks")
    if found is None:
        return []
    near = "near copies were not looked for" if found["near"] is None else f"{found['near']:,} nearly"
    count, rest = found["exact"] + (found["near"] or 0), found["figures"]["without"]
    line = f"copies in the gallery: {found['exact']:,} images are there to the pixel, {near}"
    if not count or not rest["queries"]:
        return [line]
    names = (
        ("accuracy", "accuracy"),
        ("one_nn_accuracy", "1-NN"),
        ("recall@1", "recall@1"),
        ("map@r", "MAP@R"),
        ("mrr", "MRR"),
    )
    pairs = [
        f"{title} {rest[key]:.4f} (with them {found['figures']['all'][key]:.4f})"
        for key, title in names
        if rest.get(key) is not None
    ]
    return [line, f"without these {count:,}: {', '.join(pairs)}"]


def _certainty(tree: Mapping[str, Any]) -> list[str]:
    """How far probabilities are to be believed, how much is answered, and what happens to classes never seen."""
    found = tree.get("calibration")
    if found is None:
        return []
    before, after = found["before"], found["after"]
    lines = [
        "",
        f"probabilities from {found['images']:,} {found['images_are']}: calibration error {before['ece']:.4f} before, "
        f"{after['ece']:.4f} after; log loss {before['log_loss']:.4f} before, {after['log_loss']:.4f} after",
    ]
    if asked := found.get("queries"):
        right = "" if asked["precision"] is None else f", and {100 * asked['precision']:.2f} % of these answers are right"
        lines.append(
            f"of these images: calibration error {asked['ece_before']:.4f} before, {asked['ece_after']:.4f} after; "
            f"{100 * asked['answered']:.2f} % are answered where {100 * found['precision_wanted']:g} % are to be right{right}"
        )
    if fresh := found.get("added_classes"):
        lines.append(f"classes added since training: {fresh['accuracy']:.4f} of {fresh['images']:,} images are found")
    if apart := tree.get("open_set"):
        lines.append(
            f"against {apart['unseen']:,} images of classes never seen: AUROC {apart['auroc']:.4f}, "
            f"false positive rate {apart['fpr@95tpr']:.4f} at 95 % true ones; "
            f"{100 * apart['answered_unseen']:.2f} % of them get an answer"
        )
    return lines


def _beside(tree: Mapping[str, Any]) -> list[str]:
    """On how many queries baselines were measured, and why something is missing."""
    reasons: dict[str, list[str]] = {}
    for name, reason in tree.get("left_out", {}).items():
        reasons.setdefault(reason, []).append({"leaks": "copies"}.get(name, name))
    lines = [f"without {' and '.join(names)}: {reason}" for reason, names in reasons.items()]
    if "baselines" not in tree:
        return lines
    measured = tree["baselines"]["pixels"]["queries"]
    if measured < tree["data"]["queries"]:
        lines.append(f"PCA and pixels: the same search without training, of {measured:,} of the images")
    return lines


def in_epochs(count: float) -> str:
    """How long a training was: "1 epoch", "1.75 epochs"."""
    return f"{count:,g} epoch{'s' * (count != 1)}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))).rstrip() for row in rows]


def skipped(result: Mapping[str, Any]) -> list[str]:
    """A line on the images that were left out, if there are any."""
    bad = result.get("skipped", [])
    return [f"left out {len(bad):,} images that cannot be read: {'; '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}"] * bool(
        bad
    )
