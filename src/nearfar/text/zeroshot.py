"""Classes from words alone: prompts to class vectors, and class vectors to labels (Radford et al. 2021, section 3.1.4).

Knows unit rows and texts; no tower, no image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.text.checks import check_texts

TEMPLATES = ("a photo of a {}.",)
Floats = npt.NDArray[np.float32]


def prompts_of(classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> dict[str, list[str]]:
    """Put the name of every class into every template.

    Args:
        classes: names, each once.
        templates: texts with ``{}`` where the name goes.

    Raises:
        InputError: a name is blank or occurs twice, a template has no ``{}``, or there is none.
    """
    names, forms = check_texts(classes, "classes"), check_texts(templates, "templates")
    if not names:
        raise InputError("there are no classes; give their names")
    if not forms:
        raise InputError('there are no templates; give at least one, e.g. "a photo of a {}."')
    for form in forms:
        if "{}" not in form:
            raise InputError(f'the template {form!r} has no {{}}; write where the name goes, as in "a photo of a {{}}."')
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise InputError(f"the class {twice!r} is named twice; name every class once")
    return {name: [form.replace("{}", name) for form in forms] for name in names}


def class_vectors(embed: Callable[[Sequence[str]], Floats], prompts: Mapping[str, Sequence[str]]) -> Floats:
    """One unit row for each class: the mean of the unit rows of its prompts, made unit.

    Args:
        embed: texts to unit rows, as `TextTower.embed`.
        prompts: for each class its prompts, one or many.

    Returns:
        float32 ``[P, D]``, in the order of ``prompts``.

    Raises:
        InputError: there is no class, a class has no prompt or a blank one, two classes have the same prompts, or the
            prompts of a class point in all directions, so that they have no mean direction.
    """
    if not prompts:
        raise InputError("there are no classes; give each class its prompts")
    seen: dict[frozenset[str], str] = {}
    texts: list[str] = []
    for name, own in prompts.items():
        given = check_texts(own, f"the prompts of {name!r}")
        if not given:
            raise InputError(f"the class {name!r} has no prompts; give at least one")
        same = seen.setdefault(frozenset(" ".join(text.lower().split()) for text in given), name)
        if same != name:
            raise InputError(f"the classes {same!r} and {name!r} have the same prompts, so nothing tells them apart")
        texts += given
    z = np.asarray(embed(texts), dtype=np.float64)
    means, start = np.empty((len(prompts), z.shape[1])), 0
    for number, own in enumerate(prompts.values()):
        means[number] = z[start : start + len(own)].mean(axis=0)
        start += len(own)
    lengths = np.linalg.norm(means, axis=1)
    if lengths.min() < 1e-6:
        name = list(prompts)[int(lengths.argmin())]
        raise InputError(f"the prompts of {name!r} have no mean direction: they point in all; give others")
    return (means / lengths[:, None]).astype(np.float32)


def zero_shot(z: Any, vectors: Floats, temperature: float = 0.01) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The class of every image, and how likely each class is.

    Args:
        z: unit rows of images ``[N, D]``.
        vectors: those of classes ``[P, D]``.
        temperature: what similarities are divided by; that of the loss that the towers learned with, so that the
            probabilities are its own.

    Returns:
        The place of the class of the greatest similarity int64 ``[N]`` (the first of equal ones), and probabilities
        float64 ``[N, P]``, the softmax over classes.

    Raises:
        InputError: widths differ, values are not finite, or the temperature is not a positive number.
    """
    rows, classes = np.asarray(z), np.asarray(vectors)
    if rows.ndim != 2 or classes.ndim != 2 or rows.shape[1] != classes.shape[1] or not len(classes):
        raise InputError(f"z has shape {list(rows.shape)}, vectors {list(classes.shape)}; expected [N, D] and [P, D] of one D")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise InputError(f"temperature is {temperature!r}; expected a positive number, 0.01 to 0.1 is usual")
    if not (np.isfinite(rows).all() and np.isfinite(classes).all()):
        raise InputError("z or vectors have NaN or infinity; embed them again")
    scores = rows.astype(np.float64) @ classes.astype(np.float64).T
    labels: npt.NDArray[np.int64] = scores.argmax(axis=1).astype(np.int64)
    powers = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
    return labels, powers / powers.sum(axis=1, keepdims=True)
