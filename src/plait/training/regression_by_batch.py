"""Regressions on rows that come in chunks: sums over chunks, in float64."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import numpy as np

from plait.training import regression
from plait.training.regression import Array

# What is to rise `(…)`, its gradient and its matrix, summed over the rows of a chunk.
Sums: TypeAlias = tuple[Array, Array, Array]


class LeastSquares:
    """Sufficient statistics of a weighted least squares fit: the triangle of a QR decomposition.

    `R` of `√w [X, Y] = Q R` has the products of all rows, `RᵀR`, at their full accuracy; the
    products themselves would square the condition number.

    Args:
        features: `d`.
        units: `u`.

    Example:
    >>> import numpy as np
    >>> from plait.training.regression_by_batch import LeastSquares
    >>> fit = LeastSquares(1, 1)
    >>> fit.add(np.array([[1.0], [2.0]]), np.array([[2.0, 4.0]]), np.ones(2))
    >>> fit.add(np.array([[9.0]]), np.array([[0.0]]), np.zeros(1))
    >>> float(fit.coefficients()[0, 0].round(6))
    2.0
    """

    def __init__(self, features: int, units: int) -> None:
        self.features = features
        self.triangle = np.zeros((features + units, features + units))
        self.weight = 0.0

    def add(self, design: Array, target: Array, weights: Array) -> None:
        """Adds rows: design `(n, d)`, target `(u, n)` and weights `(n,)`."""
        rows = np.sqrt(weights)[:, None] * np.concatenate([design, target.T], axis=1)
        stacked = np.concatenate([self.triangle, rows])
        self.triangle = np.asarray(np.linalg.qr(stacked, mode="r"))
        self.weight += float(weights.sum())

    def coefficients(self) -> Array:
        """Returns the minimum `(u, d)` of `Σ_n w_n ‖y_n − B x_n‖²`, the smallest of many."""
        top = self.triangle[: self.features]
        return np.linalg.lstsq(top[:, : self.features], top[:, self.features :], rcond=None)[0].T

    def mean_square(self, coefficients: Array) -> float:
        """Returns the weighted mean square of the residuals, over rows and units."""
        design, target = np.split(self.triangle, [self.features], axis=1)
        residuals = target - design @ coefficients.T
        return float((residuals**2).sum()) / (self.weight * target.shape[1])


class _Total(NamedTuple):
    """Sums over all rows."""

    value: Array
    gradient: Array
    matrix: Array


def climb(
    point: Array,
    passes: Callable[[Array], Iterable[Sums]],
    step: Callable[[Array, Array], Array],
    steps: int,
) -> Array:
    """Returns the coefficients that `regression.climb` reaches; each point costs a pass.

    Args:
        point: The coefficients `(…, u, d)`.
        passes: Goes over all rows at given coefficients, chunk by chunk.
        step: Returns the Newton step from gradient and matrix.
        steps: How many at most.
    """

    def evaluate(point: Array) -> _Total:
        total: list[Array] = []
        for chunk in passes(point):
            total = [a + b for a, b in zip(total, chunk, strict=True)] if total else list(chunk)
        return _Total(*total)

    return regression.climb(
        point,
        evaluate(point),
        evaluate=evaluate,
        value=lambda total: total.value,
        direction=lambda total: step(total.gradient, total.matrix),
        steps=steps,
    )[0]


__all__ = ["LeastSquares", "Sums", "climb"]
