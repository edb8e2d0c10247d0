"""Weighted regressions to convergence, in NumPy float64: M-steps of linear experts and gates."""

from collections.abc import Callable
from functools import partial

import numpy as np

Array = np.ndarray
# A Newton step that does not raise the likelihood is halved this many times, then given up.
_HALVINGS = 30


def with_intercept(x: Array, intercept: bool = True) -> Array:
    """Returns the design matrix `(n, d + 1)`: the features, then a one."""
    x = np.asarray(x, "float64").reshape(len(x), -1)
    return np.concatenate([x, np.ones((len(x), 1))], axis=1) if intercept else x


def least_squares(design: Array, target: Array, weights: Array) -> Array:
    """Returns `argmin_B Σ_n w_n ‖y_n − x_n B‖²`, the smallest where there are many.

    Args:
        design: Array `(n, d)`.
        target: Array `(n, u)`.
        weights: Array `(n,)`, not negative.

    Returns:
        Array `(d, u)`.

    Example:
    >>> import numpy as np
    >>> from plait.training.regression import least_squares
    >>> x, y = np.array([[1.0], [2.0], [9.0]]), np.array([[2.0], [4.0], [0.0]])
    >>> float(least_squares(x, y, np.array([1.0, 1.0, 0.0]))[0, 0].round(6))
    2.0
    """
    root = np.sqrt(weights)[:, None]
    return np.linalg.lstsq(design * root, target * root, rcond=None)[0]


def log_softmax(scores: Array) -> Array:
    """Returns log softmax over the last axis."""
    below = scores - scores.max(axis=-1, keepdims=True)
    return below - np.log(np.exp(below).sum(axis=-1, keepdims=True))


def poisson(design: Array, target: Array, weights: Array, start: Array) -> Array:
    """Returns the maximiser of `Σ_n w_n (y_n η_n − exp η_n)`, `η = X B`, unit by unit.

    Args:
        design: Array `(n, d)`.
        target: Array of counts `(n, u)`.
        weights: Array `(n,)`, not negative.
        start: Array `(d, u)`, from which the value never falls.
    """

    def value(unit: int, b: Array) -> float:
        eta = np.minimum(design @ b, 700.0)
        return float(weights @ (target[:, unit] * eta - np.exp(eta)))

    def step(unit: int, b: Array) -> Array:
        rate = np.exp(np.clip(design @ b, -50.0, 50.0))
        gradient = design.T @ (weights * (target[:, unit] - rate))
        return _solve((design.T * (weights * rate)) @ design, gradient)

    return _by_unit(value, step, start)


def logistic(design: Array, target: Array, weights: Array, start: Array) -> Array:
    """Returns the maximiser of `Σ_n w_n (y_n η_n − log(1 + exp η_n))`, unit by unit.

    Args:
        design: Array `(n, d)`.
        target: Array of labels in [0, 1], `(n, u)`.
        weights: Array `(n,)`, not negative.
        start: Array `(d, u)`, from which the value never falls.
    """

    def value(unit: int, b: Array) -> float:
        eta = design @ b
        return float(weights @ (target[:, unit] * eta - np.logaddexp(0.0, eta)))

    def step(unit: int, b: Array) -> Array:
        p = 0.5 * (1.0 + np.tanh(0.5 * (design @ b)))
        gradient = design.T @ (weights * (target[:, unit] - p))
        return _solve((design.T * (weights * p * (1.0 - p))) @ design, gradient)

    return _by_unit(value, step, start)


def softmax(
    design: Array, target: Array, weights: Array, start: Array, max_iterations: int = 20
) -> Array:
    """Returns the maximiser of `Σ_n w_n Σ_c t_nc log p_nc` with `p_n` the softmax of `x_n B`.

    Newton's method, or, where its matrix would be large, steps under the fixed bound of Böhning
    (1992), which need one small matrix and never overshoot.

    Args:
        design: Array `(n, d)`.
        target: Array of shares `(n, c)` that sum to one.
        weights: Array `(n,)`, not negative.
        start: Array `(d, c)`, from which the value never falls.
        max_iterations: Number of steps at most.

    Returns:
        Array `(d, c)`.

    References:
        Böhning (1992), Multinomial logistic regression algorithm.
    """
    features, classes = start.shape
    small = features * classes <= 400

    def value(b: Array) -> float:
        return float(weights @ (target * log_softmax(design @ b)).sum(axis=-1))

    if not small:
        bound = (design.T * weights) @ design / 2.0

    def step(b: Array) -> Array:
        p = np.exp(log_softmax(design @ b))
        gradient = design.T @ (weights[:, None] * (target - p))
        if not small:
            # The inverse of (1 − 11ᵀ / c) / 2 is, on differences between classes, twice identity.
            return _solve(bound, gradient)
        matrix = np.empty((classes, features, classes, features))
        for i in range(classes):
            for j in range(i, classes):
                share = weights * p[:, i] * ((i == j) - p[:, j])
                block = (design.T * share) @ design
                matrix[i, :, j, :] = matrix[j, :, i, :] = block
        flat = matrix.reshape(classes * features, classes * features)
        return _solve(flat, gradient.T.ravel()).reshape(classes, features).T

    return _ascend(value, step, start, max_iterations)


def _by_unit(
    value: Callable[[int, Array], float], step: Callable[[int, Array], Array], start: Array
) -> Array:
    columns = [
        _ascend(partial(value, unit), partial(step, unit), start[:, unit])
        for unit in range(start.shape[1])
    ]
    return np.stack(columns, axis=1)


def _ascend(
    value: Callable[[Array], float],
    step: Callable[[Array], Array],
    start: Array,
    max_iterations: int = 50,
) -> Array:
    """Takes Newton steps, each halved until the value does not fall."""
    point, height = start, value(start)
    for _ in range(max_iterations):
        direction = step(point)
        for _ in range(_HALVINGS):
            higher = value(point + direction)
            if higher >= height:
                break
            direction = direction / 2.0
        else:
            return point
        gain, point, height = higher - height, point + direction, higher
        if gain <= 1e-12 * (1.0 + abs(height)):
            return point
    return point


def _solve(matrix: Array, gradient: Array) -> Array:
    """Solves for a Newton step; a small ridge makes a singular matrix regular."""
    size = len(matrix)
    ridge = 1e-10 * max(float(np.trace(matrix)) / size, 1e-12)
    return np.linalg.lstsq(matrix + ridge * np.eye(size), gradient, rcond=None)[0]
