"""Pictures of a model on a table: what drives it, how sure it is, how it learned."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.inspection import Calibration, Importance
from plait.plots.figures import heat_map, new_figure

_MOST_COLUMNS = 15


def plot_importance(found: Importance, names: Sequence[str], unit: str) -> Any:
    """Returns bars of what shuffling each column does, the strongest first.

    Args:
        found: From `plait.inspection.permutation_importance`.
        names: One name per column.
        unit: What the loss is.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> found = plait.inspection.Importance(np.array([0.1, 0.9]), np.array([0.0, 0.5]))
    >>> figure = plait.plots.plot_importance(found, ["height", "weight"], "log loss")
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['weight', 'height']
    """
    order = np.argsort(-found.loss, kind="stable")[:_MOST_COLUMNS]
    figure, axes = new_figure(1.0 + 0.3 * len(order))
    place = np.arange(len(order))
    scale = max(float(np.abs(found.loss).max()), 1e-12)
    axes.barh(
        place - 0.2, found.loss[order] / scale, 0.38, label=f"rise of the {unit} (1 = {scale:.3g})"
    )
    if found.gate.any():
        axes.barh(place + 0.2, found.gate[order], 0.38, label="weight that moves", color="#9aa5b1")
    axes.set_yticks(place, [names[i][:18] for i in order])
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=1, frameon=False)
    return figure


def plot_calibration(found: Calibration) -> Any:
    """Returns accuracy over confidence, and the line on which they are equal.

    Args:
        found: From `plait.inspection.calibration`.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> found = plait.inspection.calibration(np.array([[0.75, 0.25]]), np.array([0]), bins=1)
    >>> plait.plots.plot_calibration(found).axes[0].get_ylabel()
    'share that is right'
    """
    figure, axes = new_figure(3.0)
    axes.plot([0, 1], [0, 1], color="#9aa5b1", linestyle="--")
    axes.plot(found.confidence, found.accuracy, marker="o")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("confidence: mean largest probability")
    axes.set_ylabel("share that is right")
    return figure


def plot_curve(losses: Sequence[float]) -> Any:
    """Returns the training loss of each epoch.

    Args:
        losses: One number per epoch.

    Example:
    >>> import plait
    >>> plait.plots.plot_curve([0.9, 0.5, 0.4]).axes[0].get_xlabel()
    'epoch'
    """
    figure, axes = new_figure(2.4)
    axes.plot(np.arange(1, len(losses) + 1), losses)
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    return figure


def plot_class_confusion(shares: np.ndarray, classes: Sequence[object]) -> Any:
    """Returns a heat map of predicted classes, in shares of each true class.

    Args:
        shares: Shares `(k, k)`, a row for each true class.
        classes: One name per class.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> figure = plait.plots.plot_class_confusion(np.eye(2), ["no", "yes"])
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['no', 'yes']
    """
    return heat_map(shares, classes, classes, "share of the true class", 1.0)


__all__ = ["plot_calibration", "plot_class_confusion", "plot_curve", "plot_importance"]
