"""What a report says, gathered before anything is drawn."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from plait.inspection import (
    Importance,
    Interval,
    Reference,
    Score,
    Usage,
    bootstrap,
    losses,
    permutation_importance,
    scores,
    usage,
)
from plait.tables import Schema, TableModel

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Facts:
    """Everything a mixture did on one table.

    Attributes:
        schema: What columns and outputs mean.
        names: What to call each expert.
        predictions: The mixture's outputs `(b, u)`.
        weights: Mixing weights `(b, e)`.
        outputs: Experts' outputs `(b, e, u)`.
        y: Class codes `(b,)`, or values `(b,)`.
        losses: Loss of each example `(b,)`.
        scores: The honest table.
        usage: How the experts are used.
        frame: The table itself.
        importance: What shuffling each column of the table changes, if it was asked.
        intervals: The first score's measures with their intervals over the rows, by name.
    """

    schema: Schema
    names: tuple[str, ...]
    predictions: np.ndarray
    weights: np.ndarray
    outputs: np.ndarray
    y: np.ndarray
    losses: np.ndarray
    scores: list[Score]
    usage: Usage
    frame: "pd.DataFrame"
    importance: Importance | None = None
    intervals: dict[str, Interval] = dataclasses.field(default_factory=dict)


_MOST_ROWS = 1000  # to shuffle
_MOST_SHUFFLED = 60  # columns


def gather(
    model: TableModel, x: np.ndarray, y: np.ndarray, frame: "pd.DataFrame", batch_size: int = 1024
) -> Facts:
    """Runs the model once over a table and gathers what can be said about it.

    Args:
        model: A model whose schema holds its baseline.
        x: Raw matrix `(b, c)`.
        y: Class codes `(b,)`, or values `(b,)`.
        frame: The table that `x` and `y` were read from.
        batch_size: Rows per step.
    """
    schema = model.schema
    baseline = schema.baseline
    assert baseline is not None  # `plait fit` and `plait blend` write it; nothing else gets here
    predictions = model.model.predict(x, batch_size=batch_size, verbose=0)
    weights = _weights(model, x)
    outputs = model.expert_outputs(x)
    reference = Reference(baseline.expert, np.asarray(baseline.weights))
    chosen = (schema.record or {}).get("chosen", "mixture")
    name = {"network": "one network", "average": "networks averaged"}.get(chosen, "mixture")
    table = scores(predictions, outputs, y, schema.task, reference, list(baseline.names), name)
    if len(baseline.names) == 1:
        table = table[:1]  # the others are the same network
    each = losses(predictions, y, schema.task)
    return Facts(
        schema,
        baseline.names,
        predictions,
        weights,
        outputs,
        y,
        each,
        table,
        usage(weights),
        frame,
        _importance(model, x[:_MOST_ROWS], y[:_MOST_ROWS]),
        _intervals(predictions, y, each, schema.task),
    )


def _weights(model: TableModel, x: np.ndarray) -> np.ndarray:
    """Returns the weight of each expert on each row, `(b, e)`: of weights per class the mean."""
    weights = model.mixture.gate_weights(model.features(x))
    return weights.mean(axis=1) if weights.ndim == 3 else weights


def _importance(model: TableModel, x: np.ndarray, y: np.ndarray) -> Importance | None:
    schema = model.schema
    if len(schema.names) > _MOST_SHUFFLED:
        return None
    places = [
        [i for i, column in enumerate(schema.columns) if column.table_name == name]
        for name in schema.names
    ]

    def predict(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = model.model.predict(rows, batch_size=_MOST_ROWS, verbose=0)
        return found, _weights(model, rows)

    return permutation_importance(predict, x, y, schema.task, places)


def _intervals(
    predictions: np.ndarray, y: np.ndarray, each: np.ndarray, task: str
) -> dict[str, Interval]:
    if task == "regression":
        return {"RMSE": bootstrap(each, root=True)}
    right = (np.argmax(predictions, axis=1) == y).astype("float64")
    return {"log loss": bootstrap(each), "accuracy": bootstrap(right)}


__all__ = ["Facts", "gather"]
