"""The part of a page that says how far answers are to be believed, and what becomes of classes never seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearfar.report.markup import table, text
from nearfar.report.tables import number


def sure(tree: Mapping[str, Any]) -> str:
    """Calibration, the line of the unknown, and figures of an open set, as far as the run has them."""
    found = tree.get("calibration")
    if found is None:
        return f'<p class="note">Not measured: {text(tree.get("left_out", {}).get("calibration", "no calibration"))}.</p>'
    asked, fresh, apart = found.get("queries"), found.get("added_classes"), tree.get("open_set")
    lines = [
        f"<p>The share of the vote is turned into a probability by what neighbours were worth among {found['images']:,} "
        f"{text(found['images_are'])}. The calibration error is how far such probabilities are from the truth on average; "
        "smaller is better, and so it is with the log loss.</p>"
    ]
    if "training" in found["images_are"]:
        lines.append(
            '<p class="note">Training saw these images: the figures of the fit flatter. Hold out validation images.</p>'
        )
    rows = [
        ["Calibration error, share of the vote", number(found["before"]["ece"]), number(asked and asked["ece_before"])],
        ["Calibration error, probability", number(found["after"]["ece"]), number(asked and asked["ece_after"])],
        ["Log loss, share of the vote", number(found["before"]["log_loss"]), number(None)],
        ["Log loss, probability", number(found["after"]["log_loss"]), number(None)],
        ["Answered, not called unknown", number(found["answered"]), number(asked and asked["answered"])],
        ["Right among these answers", number(found["precision"]), number(asked and asked["precision"])],
    ]
    caption = (
        f"Answers are given where {100 * found['precision_wanted']:g} % of them are to be right: from a probability of "
        f"{number(found['threshold'])} on."
    )
    lines.append(table(text(caption), ["Figure", "Images of the fit", "Images judged"], rows))
    if fresh:
        lines.append(
            f"<p>{fresh['classes']:,} classes were added to the index since training: "
            f"{100 * fresh['accuracy']:.2f} % of their {fresh['images']:,} images are found.</p>"
        )
    if apart:
        lines.append(
            f"<p>{apart['unseen']:,} images are of classes that are not in the index. The probability tells them from the "
            f"{apart['known']:,} others with an AUROC of <b>{number(apart['auroc'])}</b>; where 95 % of the others are kept, "
            f"{100 * apart['fpr@95tpr']:.2f} % of them pass too. {100 * apart['answered_unseen']:.2f} % get an answer, "
            "which is wrong, instead of &ldquo;unknown&rdquo;.</p>"
        )
    return "\n".join(lines)
