"""Which columns matter: what shuffling one does to the loss and to the gate."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from plait.inspection.losses import losses


class Importance(NamedTuple):
    """What shuffling each column changes.

    Attributes:
        loss: Rise of the mean loss, `(n,)`.
        gate: Mean share of the weight that moves to other experts, `(n,)`.
    """

    loss: np.ndarray
    gate: np.ndarray


def permutation_importance(
    predict: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    x: np.ndarray,
    y: np.ndarray,
    task: str,
    columns: Sequence[Sequence[int]],
    seed: int = 0,
) -> Importance:
    """Returns how much worse predictions get, and how far the gate moves, without each column.

    A column is shuffled among the rows, which keeps its distribution and breaks what it says of
    them (Breiman 2001).

    Args:
        predict: Takes a matrix `(b, c)` and returns predictions `(b, u)` and weights `(b, e)`.
        x: The matrix.
        y: Class codes `(b,)`, or values `(b,)`.
        task: `"classification"` or `"regression"`.
        columns: For each column of the table its places in the matrix.
        seed: Of the shuffling.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import permutation_importance
    >>> x = np.arange(8.0).reshape(4, 2)
    >>> predict = lambda x: (x[:, :1], np.ones((len(x), 1)))
    >>> found = permutation_importance(predict, x, x[:, 0], "regression", [[0], [1]])
    >>> bool(found.loss[0] > 0), float(found.loss[1])
    (True, 0.0)
    """
    rng = np.random.default_rng(seed)
    predictions, weights = predict(x)
    before = losses(predictions, y, task).mean()
    rise, moved = np.zeros(len(columns)), np.zeros(len(columns))
    for i, places in enumerate(columns):
        shuffled = x.copy()
        shuffled[:, places] = x[rng.permutation(len(x))][:, places]
        found, gate = predict(shuffled)
        rise[i] = losses(found, y, task).mean() - before
        moved[i] = np.abs(gate - weights).sum(axis=1).mean() / 2.0
    return Importance(rise, moved)


__all__ = ["Importance", "permutation_importance"]
