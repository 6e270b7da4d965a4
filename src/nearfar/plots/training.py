"""How training went: loss by epoch, and the learning rate below it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from nearfar.errors import InputError
from nearfar.plots import style
from nearfar.plots.check import check_length, check_numbers
from nearfar.plots.plot import Plot, finish

_LOG_FROM = 20.0  # times the smallest loss; from here on a linear axis would flatten all but the start


def loss_by_epoch(
    training: ArrayLike,
    validation: ArrayLike | None = None,
    learning_rate: ArrayLike | None = None,
    *,
    epochs: ArrayLike | None = None,
    name: str = "loss",
) -> Plot:
    """Training and validation loss by epoch, with the learning rate below.

    Args:
        training: mean training loss of each epoch [E].
        validation: validation loss after each epoch [E]; NaN or None where it was not measured.
        learning_rate: of each epoch [E]; None leaves the lower panel out.
        epochs: where each value stands on the axis [E]; 1, 2, ..., E by default.
        name: the plot's file name.

    Raises:
        InputError: the lengths differ, or a value is infinite.
    """
    losses = {"training": check_numbers("training", training, "[E]", missing=True)}
    count = len(losses["training"])
    if validation is not None:
        losses["validation"] = check_numbers("validation", validation, "[E]", missing=True)
        check_length("validation", losses["validation"], count, "training")
    rates = None
    if learning_rate is not None:
        rates = check_numbers("learning_rate", learning_rate, "[E]")
        check_length("learning_rate", rates, count, "training")
        if (rates < 0).any():
            raise InputError(f"learning_rate holds {rates.min():g}, expected 0 or more")
    steps = np.arange(1.0, count + 1) if epochs is None else check_numbers("epochs", epochs, "[E]")
    check_length("epochs", steps, count, "training")
    if (np.diff(steps) <= 0).any():
        raise InputError(f"epochs falls from {steps[:-1][np.diff(steps) <= 0][0]:g} on, expected rising numbers")
    known = np.concatenate([values[~np.isnan(values)] for values in losses.values()])
    if not len(known):
        raise InputError("training and validation hold no value, expected at least one loss")
    ratio = float(known.max() / known.min()) if known.min() > 0 else 0.0
    logarithmic = ratio >= _LOG_FROM
    with style.plot_style():
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

        figure = style.new_figure(style.WIDTH, 4.2 if rates is not None else 3.2)
        panels = figure.subplots(
            1 if rates is None else 2,
            1,
            sharex=True,
            squeeze=False,
            gridspec_kw=None if rates is None else {"height_ratios": [2.6, 1]},
        )[:, 0]
        marker = "o" if count <= 40 else ""
        looks = {"training": ("#0173B2", "-", marker), "validation": ("#D55E00", "--", "s" if marker else "")}
        for which, values in losses.items():
            there = ~np.isnan(values)
            color, dash, mark = looks[which]
            panels[0].plot(steps[there], values[there], color=color, ls=dash, marker=mark, ms=3.5, label=which)
        panels[0].set_ylabel("loss (logarithmic)" if logarithmic else "loss")
        panels[0].legend(loc="best")
        panels[0].grid(True)
        if logarithmic:
            panels[0].set_yscale("log")
            panels[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 1e4 else (1.0,)))
            panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panels[0].yaxis.set_minor_locator(NullLocator())
        else:
            panels[0].set_ylim(min(0.0, 1.06 * float(known.min())), 1.06 * max(float(known.max()), 0.0) or 1.0)
        if rates is not None:
            panels[1].plot(steps, rates, color=style.INK, drawstyle="steps-mid", lw=1.2, marker="." if count == 1 else "")
            panels[1].set_ylabel("learning rate")
            panels[1].set_ylim(0, 1.12 * float(rates.max()) or 1.0)
            panels[1].yaxis.set_major_locator(MaxNLocator(4))
            panels[1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
            panels[1].grid(True)
        panels[-1].set_xlabel("epoch")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        room = 0.02 * float(steps[-1] - steps[0]) + 0.3
        panels[-1].set_xlim(steps[0] - room, steps[-1] + room)
        caption = (
            "Both losses should fall and level off; a validation loss that rises while the training loss falls on "
            "means overfitting"
            if validation is not None
            else "The training loss should fall and level off"
        )
        if rates is not None:
            caption += "; the learning rate is below"
        ends = []
        for which, values in losses.items():
            seen = values[~np.isnan(values)]
            if len(seen):
                ends.append(f"{which} loss from {seen[0]:.4g} to {seen[-1]:.4g}")
        return finish(
            name, figure, caption + ".", f"Loss over {count:,} {'epochs' if count > 1 else 'epoch'}: {', '.join(ends)}."
        )
