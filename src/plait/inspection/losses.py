"""Losses per example, in NumPy float64: what every number about a mixture is counted in."""

import numpy as np

from plait.errors import choose_from

TASKS = ("classification", "regression")
TINY = 1e-12  # below this a probability counts as this, so that one certain mistake stays finite


def losses(predictions: np.ndarray, y: np.ndarray, task: str) -> np.ndarray:
    """Returns the loss of each example: `-log p[y]`, or the squared error.

    Args:
        predictions: Probabilities `(b, …, u)`, or values `(b, …, 1)`; `…` may be the experts.
        y: Class codes `(b,)`, or values `(b,)`.
        task: `"classification"` or `"regression"`.

    Returns:
        Array `(b, …)`.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import losses
    >>> losses(np.array([[2.0], [5.0]]), np.array([1.0, 5.0]), "regression").tolist()
    [1.0, 0.0]
    """
    if task not in TASKS:
        raise ValueError(choose_from("task", task, TASKS))
    predictions = np.asarray(predictions, "float64")
    if task == "classification":
        return -np.log(np.maximum(predictions[np.arange(len(y)), ..., y], TINY))
    truth = np.asarray(y, "float64").reshape((-1,) + (1,) * (predictions.ndim - 2))
    return (predictions[..., 0] - truth) ** 2


__all__ = ["TASKS", "TINY", "losses"]
