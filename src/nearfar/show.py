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
_WORST = 10  # label issues that are named on the screen


def trained(result: Mapping[str, Any]) -> str:
    """What `verbs.train` returned."""
    captioned = f", {result['captions']:,} different captions" if "captions" in result else ""
    bare = f"{result.get('uncaptioned', 0):,} images without a caption were not learned from"
    images = f"{result['images']:,} images " + (f"of {result['classes']:,} classes" if result["classes"] else "without labels")
    speed = f"{result['epochs']} epochs in {result['train_seconds']:.1f} s ({result['images_per_second']:,.0f} images/s)"
    lines = [
        f"trained {result['recipe']} on {images}{captioned}, {speed}"
        if result["epochs"]
        else f"nothing to learn in {result['recipe']}: its encoder is frozen; it embedded {images} as it is",
        *([bare] if result.get("uncaptioned") else []),
        f"run folder: {result['run']}",
        f"next: nearfar {'evaluate' if result['classes'] or captioned else 'search'} {result['run']}"
        + ("" if result["classes"] or captioned else " IMAGE"),
    ]
    return "\n".join(_skipped(result) + lines)


def figures(tree: Mapping[str, Any]) -> str:
    """The tree of ``metrics.json``, with intervals."""
    data = tree["data"]
    lines = [
        *_skipped(data),
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


def reported(result: Mapping[str, Any]) -> str:
    """What `report.report` returned: the figures, then what was written."""
    reasons: dict[str, list[str]] = {}
    for name, reason in result["left_out"].items():
        if name not in result["figures"].get("left_out", {}):  # of which the figures tell
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
    if "parts" not in result:
        return "\n".join([*_skipped(result), line])
    lines, more = _skipped(result), result["skipped_images"] - len(result["skipped"])
    if more > 0:
        lines.append(f"and {more:,} more, all in {result['out']}/skipped.txt")
    earlier = result["images"] - result["computed"]
    lines.append(f"{line}, {result['parts']:,} parts" + (f"; {earlier:,} were there already" if earlier else ""))
    return "\n".join([*lines, f"next: nearfar index build {result['out']} --out INDEX"])


def index_built(result: Mapping[str, Any]) -> str:
    """What `build_index` and `rebuild_index` returned."""
    line = f"{result['backend']} index of {result['images']:,} vectors of {result['dim']} numbers in {result['out']}"
    recall = next((name for name in result if name.startswith("recall@")), None)
    if recall is None:
        return line
    return (
        f"{line}, built in {result['build_seconds']:.1f} s\n{recall} {result[recall]:.4f} against exact search, "
        f"{result['latency_ms']:.2f} ms a query (exact {result['exact_latency_ms']:.2f} ms)"
    )


def exported(result: Mapping[str, Any]) -> str:
    """What `verbs.export` returned."""
    if result.get("to") != "onnx":
        return f"{result['images']:,} embeddings with {', '.join(result['files'])} in {result['out']}"
    kind = "float32" if result["quantize"] is None else f"{result['quantize']}, but for the first and the last layer"
    lines = [
        f"the model in {result['out']}: {result['bytes']:,} bytes, {result['dim']} numbers an image, {kind}",
        f"checked on {result['images']:,} images against PyTorch: numbers differ by {result['difference']:.1e} at most, the "
        f"nearest image is the same for {result['same_nearest']:.2%}, of the 10 nearest {result['overlap']:.2%} are, the class "
        f"for {result['same_class']:.2%}",
    ]
    if "accuracy" in result:
        lines.append(f"accuracy {result['accuracy']:.2%}, PyTorch's {result['accuracy_pytorch']:.2%}")
    return "\n".join(lines)


def written(results: Sequence[Mapping[str, Any]]) -> str:
    """What `verbs.predict` returned after it wrote a file."""
    return f"{len(results):,} predictions written{_right(results)}"


def neighbors(results: Sequence[Mapping[str, Any]]) -> str:
    """What `verbs.search` returned: a block for every image or text."""
    blocks = []
    for result in results:
        if "captions" in result:
            rows = [[f"{one['score']:.4f}", one["text"]] for one in result["captions"]]
        else:
            rows = [[f"{n['score']:.4f}", n["label"] or "", n["id"]] for n in result["neighbors"]]
        blocks.append("\n".join([result["query"], *_columns(rows)]))
    return "\n\n".join(blocks)


def added(result: Mapping[str, Any]) -> str:
    """What `indexing.add_images` returned."""
    there = result["already_there"]
    lines = [*_skipped(result)]
    if there:
        more = f" and {len(there) - 3:,} more" if len(there) > 3 else ""
        lines.append(f"already in the index, left out: {', '.join(there[:3])}{more}")
    named = _counted(result["added"], result["new_classes"], "new")
    lines.append(f"added {named or 'nothing'}; the index of {result['run']} holds {result['images']:,} images")
    return "\n".join(lines)


def removed(result: Mapping[str, Any]) -> str:
    """What `indexing.remove_images` returned."""
    named = _counted(result["removed"], result["gone_classes"], "the last")
    return f"removed {named}; the index of {result['run']} holds {result['images']:,} images"


def index(result: Mapping[str, Any]) -> str:
    """What `indexing.index_info` returned."""
    rows = [("class", "images", "added since training")]
    rows += [(one["name"], f"{one['images']:,}", f"{one['added']:,}" if one["added"] else "") for one in result["classes"]]
    if result["unlabelled"]:
        rows.append(("(no label)", f"{result['unlabelled']:,}", ""))
    lines = [
        f"{result['images']:,} images in the index of {result['run']}, {result['added_images']:,} of them added since training",
        f"{result['dimensions']} numbers each, near and far by {result['metric']}, {result['bytes'] / 1e6:.1f} MB, "
        f"made by the model {str(result['model'])[:12]}",
    ]
    return "\n".join([*lines, *_columns(rows)])


def predictions(results: Sequence[Mapping[str, Any]]) -> str:
    """What `verbs.predict` returned: a line for every image."""
    if results and "votes" not in results[0]:
        rows = [[r["image"], r["label"], f"{r['probability']:.4f}", f"{r['score']:.4f}"] for r in results]
        return "\n".join(_columns([["image", "label", "probability", "score"], *rows])) + _right(results)
    head = ["image", "label", "votes", "probability", "nearest", "score"]
    rows = [
        [r["image"], _said(r), f"{r['votes']:.2f}", f"{r['probability']:.4f}", r["nearest"], f"{r['score']:.4f}"]
        for r in results
    ]
    if any("head_label" in result for result in results):
        head = [*head, "linear head"]
        rows = [[*row, result["head_label"]] for row, result in zip(rows, results, strict=True)]
    lines = _columns([head, *rows])
    return "\n".join(lines) + _right(results)


def label_issues(result: Mapping[str, Any]) -> str:
    """What `labelissues.label_issues` returned: counts, the worst, and where the rest is."""
    how = f"in {result['folds']} folds" if result["folds"] else "in the embedding of the run"
    conflicts = result["conflicts"]
    lines = [
        *_skipped(result),
        f"{result['images']:,} images of {result['classes']:,} classes ({result['source']}), each judged by its {result['k']} "
        f"nearest {how}: {result['likely']:,} labels are likely wrong",
        *([f"{result['unlabelled']:,} images without a label are left out"] if result["unlabelled"] else []),
        *([f"{result['new_classes']:,} classes are not known to the run"] if result["new_classes"] else []),
        *([f"{result['alone']:,} images are the only one of their class"] if result["alone"] else []),
    ]
    if result["issues"]:
        rows = [(one["image"], one["given"], one["suggested"], f"{one['score']:.3g}") for one in result["issues"][:_WORST]]
        lines += _columns([("image", "given", "suggested", "score"), *rows])
    lines.append(f"copies with different labels: {len(conflicts):,}{'' if result['near_sought'] else ' (exact ones alone)'}")
    for group in conflicts[:_WORST]:
        lines.append("  " + " = ".join(f"{one['image']} ({one['label']})" for one in group["images"]))
    return "\n".join([*lines, f"table: {result['table']}", f"pictures: {result['gallery']}"])


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
    right = sum(result["true_label"] == result["voted"] for result in known)
    line = f"\n{right:,} of {len(known):,} with a label are right ({right / len(known):.4f})"
    given = [result for result in known if result["label"] == result["voted"]]
    if len(given) == len(known):
        return line
    right = sum(result["true_label"] == result["label"] for result in given)
    share = f" ({right / len(given):.4f})" if given else ""
    return f"{line}; {len(known) - len(given):,} are called unknown, and of the other {len(given):,} {right:,} are right{share}"


def _counted(counts: Mapping[str, int], marked: Sequence[str], mark: str) -> str:
    return ", ".join(f"{count:,} of {name}{f' ({mark})' if name in marked else ''}" for name, count in counts.items())


def _said(result: Mapping[str, Any]) -> str:
    """The label of an answer; of an unknown one with the class that won the vote all the same."""
    return result["label"] if result["label"] == result["voted"] else f"{result['label']} ({result['voted']}?)"


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
    return _columns(rows)


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
        lines += _columns([head, *((way, *("" if one is None else f"{one:.4f}" for one in row.values())) for way, row in ways)])
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
    names = (("accuracy", "accuracy"), ("one_nn_accuracy", "1-NN"), ("recall@1", "recall@1"), ("map@r", "MAP@R"))
    pairs = [
        f"{title} {rest[key]:.4f} (with them {found['figures']['all'][key]:.4f})"
        for key, title in names
        if rest[key] is not None
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


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))).rstrip() for row in rows]


def _skipped(result: Mapping[str, Any]) -> list[str]:
    bad = result.get("skipped", [])
    return [f"left out {len(bad):,} images that cannot be read: {'; '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}"] * bool(
        bad
    )
