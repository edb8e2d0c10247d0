"""Calibration: whether probabilities of 80 % are right 80 % of the time."""

from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
    """Confidence beside accuracy, in bins of equally many rows.

    Attributes:
        confidence: Mean largest probability of each bin, `(n,)`.
        accuracy: Share of right classes in each bin, `(n,)`.
        error: Expected calibration error: the mean gap between the two.
        excess: Mean confidence less mean accuracy: above zero is overconfident.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    error: float
    excess: float


def calibration(predictions: np.ndarray, y: np.ndarray, bins: int = 10) -> Calibration:
    """Returns how well confidence meets accuracy (Guo et al. 2017).

    Args:
        predictions: Probabilities `(b, u)`.
        y: Class codes `(b,)`.
        bins: How many bins; fewer where there are fewer rows.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import calibration
    >>> predictions = np.array([[0.75, 0.25], [0.75, 0.25]])
    >>> calibration(predictions, np.array([0, 1]), bins=1).excess
    0.25
    """
    confidence = np.asarray(predictions, "float64").max(axis=1)
    right = (np.argmax(predictions, axis=1) == y).astype("float64")
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    mean = np.array([confidence[part].mean() for part in parts])
    share = np.array([right[part].mean() for part in parts])
    sizes = np.array([len(part) for part in parts]) / len(y)
    gap = float((np.abs(mean - share) * sizes).sum())
    return Calibration(mean, share, gap, float(confidence.mean() - right.mean()))


__all__ = ["Calibration", "calibration"]
