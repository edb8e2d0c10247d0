"""What a prediction is worth."""

import numpy as np

from plait.inspection import score


def measure(predictions: np.ndarray, y: np.ndarray, task: str, scale: float) -> float:
    """Returns the share of wrong classes, or the root mean squared error times `scale`.

    Args:
        predictions: Probabilities or values `(b, u)`.
        y: Class codes or values `(b,)`.
        task: `"classification"` or `"regression"`.
        scale: See `Split.scale`.
    """
    found = score("", predictions, y, task)
    return 1.0 - found.accuracy if found.rmse is None else scale * found.rmse


def merit(predictions: np.ndarray, y: np.ndarray, task: str) -> tuple[float, float]:
    """Returns what tuning minimises: the measure, among equals the loss."""
    return measure(predictions, y, task, 1.0), score("", predictions, y, task).loss


def row_errors(predictions: np.ndarray, y: np.ndarray, task: str) -> np.ndarray:
    """Returns for each row what `measure` averages: wrong or not, or the squared error.

    Args:
        predictions: Probabilities or values `(b, u)`.
        y: Class codes or values `(b,)`.
        task: `"classification"` or `"regression"`.
    """
    if task == "classification":
        return (predictions.argmax(axis=1) != y).astype("float64")
    return (predictions[:, 0].astype("float64") - y) ** 2
