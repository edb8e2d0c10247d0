"""Plots: pictures of the numbers in `plait.inspection` (needs `plait[plots]`)."""

from plait.plots.figures import (
    plot_confusion,
    plot_entropy,
    plot_scores,
    plot_usage,
    plot_weights_along,
    plot_weights_per_class,
)
from plait.plots.svg import to_svg
from plait.plots.tables import (
    plot_calibration,
    plot_class_confusion,
    plot_curve,
    plot_importance,
)

__all__ = [
    "plot_calibration",
    "plot_class_confusion",
    "plot_confusion",
    "plot_curve",
    "plot_entropy",
    "plot_importance",
    "plot_scores",
    "plot_usage",
    "plot_weights_along",
    "plot_weights_per_class",
    "to_svg",
]
