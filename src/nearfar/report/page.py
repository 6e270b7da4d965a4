"""The page: every part of a report in the order in which it is read, as one HTML file that fetches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearfar.measuring.text import in_epochs
from nearfar.report import tables, trust, unlabelled
from nearfar.report.markup import block, code, facts, name, picture, table, text, thumbnail
from nearfar.report.pictures import Album
from nearfar.report.sure import sure
from nearfar.runs import reproduce

LIMIT = 5_000_000  # bytes of the page
_STYLE = Path(__file__).with_name("page.css")
_PIXELS_PER_INCH = 108  # CSS pixels that an inch of a plot is laid out at
_SMALLEST_DPI = 40
_SHEET = "worst_mistakes"  # the plot that the page shows as pictures of their own, with file names
_CARDS = (
    ("classification", "accuracy", "{k}-NN accuracy"),
    ("retrieval", "recall@1", "Recall@1"),
    ("retrieval", "map@r", "MAP@R"),
    ("verification", "auroc", "AUROC, same or different"),
)


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction that the report shows."""

    image: Any  # uint8 [C, H, W]
    id: str
    label: str
    predicted: str
    votes: float
    nearest: Any | None  # the nearest gallery image of the predicted class, uint8 [C, H, W]
    nearest_id: str | None


@dataclass(frozen=True)
class Content:
    """What a page is made of."""

    folder: str  # name of the run folder
    config: Mapping[str, Any]
    figures: Mapping[str, Any]  # the tree of metrics.json
    summary: Sequence[tuple[str, tuple[int, ...], int]]  # layer, output shape, parameters
    wrong: int  # how many queries got a wrong class
    mistakes: Sequence[Mistake]  # the worst of them
    album: Album
    machine: Mapping[str, str]
    seconds: Mapping[str, float]  # that the parts of the report took
    made: str  # the day, as YYYY-MM-DD
    command: str  # that made the report


def render(content: Content, images: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        content: what it tells.
        images: the plots as PNG, by name; drawn again with fewer pixels where the page would pass ``LIMIT`` bytes.
    """
    smaller = dict(images)
    rest = len(_document(content, {}).encode())
    dpi = dict.fromkeys(images, 150.0)
    while rest + sum(4 * -(-len(png) // 3) for png in smaller.values()) >= LIMIT:
        largest = max(smaller, key=lambda one: len(smaller[one]) * (dpi[one] > _SMALLEST_DPI))
        if dpi[largest] <= _SMALLEST_DPI:
            break
        dpi[largest] = max(_SMALLEST_DPI, 0.75 * dpi[largest])
        smaller[largest] = content.album.plots[largest].png_bytes(dpi[largest])
    return _document(content, smaller)


def _document(content: Content, images: Mapping[str, bytes]) -> str:
    title = f"{content.config['recipe']['name']} on {content.config['data'].get('source', 'images')}"
    tree, shown = content.figures, content.album.plots
    if "views" in tree:
        found = [("missed", "Not found again", unlabelled.not_found(tree, "views_missed" in shown))]
    else:
        found = [
            ("sure", "How sure it is", sure(tree)),
            ("classes", "By class", trust.classes(tree)),
            ("mistakes", "Worst mistakes", _mistakes(content)),
        ]
    parts = [
        ("summary", "In short", _in_short(content)),
        ("trained", "What was trained", _trained(content)),
        ("figures", "Figures", _figures(content)),
        ("copies", "Copies in the gallery", trust.copies(tree, "copies" in shown)),
        *found,
        ("plots", "Plots", _plots(content, images)),
        ("time", "Time and machine", _time(content)),
        ("again", "How to make it again", _again(content)),
    ]
    links = "".join(f'<li><a href="#{key}">{text(heading)}</a></li>' for key, heading, _ in parts)
    sections = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-heading">\n<h2 id="{key}-heading">{text(heading)}</h2>\n{body}\n</section>'
        for key, heading, body in parts
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="nearfar {text(content.machine["nearfar"])}">
<title>{text(title)}: nearfar report</title>
<style>
{_STYLE.read_text()}</style>
</head>
<body>
<header>
<h1>{name(title)}</h1>
<p class="soft">Report of the run {code(content.folder)}, made on <time datetime="{content.made}">{content.made}</time>
with nearfar {text(content.machine["nearfar"])}.</p>
</header>
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main>
{sections}
</main>
<footer>Made by <code>{text(content.command)}</code>. This page is one file: it loads nothing and runs no scripts.</footer>
</body>
</html>
"""


def _in_short(content: Content) -> str:
    data = content.figures["data"]
    lines = [unlabelled.in_short(content.figures) if "views" in content.figures else _of_classes(content.figures)]
    if data["new_classes"]:
        lines.append(
            f'<p class="note">{data["new_classes"]:,} of the classes are not in the run\'s index: the images were searched '
            "among themselves.</p>"
        )
    if data["skipped"]:
        lines.append(f'<p class="note">{len(data["skipped"]):,} images could not be read and were left out.</p>')
    for message in content.figures.get("training", {}).get("warnings", []):
        lines.append(f'<p class="note">While it was trained: {text(message)}.</p>')
    return "\n".join(lines)


def _of_classes(tree: Mapping[str, Any]) -> str:
    data, k = tree["data"], tree["classification"]["k"]
    accuracy = tree["classification"]["accuracy"]
    spread = tree.get("confidence", {}).get("classification", {}).get("accuracy")
    sure = f" (95 % interval {100 * spread[0]:.2f} to {100 * spread[1]:.2f})" if spread else ""
    pixels = tree.get("baselines", {}).get("pixels")
    beside = f"; a search among the raw pixels does for {100 * pixels['classification']['accuracy']:.2f} %" if pixels else ""
    among = "among one another, each left out of its own search" if data["same_set"] else f"among {data['gallery']:,} others"
    lead = (
        f"<p>{data['queries']:,} images of {name(data['source'])} ({text(data['split'])} split) were searched {among}. "
        f"The {k} nearest give the right class for <b>{100 * accuracy:.2f} %</b> of them{sure}{beside}.</p>"
    )
    return f"{lead}\n{tables.cards(tree, [(section, key, title.format(k=k)) for section, key, title in _CARDS])}"


def _trained(content: Content) -> str:
    config, recipe = content.config, content.config["recipe"]
    size, channels = config["input"]["size"], config["input"]["channels"]
    train, sampling, start = recipe["train"], recipe["sampling"], config.get("start")
    parts = [(part, about) for part, about in config["data"].items() if isinstance(about, Mapping)]
    batches = {
        "shuffle": f"shuffled, {sampling['batch_size']:,} images a batch",
        "pairs": f"pairs ({sampling['partner']} partners, {sampling['pairing']}), {sampling['batch_size']:,} a batch",
        "class-batches": f"{sampling['classes']:,} classes x {sampling['per_class']:,} images a batch",
        "views": f"{sampling['views']:,} views each of {sampling['batch_size']:,} images a batch",
        "captions": f"{sampling['batch_size']:,} images a batch, each with one of its captions",
    }[sampling["kind"]]
    pairs = [
        ("Recipe", f"{code(recipe['name'])}: {text(recipe['description'])}"),
        ("Data", code(config["data"].get("source", "unknown"))),
        ("Input", f"{ {1: 'grey', 3: 'colour'}.get(channels, channels) } images of {size[0]} x {size[1]} pixels"),
        ("Encoder", f"{code(recipe['encoder']['kind'])}, {_brief(recipe['encoder'])}"),
        ("Loss", f"{code(recipe['loss']['kind'])}{_comma(_brief(recipe['loss']))}"),
        ("Batches", batches),
        ("Augmentation", _brief({"kind": "", **recipe["augment"]}) or "none"),
        (
            "Optimiser",
            f"{code(train['optimizer'])}, learning rate {train['learning_rate']:g}, {text(train['schedule'])} schedule, "
            f"{in_epochs(train['epochs'])}",
        ),
        *([("Began with", f"the encoder of the run {code(start.get('run'))}")] if isinstance(start, Mapping) else []),
        ("Near and far by", f"{recipe['evaluate']['metric']} {'distance' * (recipe['evaluate']['metric'] == 'euclidean')}"),
        ("Seed", str(config["seed"])),
        ("Trained by", f"nearfar {text(config.get('nearfar', 'unknown'))}"),
    ]
    rows = [
        [text(part), f"{about['images']:,}", f"{about['classes']:,}", code(str(about.get("sha256", ""))[:16])]
        for part, about in parts
    ]
    layers = [[code(layer), " x ".join(map(str, shape)), f"{count:,}"] for layer, shape, count in content.summary]
    total = sum(count for *_, count in content.summary)
    layers = [["input", f"{channels} x {size[0]} x {size[1]}", "0"], *layers, ["<b>all</b>", "", f"<b>{total:,}</b>"]]
    data = table("The data, and the first 16 digits of each part's SHA-256.", ["Part", "Images", "Classes", "SHA-256"], rows)
    return "\n".join(
        [
            facts(pairs),
            data if rows else "",
            "<h3>The network</h3>",
            table("Layers in the order in which an image passes them.", ["Layer", "Output", "Parameters"], layers),
        ]
    )


def _figures(content: Content) -> str:
    tree = content.figures
    data, baselines = tree["data"], tree.get("baselines", {})
    parts = [
        "<p>Small below a figure: its 95 % bootstrap interval, in which it lies when the queries are drawn anew. "
        "For all but those marked, greater is better.</p>"
    ]
    if baselines:
        shown = baselines["pca"]
        rule = ""
        if shown["size"] != content.config["input"]["size"]:
            rule = f" For these, images are averaged down to {shown['size'][0]} x {shown['size'][1]} pixels."
        few = shown["queries"] < data["queries"]
        asked = f"the same gallery and {shown['queries']:,} of the queries" if few else "the same gallery and queries"
        by = "" if shown["metric"] == data["metric"] else f" They are compared by {shown['metric']}."
        parts.append(
            f"<p>Beside them stands what the same search finds without any training, with {asked}: "
            f"among as many principal components of the pixels as the embedding has numbers ({shown['dimensions']:,}), "
            f"and among the pixels themselves ({baselines['pixels']['dimensions']:,} numbers).{rule}{by}</p>"
        )
    elif reason := content.figures.get("left_out", {}).get("baselines"):
        parts.append(f'<p class="note">Baselines were left out: {text(reason)}.</p>')
    asked = "Search" if "views" in tree else "Search and pairs"
    parts.append(tables.search_table(tree, f"{asked}: {data['queries']:,} queries, {data['gallery']:,} gallery images."))
    verification = tree.get("verification", {})
    if verification.get("threshold") is not None and verification["pairs"]:
        origin = {"given": "the recipe", "fixed": "no choice: the fixed one"}.get(
            verification["threshold_from"], str(verification["threshold_from"])
        )
        parts.append(
            f"<p>{verification['pairs']:,} pairs of queries; below a distance of {tables.number(verification['threshold'])} "
            f"they are called the same. The threshold is from {text(origin)}.</p>"
        )
    parts.append(tables.shape_table(tree, f"How the {'images' if 'views' in tree else 'queries'} lie in space."))
    if tree.get("towers"):
        parts.append(tables.towers_table(tree["towers"]))
    if "unseen" in tree:
        parts.append(trust.unseen(tree))
    return "\n".join(parts)


def _mistakes(content: Content) -> str:
    total = content.figures["data"]["queries"]
    if not content.mistakes:
        return f"<p>None: all {total:,} images got the right class.</p>"
    lines = [
        f"<p>{content.wrong:,} of {total:,} images got a wrong class. These are the {len(content.mistakes)} with the most "
        "votes for it: left the image, right the nearest gallery image of the class that it was taken for.</p>",
        '<ul class="mistakes">',
    ]
    for one in content.mistakes:
        pictures = thumbnail(one.image, f"{one.id}, of class {one.label}")
        near = ""
        if one.nearest is not None:
            pictures += thumbnail(one.nearest, f"{one.nearest_id}, of class {one.predicted}")
            near = f"<small>right: {name(one.nearest_id)}</small>"
        lines.append(
            f'<li><figure><div class="two">{pictures}</div><figcaption>{name(one.label)} taken for '
            f'<span class="wrong">{name(one.predicted)}</span>, {100 * one.votes:.0f} % of the votes'
            f"<small>{'left: ' * bool(near)}{name(one.id)}</small>{near}</figcaption></figure></li>"
        )
    return "\n".join([*lines, "</ul>"])


def _plots(content: Content, images: Mapping[str, bytes]) -> str:
    tree = content.figures
    too = ", and so are the worst mistakes" if _SHEET in content.album.plots else ""
    lines = [f"<p>Each is also in {code('plots/')} of the run folder, as PNG and as SVG{too}.</p>"]
    lines.append('<p class="narrow soft">On a narrow screen, plots scroll sideways.</p>')
    for heading, plots in content.album.groups():
        lines.append(f"<h3>{text(heading)}</h3>")
        for plot in plots:
            if plot.name == _SHEET:
                continue
            width, height = (round(_PIXELS_PER_INCH * inches) for inches in plot.figure.get_size_inches())
            drawn = picture(images.get(plot.name, b""), plot.alt, (width, height), "tall" if height > width else "")
            lines.append(
                f'<figure id="plot-{plot.name}"><div class="plot" tabindex="0">{drawn}</div>'
                f"<figcaption>{text(plot.caption)}</figcaption></figure>"
            )
    missing = {key: reason for key, reason in content.album.left_out.items() if key not in tree.get("left_out", {})}
    if missing:
        rows = [[code(key), text(reason)] for key, reason in missing.items()]
        lines.append(table("Plots that this run has not.", ["Plot", "Why"], rows, kind="words"))
    return "\n".join(lines)


def _time(content: Content) -> str:
    timing, training = content.figures["timing"], content.config.get("training", {})
    precision = f" ({text(training['precision'])})" if "precision" in training else ""
    pairs = [
        (
            "Training",
            f"{tables.amount(timing['train_seconds'], ' s')}, {tables.amount(timing['train_images_per_second'])} images/s"
            + precision,
        ),
        ("Embedding", f"{tables.amount(timing['embed_seconds'], ' s')}, {tables.amount(timing['images_per_second'])} images/s"),
        ("Search", f"{tables.amount(timing['search_seconds'], ' s')}, {tables.amount(timing['queries_per_second'])} queries/s"),
        *((f"Report: {part}", tables.amount(seconds, " s")) for part, seconds in content.seconds.items()),
        *((key, text(value)) for key, value in content.machine.items()),
    ]
    return "<p>Training was timed where the run was made; all else here, on the machine that made this report.</p>\n" + facts(
        pairs
    )


def _again(content: Content) -> str:
    config = content.config
    command, from_file = reproduce.train_command(config, content.folder)
    file = reproduce.recipe_file(config["recipe"])
    lead = (
        f"<p>With the recipe below saved as {code(file)}:</p>"
        if from_file
        else "<p>The same data and seed give the same run:</p>"
    )
    return "\n".join(
        [
            f"<p>{lead}</p>",
            block(f"{command}\n{content.command}", "Commands", "wrap"),
            f"<p>The whole recipe{'' if from_file else f', to be saved as {code(file)} and changed'}:</p>",
            block(reproduce.recipe_toml(config["recipe"]), "Recipe as TOML", "long"),
        ]
    )


def _brief(part: Mapping[str, Any]) -> str:
    """The arguments of an encoder, a loss or an augmentation in one line."""
    words = [f"{key} {_words(value)}" for key, value in part.items() if key != "kind"]
    return text(", ".join(words))


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _comma(words: str) -> str:
    return f", {words}" if words else ""
