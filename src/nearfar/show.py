"""Results as text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nearfar.measuring.text import aligned, figures, in_epochs, skipped

_WORST = 10  # label issues that are named on the screen


def trained(result: Mapping[str, Any]) -> str:
    """What `verbs.train` returned."""
    captioned = f", {result['captions']:,} different captions" if "captions" in result else ""
    bare = f"{result.get('uncaptioned', 0):,} images without a caption were not learned from"
    images = f"{result['images']:,} images " + (f"of {result['classes']:,} classes" if result["classes"] else "without labels")
    speed = f"{in_epochs(result['epochs'])} in {result['train_seconds']:.1f} s ({result['images_per_second']:,.0f} images/s)"
    lines = [
        f"trained {result['recipe']} on {images}{captioned}, {speed}"
        if result["epochs"]
        else f"nothing to learn in {result['recipe']}: its encoder is frozen; it embedded {images} as it is",
        *([bare] if result.get("uncaptioned") else []),
        f"run folder: {result['run']}",
        f"next: nearfar evaluate {result['run']}"
        + ("" if result["classes"] or captioned else f", or nearfar search {result['run']} IMAGE"),
    ]
    return "\n".join(skipped(result) + lines)


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
        return "\n".join([*skipped(result), line])
    lines, more = skipped(result), result["skipped_images"] - len(result["skipped"])
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
        f"nearest image is the same for {result['same_nearest']:.2%}, of the 10 nearest {result['overlap']:.2%} are"
        + (f", the class for {result['same_class']:.2%}" if "same_class" in result else ""),
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
        blocks.append("\n".join([result["query"], *aligned(rows)]))
    return "\n\n".join(blocks)


def added(result: Mapping[str, Any]) -> str:
    """What `indexing.add_images` returned."""
    there = result["already_there"]
    lines = [*skipped(result)]
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
    return "\n".join([*lines, *aligned(rows)])


def predictions(results: Sequence[Mapping[str, Any]]) -> str:
    """What `verbs.predict` returned: a line for every image."""
    if results and "votes" not in results[0]:
        rows = [[r["image"], r["label"], f"{r['probability']:.4f}", f"{r['score']:.4f}"] for r in results]
        return "\n".join(aligned([["image", "label", "probability", "score"], *rows])) + _right(results)
    head = ["image", "label", "votes", "probability", "nearest", "score"]
    rows = [
        [r["image"], _said(r), f"{r['votes']:.2f}", f"{r['probability']:.4f}", r["nearest"], f"{r['score']:.4f}"]
        for r in results
    ]
    if any("head_label" in result for result in results):
        head = [*head, "linear head"]
        rows = [[*row, result["head_label"]] for row, result in zip(rows, results, strict=True)]
    lines = aligned([head, *rows])
    return "\n".join(lines) + _right(results)


def label_issues(result: Mapping[str, Any]) -> str:
    """What `labelissues.label_issues` returned: counts, the worst, and where the rest is."""
    how = f"in {result['folds']} folds" if result["folds"] else "in the embedding of the run"
    conflicts = result["conflicts"]
    lines = [
        *skipped(result),
        f"{result['images']:,} images of {result['classes']:,} classes ({result['source']}), each judged by its {result['k']} "
        f"nearest {how}: {result['likely']:,} labels are likely wrong",
        *([f"{result['unlabelled']:,} images without a label are left out"] if result["unlabelled"] else []),
        *([f"{result['new_classes']:,} classes are not known to the run"] if result["new_classes"] else []),
        *([f"{result['alone']:,} images are the only one of their class"] if result["alone"] else []),
    ]
    if result["issues"]:
        rows = [(one["image"], one["given"], one["suggested"], f"{one['score']:.3g}") for one in result["issues"][:_WORST]]
        lines += aligned([("image", "given", "suggested", "score"), *rows])
    lines.append(f"copies with different labels: {len(conflicts):,}{'' if result['near_sought'] else ' (exact ones alone)'}")
    for group in conflicts[:_WORST]:
        lines.append("  " + " = ".join(f"{one['image']} ({one['label']})" for one in group["images"]))
    return "\n".join([*lines, f"table: {result['table']}", f"pictures: {result['gallery']}"])


def compared(tree: Mapping[str, Any]) -> str:
    """What `compare.compare` returned."""
    from nearfar.comparison_report import remarks, table

    rows = table(dict(tree))
    lines = [*tree["verdicts"], "", *aligned(rows), "percent, mean ± standard deviation over the seeds"]
    return "\n".join([*lines, "", *remarks(dict(tree)), f"tables and plots: {tree['out']}/README.md"])


def recipes() -> str:
    """Every recipe with its description."""
    from nearfar.recipe import load_recipe, recipe_names

    return "\n".join(aligned([(name, load_recipe(name).description) for name in recipe_names()]))


def known_sets() -> str:
    """Every named set with its description."""
    from nearfar.data.catalog import known_sets as known

    return "\n".join(aligned(list(known().items())))


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
