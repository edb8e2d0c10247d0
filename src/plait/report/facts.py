"""What a report says, gathered before anything is drawn."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from plait.inspection import Reference, Score, Usage, losses, scores, usage
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
    weights = model.mixture.gate_weights(model.features(x))
    outputs = model.expert_outputs(x)
    reference = Reference(baseline.expert, np.asarray(baseline.weights))
    table = scores(predictions, outputs, y, schema.task, reference, list(baseline.names))
    return Facts(
        schema,
        baseline.names,
        predictions,
        weights,
        outputs,
        y,
        losses(predictions, y, schema.task),
        table,
        usage(weights),
        frame,
    )


__all__ = ["Facts", "gather"]
