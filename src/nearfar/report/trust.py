"""What a figure can be trusted for: how it is without copies in the gallery, and on classes that training never saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearfar.report import tables
from nearfar.report.markup import text


def unseen(tree: Mapping[str, Any]) -> str:
    """Figures of classes that were kept from training, beside those of the others."""
    apart, both = tree["unseen"]["data"], tree["unseen"].get("with_seen")
    lines = [
        "<h3>Classes that training never saw</h3>",
        f"<p>{apart['queries']:,} images, each searched among the others. They are of {apart['new_classes']:,} classes that "
        "were kept from training: what is found among them the embedding was not taught.</p>",
    ]
    if both:
        lines.append(
            f"<p>&ldquo;Among all&rdquo; is the harder and more usual case: each is searched among the others and the "
            f"{both['data']['gallery'] - apart['queries']:,} gallery images of the seen classes, which draw it away where its "
            "class looks like one of theirs.</p>"
        )
    caption = f"Seen and unseen classes; below each figure its interval{' and the baselines' * ('baselines' in tree)}."
    lines += [tables.unseen_table(tree, caption), tables.shape_table(tree["unseen"], "How the unseen classes lie in space.")]
    return "\n".join(lines)


def classes(tree: Mapping[str, Any]) -> str:
    """Figures of each class, those that training never saw apart."""
    if "unseen" not in tree:
        return tables.classes_table(tree)
    lines = [tables.classes_table(tree), "<h3>Classes that training never saw</h3>", tables.classes_table(tree["unseen"])]
    return "\n".join(lines)


def copies(tree: Mapping[str, Any], shown: bool) -> str:
    """How many queries have a copy in the gallery, and what figures are without them; ``shown``: a plot has some of them."""
    if "leaks" not in tree:
        return f'<p class="note">They were not looked for: {text(tree.get("left_out", {}).get("leaks", "no images"))}.</p>'
    lines = [
        "<p>Whose very picture is in the gallery, a query says little of an embedding. So copies were looked for among the "
        f"pixels: exact ones, and near ones, whose pixels correlate by at least {tree['leaks']['likeness']}.</p>"
    ]
    searches = [("The images judged", tree), ("Unseen classes among themselves", tree.get("unseen"))]
    searches.append(("Unseen classes among all images", tree.get("unseen", {}).get("with_seen")))
    for title, each in searches:
        if each is None or "leaks" not in each:
            continue
        found = each["leaks"]
        near = "near ones were not looked for among so many" if found["near"] is None else f"{found['near']:,} a near one"
        other = f"; {found['differing_labels']:,} of these copies are of another class" if found.get("differing_labels") else ""
        lines.append(f"<p>{title}: {found['exact']:,} have an exact copy in what is searched, {near}{other}.</p>")
        if found["figures"]["without"]["queries"] < found["figures"]["all"]["queries"]:
            lines.append(
                tables.copies_table(found, tree.get("classification", {}).get("k"), f"{title}, with and without copies.")
            )
    if shown:
        lines.append('<p>Some of them are <a href="#plot-copies">shown as pairs</a>.</p>')
    return "\n".join(lines)
