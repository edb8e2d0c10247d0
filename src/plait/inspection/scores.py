"""The honest score table: a mixture beside what it has to beat."""

from typing import Any, NamedTuple

import numpy as np

from plait.inspection.constant import best_constant_weights
from plait.inspection.losses import losses


class Score(NamedTuple):
    """One row of the table.

    Attributes:
        name: Who predicted.
        loss: Mean of `-log p[y]` for classification, mean squared error for regression.
        accuracy: Share of right classes; `None` for regression.
        rmse: Root mean squared error; `None` for classification.
        r2: Coefficient of determination; `None` for classification.
    """

    name: str
    loss: float
    accuracy: float | None = None
    rmse: float | None = None
    r2: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the row without what does not apply."""
        return {key: value for key, value in self._asdict().items() if value is not None}


class Reference(NamedTuple):
    """What was chosen on the training data.

    Attributes:
        expert: Position of the best single expert.
        weights: The best constant weights, `(e,)`.
    """

    expert: int
    weights: np.ndarray


def choose(outputs: np.ndarray, y: np.ndarray, task: str) -> Reference:
    """Chooses the best single expert and the best constant weights, on training data.

    Args:
        outputs: Experts' outputs `(b, e, u)`.
        y: Class codes `(b,)`, or values `(b,)`.
        task: `"classification"` or `"regression"`.

    Returns:
        `Reference`.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import choose
    >>> outputs = np.array([[[0.0], [4.0]], [[0.0], [8.0]]])
    >>> choose(outputs, np.array([1.0, 2.0]), "regression").expert
    0
    """
    expert = int(np.argmin(losses(outputs, y, task).mean(axis=0)))
    return Reference(expert, best_constant_weights(outputs, y, task))


def score(name: str, predictions: np.ndarray, y: np.ndarray, task: str) -> Score:
    """Returns one row: how well predictions meet the truth.

    Args:
        name: Who predicted.
        predictions: Probabilities or values `(b, u)`.
        y: Class codes `(b,)`, or values `(b,)`.
        task: `"classification"` or `"regression"`.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import score
    >>> score("coin", np.full((4, 2), 0.5), np.array([0, 0, 0, 1]), "classification").accuracy
    0.75
    """
    loss = float(losses(predictions, y, task).mean())
    if task == "classification":
        return Score(name, loss, accuracy=float((np.argmax(predictions, axis=-1) == y).mean()))
    variance = float(np.var(y))
    r2 = 1.0 - loss / variance if variance > 0 else float("nan")
    return Score(name, loss, rmse=loss**0.5, r2=r2)


def scores(
    predictions: np.ndarray,
    outputs: np.ndarray,
    y: np.ndarray,
    task: str,
    reference: Reference,
    names: list[str] | None = None,
    name: str = "mixture",
) -> list[Score]:
    """Returns the table: mixture, best single expert, uniform average, constant weights, oracle.

    Nothing is chosen on the data it is measured on, but for the oracle, which takes for each
    example the expert with the lowest loss: no gate over these experts can do better than that
    with one expert at a time.

    Args:
        predictions: The mixture's outputs `(b, u)`.
        outputs: Its experts' outputs `(b, e, u)` on the same rows.
        y: Class codes `(b,)`, or values `(b,)`.
        task: `"classification"` or `"regression"`.
        reference: What `choose` found on the training data.
        names: What to call each expert; numbers by default.
        name: What to call the mixture itself.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import Reference, scores
    >>> outputs = np.array([[[0.9, 0.1], [0.6, 0.4]], [[0.8, 0.2], [0.3, 0.7]]])
    >>> reference = Reference(0, np.array([0.5, 0.5]))
    >>> table = scores(outputs[:, 1], outputs, np.array([0, 1]), "classification", reference)
    >>> [(row.name, row.accuracy) for row in table][:2]
    [('mixture', 1.0), ('best single expert (0)', 0.5)]
    """
    outputs = np.asarray(outputs, "float64")
    best = np.argmin(losses(outputs, y, task), axis=1)
    label = names[reference.expert] if names else str(reference.expert)
    rows = [
        (name, np.asarray(predictions, "float64")),
        (f"best single expert ({label})", outputs[:, reference.expert]),
        ("uniform average", outputs.mean(axis=1)),
        ("best constant weights", np.einsum("e,beu->bu", reference.weights, outputs)),
        ("oracle", outputs[np.arange(len(y)), best]),
    ]
    return [score(title, values, y, task) for title, values in rows]


__all__ = ["Reference", "Score", "choose", "score", "scores"]
