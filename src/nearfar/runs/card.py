"""The model card: a run's ``README.md``, in the format that model hubs read, made from its config and figures alone."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

from nearfar import runs
from nearfar.errors import InputError
from nearfar.files import read_json, write_text
from nearfar.measuring.text import in_epochs
from nearfar.runs.reproduce import recipe_file, recipe_toml, train_command

_ROWS = (  # section and key in metrics.json, and what it is called
    ("views", "recall@1", "Recall at 1, an image looked for by a changed view of it"),
    ("views", "mrr", "Mean reciprocal rank, likewise"),
    ("classification", "accuracy", "{k}-nearest-neighbour accuracy"),
    ("classification", "one_nn_accuracy", "1-nearest-neighbour accuracy"),
    ("classification", "head_accuracy", "Accuracy of the linear head"),
    ("classification", "f1_macro", "F1, mean over classes"),
    ("retrieval", "recall@1", "Recall at 1"),
    ("retrieval", "map@r", "MAP@R"),
    ("retrieval", "r_precision", "R-precision"),
    ("clustering", "nmi", "NMI of k-means clusters"),
    ("verification", "auroc", "AUROC, same or different"),
    ("verification", "eer", "Equal error rate, same or different"),
)

_TOWERS = (  # the same of the section towers
    ("zero_shot", "accuracy", "Zero-shot accuracy, by the names of the classes"),
    ("text_to_image", "recall@1", "Text to image, recall at 1"),
    ("image_to_text", "recall@1", "Image to text, recall at 1"),
)

_TASK = "image-feature-extraction"


def write_card(folder: Path, config: dict[str, Any] | None = None) -> None:
    """Write ``README.md`` of the run in ``folder``, with its figures if evaluated; ``config`` if not yet there."""
    config = runs.read_config(folder) if config is None else config
    metrics = read_json(folder / runs.METRICS) if (folder / runs.METRICS).exists() else None
    try:
        text = card(config, metrics)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder} is damaged: what it says of its training or its figures is not whole ({what})") from error
    write_text(folder / runs.CARD, text)


def card(config: dict[str, Any], metrics: dict[str, Any] | None) -> str:
    """The text of the card; class names and paths appear as code, so that none of them is read as markup."""
    recipe, data, size = config["recipe"], config["data"], config["input"]["size"]
    training = config.get("training", {})
    lines = ["---", "library_name: nearfar", f"pipeline_tag: {_TASK}"]
    lines += ["tags: [metric-learning, contrastive-learning, image-retrieval, nearfar]"]
    lines += [*(_model_index(recipe["name"], metrics) if metrics else []), "---", ""]
    lines += [f"# {_plain(recipe['name'])}: image embedding", "", _plain(recipe["description"]), ""]
    classes = config["classes"]
    shown = ", ".join(_code(name) for name in classes[:20]) + (f" and {len(classes) - 20:,} more" if len(classes) > 20 else "")
    channels = {1: "grey", 3: "colour"}.get(config["input"]["channels"], f"{config['input']['channels']}-channel")
    train, towers = data.get("train", {}), "text" in config
    lines += [
        "## What it is",
        "",
        f"- Input: {channels} images, resized to {size[0]} x {size[1]} pixels.",
        ("- Its index is of " if training.get("learned") is False else "- Trained on ")
        + (f"{_code(data.get('source', 'images'))}: {train['images']:,} images" if "images" in train else "images")
        + (f" of {train.get('classes', len(classes)):,} classes ({shown})" if classes else " without labels")
        + (" and their captions." if "text" in config else "."),
        _how(config),
        *_began(config),
        *(["- Texts lie beside the images: it finds images for a text, and classes by their names alone."] if towers else []),
        f"- Near and far are meant by {recipe['evaluate']['metric']} "
        + ("distance." if recipe["evaluate"]["metric"] == "euclidean" else "similarity."),
        "",
    ]
    lines += _figures(metrics) if metrics else ["Not evaluated yet: `nearfar evaluate` adds the figures.", ""]
    command, from_file = train_command(config, "RUN")
    lines += [
        "## How to use it",
        "",
        "```bash",
        "nearfar search RUN IMAGE.png",
        *(['nearfar search RUN "what to look for"', "nearfar search RUN IMAGE.png --to text"] if towers else []),
        *(["nearfar predict RUN IMAGE.png"] if classes else []),
        *(['nearfar predict RUN IMAGE.png --classes "one, another"'] if towers else []),
        "```",
        "",
        "```python",
        "import nearfar as nf",
        'model = nf.Embedder.load("RUN")',
        "z = model.transform(images)  # uint8 [N, H, W] or [N, C, H, W] -> float32 [N, D]",
        *(['texts = model.transform_text(["what to look for"])  # float32 [1, D], beside the images'] if towers else []),
        "```",
        "",
        "## How to make it again",
        "",
        "```bash",
        command.replace("`", "'"),
        "```",
        "",
    ]
    if from_file:
        text = recipe_toml(recipe).replace("```", "'''")
        lines += [f"with this recipe in {_code(recipe_file(recipe))}:", "", "```toml", text.rstrip(), "```", ""]
    return "\n".join(lines)


def _how(config: dict[str, Any]) -> str:
    """By what it was trained, for how long."""
    recipe, training = config["recipe"], config.get("training", {})
    encoder = f"- Encoder {_code(recipe['encoder']['kind'])}"
    if training.get("learned") is False:
        return f"{encoder}, taken as it is: nothing was trained."
    took = f", {training['seconds']:.1f} s of training." if "seconds" in training else "."
    length = in_epochs(recipe["train"]["epochs"])
    return f"{encoder}, loss {_code(recipe['loss']['kind'])}, {length}, seed {config['seed']}{took}"


def _began(config: dict[str, Any]) -> list[str]:
    """Whose weights and which run's encoder training began with, and what for."""
    start, weights, lines = config.get("start"), config.get("training", {}).get("weights"), []
    if isinstance(weights, dict):
        origin = "their published file" if weights.get("weights") == "pretrained" else "a file"
        licence = "not known to timm" if weights.get("license") is None else _code(weights["license"])
        frozen = " and are frozen" if config["recipe"]["encoder"].get("frozen") else ""
        lines.append(
            f"- The first weights were timm's {_code(weights.get('model'))}, from {origin} (SHA-256 "
            f"{_code(str(weights.get('sha256'))[:12])}){frozen}; their licence: {licence}."
        )
    if not isinstance(start, dict):
        return lines
    done = {
        "linear": "left as it was; a linear classifier was trained on it",
        "finetune": "trained further, together with a linear classifier on it",
    }.get(config["recipe"]["train"].get("mode", ""), "trained further")
    return [*lines, f"- The encoder is that of the run {_code(start.get('run'))}, {done}."]


def _measured(metrics: dict[str, Any]) -> list[tuple[str, str, str, float]]:
    """Section, key, title and value of the figures that a card shows."""
    rows = []
    towers = metrics.get("towers", {})
    for section, key, title in _TOWERS:
        if isinstance(value := towers.get(section, {}).get(key), int | float):
            rows.append((f"towers.{section}", key, title, float(value)))
    for section, key, title in _ROWS:
        value = metrics.get(section, {}).get(key)
        if isinstance(value, int | float):
            rows.append((section, key, title.format(k=metrics.get("classification", {}).get("k", "k")), float(value)))
    return rows


def _model_index(name: Any, metrics: dict[str, Any]) -> list[str]:
    """The figures as model hubs read them: lines of YAML, one result of as many metrics."""
    data, rows = metrics.get("data", {}), _measured(metrics)
    source = PurePath(str(data.get("source", "images"))).name or "images"  # a path says more than strangers should know
    if not rows:
        return []
    lines = [
        "model-index:",
        f"- name: {quoted(name)}",
        "  results:",
        f"  - task: {{type: {_TASK}}}",
        "    dataset:",
        f"      name: {quoted(source)}",
        f"      type: {quoted(re.sub(r'[^a-z0-9_-]+', '-', source.lower()).strip('-') or 'images')}",
        f"      split: {quoted(data.get('split', 'test'))}",
        "    metrics:",
    ]
    for _, key, title, value in rows:
        kind = key.replace("@", "_at_")
        lines += [f"    - type: {kind}", f"      name: {quoted(title)}", f"      value: {_decimal(value)}"]
    return lines


def quoted(text: Any) -> str:
    """``text`` as one double-quoted YAML scalar: no letter of it ends the quotes, the line or the document.

    Letters beyond ASCII are escaped, since YAML takes some of them as ends of lines and refuses others.
    """
    letters = []
    for letter in str(text):
        code = ord(letter)
        if letter in '"\\':
            letters.append("\\" + letter)
        elif 0x20 <= code < 0x7F:
            letters.append(letter)
        elif 0xD800 <= code < 0xE000:
            letters.append("?")  # half of a letter, which no file can hold
        else:
            letters.append(f"\\U{code:08X}")
    return f'"{"".join(letters)}"'


def _decimal(value: float) -> str:
    """All digits of ``value``, with the point without which YAML 1.1 reads ``1e-05`` as text."""
    text = repr(value)
    return text if "." in text or "e" not in text else text.replace("e", ".0e")


def _figures(metrics: dict[str, Any]) -> list[str]:
    data, intervals = metrics.get("data", {}), metrics.get("confidence", {})
    lines = [
        "## Figures",
        "",
        f"On {data.get('queries', 0):,} images of the {data.get('split', '?')} split of {_code(data.get('source', '?'))}, "
        f"against {data.get('gallery', 0):,} gallery images ({data.get('gallery_is', '')}). "
        "In brackets: 95 % bootstrap interval over the queries.",
        "",
        "| figure | value |",
        "|---|---|",
    ]
    for section, key, title, value in _measured(metrics):
        interval = intervals.get(section, {}).get(key)
        spread = f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        lines.append(f"| {title} | {value:.4f}{spread} |")
    if "unseen" in metrics:
        unseen = metrics["unseen"]
        count = unseen.get("data", {})
        lines += [
            f"| Recall at 1 on {count.get('new_classes', 0):,} classes never trained on ({count.get('queries', 0):,} images) "
            f"| {unseen['retrieval']['recall@1']:.4f} |"
        ]
    return [*lines, ""]


def _plain(text: Any) -> str:
    return " ".join(str(text).translate(str.maketrans("<>`[]", "()'()")).split())


def _code(text: Any) -> str:
    return "`" + " ".join(str(text).replace("`", "'").split()) + "`"
