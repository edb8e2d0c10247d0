"""Training on arrays in memory: few rows cost little beyond their gradient steps."""

import math
from typing import NamedTuple

import keras
import numpy as np

# Inputs by position, each of `n` rows.
Arrays = list[np.ndarray]
# Every prediction is computed in batches of one size, so that a model is compiled once for it, and
# so that a row's prediction does not depend on the rows beside it.
_ROWS = 512


class Rows(NamedTuple):
    """Rows to train on or to validate with: inputs, target and weights `(n,)` or `None`."""

    inputs: Arrays
    target: np.ndarray
    weights: np.ndarray | None

    def take(self, rows: np.ndarray) -> "Rows":
        """Returns the rows at the given positions."""
        weights = None if self.weights is None else self.weights[rows]
        return Rows([each[rows] for each in self.inputs], self.target[rows], weights)


class Curve(NamedTuple):
    """The loss of each epoch, on the training rows and, where there are some, on held-out rows."""

    training: list[float]
    validation: list[float]


def train(
    model: keras.Model,
    rows: Rows,
    held_out: Rows | None,
    generator: np.random.RandomState,
    *,
    batch_size: int,
    epochs: int,
    patience: int,
    tol: float,
) -> Curve:
    """Trains until `patience` epochs in a row have not lowered the loss by `tol`.

    Batches have one size, so that a step is compiled once: the rows are divided evenly, and at
    most one row per batch is read twice in an epoch. Weights are scaled to a mean of one, so that
    the learning rate keeps its meaning.

    Args:
        model: A compiled model with one loss and no metrics.
        rows: The training rows.
        held_out: Rows whose loss decides, and whose best weights are kept; `None` for the training
            loss and the last weights.
        generator: Draws the order of the rows.
        batch_size: Rows of one step at most.
        epochs: Passes over the rows at most.
        patience: Epochs without a gain after which training stops.
        tol: The least gain.
    """
    rows = _scaled(rows)
    count = len(rows.target)
    steps = math.ceil(count / batch_size)
    size = math.ceil(count / steps)
    curve = Curve([], [])
    best, kept, idle = math.inf, None, 0
    for _ in range(epochs):
        order = generator.permutation(count) if steps > 1 else np.arange(count)
        order = np.resize(order, steps * size)
        model.reset_metrics()
        for step in range(steps):
            part = rows.take(order[step * size : (step + 1) * size]) if steps > 1 else rows
            loss = model.train_on_batch(_fed(part.inputs), part.target, part.weights)
        curve.training.append(_number(loss))
        if held_out is not None:
            model.reset_metrics()
            loss = model.test_on_batch(_fed(held_out.inputs), held_out.target, held_out.weights)
            curve.validation.append(_number(loss))
        reached = _number(loss)
        idle = 0 if reached < best - tol else idle + 1
        if reached < best:
            best = reached
            kept = None if held_out is None else model.get_weights()
        if idle >= patience:
            break
    if kept is not None:
        model.set_weights([np.array(value) for value in kept])
    return curve


def outputs_of(model: keras.Model, inputs: Arrays) -> np.ndarray:
    """Returns the model's output for every row, in float64."""
    count = len(inputs[0])
    found = []
    for start in range(0, count, _ROWS):
        rows = np.minimum(np.arange(start, start + _ROWS), count - 1)
        found.append(np.asarray(model.predict_on_batch(_fed([each[rows] for each in inputs]))))
    return np.concatenate(found)[:count].astype("float64")


def _fed(inputs: Arrays) -> Arrays | np.ndarray:
    return inputs[0] if len(inputs) == 1 else inputs


def _number(loss: object) -> float:
    return float(np.asarray(loss[0] if isinstance(loss, (list, tuple)) else loss))


def _scaled(rows: Rows) -> Rows:
    if rows.weights is None:
        return rows
    return rows._replace(weights=(rows.weights / rows.weights.mean()).astype("float32"))
