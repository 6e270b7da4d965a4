"""Results as text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_FIGURES = (
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


def trained(result: Mapping[str, Any]) -> str:
    """What `verbs.train` returned."""
    lines = [
        f"trained {result['recipe']} on {result['images']:,} images of {result['classes']:,} classes, "
        f"{result['epochs']} epochs in {result['train_seconds']:.1f} s "
        f"({result['images_per_second']:,.0f} images/s)",
        f"run folder: {result['run']}",
        f"next: nearfar evaluate {result['run']}",
    ]
    return "\n".join(_skipped(result) + lines)


def figures(tree: Mapping[str, Any]) -> str:
    """The tree of ``metrics.json``, with intervals."""
    data = tree["data"]
    lines = [
        *_skipped(data),
        f"{data['queries']:,} images ({data['source']}, {data['split']}) against {data['gallery']:,}: {data['gallery_is']}",
        *_table(tree),
    ]
    if "unseen" in tree:
        apart = tree["unseen"]
        lines += [
            "",
            f"{apart['data']['queries']:,} images of {apart['data']['new_classes']:,} classes never trained on, "
            "each left out of its own search",
            *_table(apart),
        ]
    timing = tree.get("timing", {})
    parts = [f"embedding {timing['images_per_second']:,.0f} images/s"] if timing.get("images_per_second") else []
    if timing.get("train_seconds") is not None:
        parts.insert(0, f"training {timing['train_seconds']:.1f} s")
    return "\n".join([*lines, "", ", ".join(parts)])


def reported(result: Mapping[str, Any]) -> str:
    """What `report.report` returned: the figures, then what was written."""
    reasons: dict[str, list[str]] = {}
    for name, reason in result["left_out"].items():
        reasons.setdefault(reason, []).append(name)
    lines = [f"left out {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    size = result["bytes"] / 1e6
    return "\n".join(
        [
            figures(result["figures"]),
            *lines,
            f"{len(result['plots'])} plots in {result['run']}/plots",
            f"report: {result['report']} ({size:.1f} MB, {result['seconds']:.1f} s)",
        ]
    )


def embedded(result: Mapping[str, Any]) -> str:
    """What `verbs.embed` returned."""
    line = f"{result['images']:,} embeddings of {result['dim']} numbers in {result['out']}"
    return "\n".join([*_skipped(result), line])


def exported(result: Mapping[str, Any]) -> str:
    """What `verbs.export` returned."""
    return f"{result['images']:,} embeddings with {', '.join(result['files'])} in {result['out']}"


def written(results: Sequence[Mapping[str, Any]]) -> str:
    """What `verbs.predict` returned after it wrote a file."""
    return f"{len(results):,} predictions written{_right(results)}"


def neighbors(results: Sequence[Mapping[str, Any]]) -> str:
    """What `verbs.search` returned: a block for every image."""
    blocks = []
    for result in results:
        rows = [(f"{n['score']:.4f}", n["label"], n["id"]) for n in result["neighbors"]]
        blocks.append("\n".join([result["query"], *_columns(rows)]))
    return "\n\n".join(blocks)


def predictions(results: Sequence[Mapping[str, Any]]) -> str:
    """What `verbs.predict` returned: a line for every image."""
    head = ["image", "label", "votes", "nearest", "score"]
    rows = [[r["image"], r["label"], f"{r['votes']:.2f}", r["nearest"], f"{r['score']:.4f}"] for r in results]
    if any("head_label" in result for result in results):
        head = [*head, "linear head"]
        rows = [[*row, result["head_label"]] for row, result in zip(rows, results, strict=True)]
    lines = _columns([head, *rows])
    return "\n".join(lines) + _right(results)


def compared(tree: Mapping[str, Any]) -> str:
    """What `compare.compare` returned."""
    from nearfar.comparison_report import remarks, table

    rows = table(dict(tree))
    lines = [*tree["verdicts"], "", *_columns(rows), "percent, mean ± standard deviation over the seeds"]
    return "\n".join([*lines, "", *remarks(dict(tree)), f"tables and plots: {tree['out']}/README.md"])


def recipes() -> str:
    """Every recipe with its description."""
    from nearfar.recipe import load_recipe, recipe_names

    return "\n".join(_columns([(name, load_recipe(name).description) for name in recipe_names()]))


def known_sets() -> str:
    """Every named set with its description."""
    from nearfar.data.catalog import known_sets as known

    return "\n".join(_columns(list(known().items())))


def _right(results: Sequence[Mapping[str, Any]]) -> str:
    known = [result for result in results if "true_label" in result]
    if not known:
        return ""
    right = sum(result["true_label"] == result["label"] for result in known)
    return f"\n{right:,} of {len(known):,} with a label are right ({right / len(known):.4f})"


def _table(tree: Mapping[str, Any]) -> list[str]:
    rows, section = [], ""
    for name, key, title in _FIGURES:
        value = tree.get(name, {}).get(key)
        if value is None:
            continue
        interval = tree.get("confidence", {}).get(name, {}).get(key)
        spread = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        rows.append((name if name != section else "", title.format(k=tree[name].get("k", "k")), f"{value:.4f}", spread))
        section = name
    if any(row[3] for row in rows):
        rows.insert(0, ("", "", "", "95 % interval"))
    return _columns(rows)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))).rstrip() for row in rows]


def _skipped(result: Mapping[str, Any]) -> list[str]:
    bad = result.get("skipped", [])
    return [f"left out {len(bad):,} images that cannot be read: {'; '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}"] * bool(
        bad
    )
