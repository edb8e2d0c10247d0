"""One function per picture; each returns a Matplotlib figure and touches no global state."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.errors import message
from plait.inspection import Along, Confusion, Score, Usage

_WIDTH = 4.3  # inches: about 310 points, so that a phone shows the letters at their own size
_MOST_NUMBERS = 150  # cells of a heat map that still leave room for figures inside


def plot_scores(rows: Sequence[Score]) -> Any:
    """Returns bars of accuracy, or of the root mean squared error, one per row of the table.

    Args:
        rows: From `plait.inspection.scores`.

    Example:
    >>> import plait.plots
    >>> from plait.inspection import Score
    >>> figure = plait.plots.plot_scores([Score("mixture", 0.5, accuracy=0.9)])
    >>> figure.axes[0].get_xlabel()
    'accuracy'
    """
    classified = rows[0].accuracy is not None
    values = [row.accuracy if classified else row.rmse for row in rows]
    figure, axes = new_figure(0.9 + 0.3 * len(rows))
    colors = ["C0" if row.name == "mixture" else "#9aa5b1" for row in rows]
    bars = axes.barh([row.name for row in rows], values, color=colors)
    axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("accuracy" if classified else "root mean squared error (less is better)")
    return figure


def plot_usage(use: Usage, names: Sequence[str]) -> Any:
    """Returns bars of each expert's mean weight, and of how often it has the largest.

    Args:
        use: From `plait.inspection.usage`.
        names: One name per expert.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> use = plait.inspection.usage(np.array([[1.0, 0.0], [0.5, 0.5]]))
    >>> plait.plots.plot_usage(use, ["left", "right"]).axes[0].get_xlabel()
    'share of the examples'
    """
    figure, axes = new_figure(1.0 + 0.36 * len(names))
    place = np.arange(len(names))
    axes.barh(place - 0.2, use.share, 0.38, label="mean weight")
    axes.barh(place + 0.2, use.first, 0.38, label="has the largest weight", color="#9aa5b1")
    axes.set_yticks(place, names)
    axes.invert_yaxis()
    axes.set_xlabel("share of the examples")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def plot_entropy(use: Usage) -> Any:
    """Returns the histogram of the gate's entropy, from 0 (one expert) to 1 (all alike).

    Args:
        use: From `plait.inspection.usage`.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> use = plait.inspection.usage(np.array([[1.0, 0.0], [0.5, 0.5]]))
    >>> plait.plots.plot_entropy(use).axes[0].get_ylabel()
    'examples'
    """
    figure, axes = new_figure(2.4)
    axes.hist(use.entropy, bins=np.linspace(0.0, 1.0, 26))
    axes.set_xlim(0.0, 1.0)
    axes.set_xlabel("entropy of the weights / log(experts)")
    axes.set_ylabel("examples")
    return figure


def plot_weights_per_class(
    weights: np.ndarray, names: Sequence[str], classes: Sequence[object]
) -> Any:
    """Returns a heat map of the mean weights of each class.

    Args:
        weights: From `plait.inspection.weights_per_class`, `(k, e)`.
        names: One name per expert.
        classes: One name per class.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> figure = plait.plots.plot_weights_per_class(np.eye(2), ["left", "right"], ["no", "yes"])
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['left', 'right']
    """
    most = float(np.nanmax(weights, initial=0.1))
    return heat_map(weights, classes, names, "mean weight", most)


def plot_weights_along(along: Along, names: Sequence[str], target: str) -> Any:
    """Returns the mean weights, stacked, along a continuous target.

    Args:
        along: From `plait.inspection.weights_along`.
        names: One name per expert.
        target: What the target is called.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> along = plait.inspection.weights_along(np.eye(2), np.array([1.0, 2.0]), bins=2)
    >>> plait.plots.plot_weights_along(along, ["left", "right"], "age").axes[0].get_xlabel()
    'age'
    """
    figure, axes = new_figure(3.0)
    axes.stackplot(
        np.repeat(along.edges, 2)[1:-1],
        np.repeat(along.weights, 2, axis=0).T,
        labels=names,
        colors=_colors(len(names)),
    )
    axes.set_xlabel(target)
    axes.set_ylabel("mean weight")
    axes.margins(0.0)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def plot_confusion(confusion: Confusion, names: Sequence[str], classes: Sequence[object]) -> Any:
    """Returns a heat map of each expert's own accuracy in each class.

    Args:
        confusion: From `plait.inspection.expert_confusion`.
        names: One name per expert.
        classes: One name per class.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> found = plait.inspection.Confusion(np.eye(2), np.eye(2))
    >>> figure = plait.plots.plot_confusion(found, ["left", "right"], ["no", "yes"])
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['no', 'yes']
    """
    return heat_map(confusion.accuracy.T, classes, names, "the expert's own accuracy", 1.0)


def heat_map(
    values: np.ndarray, rows: Sequence[object], columns: Sequence[object], label: str, most: float
) -> Any:
    """Returns a heat map with its colour bar, and figures in the cells where they fit."""
    figure, axes = new_figure(1.2 + 0.26 * len(rows))
    image = axes.imshow(values, aspect="auto", cmap="Blues", vmin=0.0, vmax=most)
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns])
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
    if len(columns) > 6 or max(len(_short(name)) for name in columns) > 8:
        axes.tick_params(axis="x", rotation=40)
        for tick in axes.get_xticklabels():
            tick.set_ha("right")
    if values.size <= _MOST_NUMBERS:
        size = min(8.0, 75.0 / len(columns))
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "white" if value > 0.6 * most else "black"
                text = f"{value:.2f}".removeprefix("0") if value < 1 else "1"
                axes.text(j, i, text, ha="center", va="center", color=color, fontsize=size)
    figure.colorbar(image, ax=axes, label=label)
    return figure


def new_figure(height: float) -> tuple[Any, Any]:
    """Returns a figure of the page's width, and its axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            message("Plots need Matplotlib", "no such package", "pip install plait[plots]")
        ) from error
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _colors(count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"](np.arange(count) % 20)


def _short(name: object, limit: int = 16) -> str:
    text = str(name)
    return text if len(text) <= limit else text[: limit - 1] + "…"


__all__ = [
    "heat_map",
    "new_figure",
    "plot_confusion",
    "plot_entropy",
    "plot_scores",
    "plot_usage",
    "plot_weights_along",
    "plot_weights_per_class",
]
