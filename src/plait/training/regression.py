"""Weighted regressions in NumPy float64, many at once: M-steps of linear experts and gates.

The leading axes `…` count regressions on one design matrix `(n, d)`, whose weights `(…, n)` differ:
one for each run of EM and each expert. Rows come last, coefficients are `(…, u, d)`.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from plait.errors import message

Array = np.ndarray
Fitted = TypeVar("Fitted")
# A Newton step that lowers the likelihood is halved this many times, then given up.
_HALVINGS = 30
# A system whose scaled Cholesky factor has a smaller pivot than this goes to least squares.
_SMALLEST_PIVOT = 1e-4


def finite(values: Array, what: str) -> Array:
    """Returns an array `(n, d)` in float64.

    Raises:
        ValueError: If a number is not finite.
    """
    values = np.asarray(values, "float64").reshape(len(values), -1)
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            message(
                f"The {what} of linear experts and gates must be finite numbers in fit_em",
                f"{values[row, column]} in row {row} of the rows that count",
                "Fill it in, or leave the row out with a sample_weight of 0",
            )
        )
    return values


def with_intercept(x: Array, intercept: bool = True) -> Array:
    """Returns the design matrix `(n, d + 1)`: the features, then a one; columns are contiguous."""
    columns = finite(x, "inputs").T
    ones = np.ones((int(intercept), len(x)))
    return np.concatenate([columns, ones]).T


def times(left: Array, right: Array) -> Array:
    """Returns the product `(…, k)` of `(…, m)` and a matrix `(m, k)`, in one call."""
    return (left.reshape(-1, len(right)) @ right).reshape(*left.shape[:-1], right.shape[1])


def least_squares(design: Array, target: Array, weights: Array) -> Array:
    """Returns `argmin_B Σ_n w_n ‖y_n − B x_n‖²`, the smallest where there are many.

    By the normal equations, or by least squares on the rows where these are ill-conditioned.

    Args:
        design: Array `(n, d)`.
        target: Array `(u, n)`.
        weights: Array `(…, n)`, not negative.

    Returns:
        Array `(…, u, d)`.

    Example:
    >>> import numpy as np
    >>> from plait.training.regression import least_squares
    >>> x, y = np.array([[1.0], [2.0], [9.0]]), np.array([[2.0, 4.0, 0.0]])
    >>> float(least_squares(x, y, np.array([1.0, 1.0, 0.0]))[0, 0].round(6))
    2.0
    """

    def on_rows(index: tuple[int, ...]) -> Array:
        root = np.sqrt(weights[index])[:, None]
        return np.linalg.lstsq(design * root, target.T * root, rcond=None)[0]

    products = times(weights[..., None, :] * design.T, np.concatenate([design, target.T], axis=1))
    features = design.shape[1]
    found = _solve(products[..., :features], products[..., features:], on_rows)
    return np.swapaxes(found, -1, -2)


def softmax(scores: Array) -> tuple[Array, Array]:
    """Returns the log-softmax over the last axis but one, and the softmax."""
    below = scores - scores.max(axis=-2, keepdims=True)
    powers = np.exp(below)
    sums = powers.sum(axis=-2, keepdims=True)
    return below - np.log(sums), powers / sums


def newton(design: Array, residual: Array, curvature: Array) -> Array:
    """Returns the Newton direction `(…, u, d)` of regressions whose units are apart.

    Args:
        design: Array `(n, d)`.
        residual: Array `(…, u, n)`: the derivative with respect to the linear predictor, weighted.
        curvature: Array `(…, u, n)`: minus the second derivative, weighted.
    """
    return newton_step(*newton_sums(design, residual, curvature))


def newton_sums(design: Array, residual: Array, curvature: Array) -> tuple[Array, Array]:
    """Returns the sums over rows that `newton_step` reads: gradient and matrix."""
    return times(residual, design), times(curvature[..., None, :] * design.T, design)


def newton_step(gradient: Array, matrix: Array) -> Array:
    """Returns the Newton direction `(…, u, d)` that follows from the sums."""
    return _newton(matrix, gradient)


def newton_softmax(design: Array, residual: Array, p: Array, weights: Array) -> Array:
    """Returns the Newton direction `(…, c, d)` of a multinomial logistic regression.

    Where the matrix would be large, it is a step under the fixed bound of Böhning (1992), which
    needs one small matrix and never overshoots.

    Args:
        design: Array `(n, d)`.
        residual: Array `(…, c, n)`: `w_n (t_nc − p_nc)`.
        p: Array `(…, c, n)`, the softmax of the linear predictor.
        weights: Array `(…, n)`, not negative.

    References:
        Böhning (1992), Multinomial logistic regression algorithm.
    """
    return softmax_step(*softmax_sums(design, residual, p, weights))


def softmax_sums(design: Array, residual: Array, p: Array, weights: Array) -> tuple[Array, Array]:
    """Returns the sums over rows that `softmax_step` reads: gradient and matrix."""
    gradient = times(residual, design)
    *batch, classes, features = gradient.shape
    if not _is_small(features, classes):
        return gradient, times(weights[..., None, :] * design.T, design) / 2.0
    # A softmax sees differences alone: the last class keeps its scores.
    free = classes - 1
    rows, columns = np.triu_indices(free)
    # On the diagonal `1 − p_i` is the sum of the other classes, which does not cancel near one.
    shares = -weights[..., None, :] * p[..., rows, :] * p[..., columns, :]
    if free:
        others = np.stack([np.delete(p, i, axis=-2).sum(axis=-2) for i in range(free)], axis=-2)
        shares[..., rows == columns, :] = weights[..., None, :] * p[..., :free, :] * others
    blocks = times(shares[..., None, :] * design.T, design)
    matrix = np.empty((*batch, free, features, free, features))
    for pair, (row, column) in enumerate(zip(rows, columns, strict=True)):
        matrix[..., row, :, column, :] = matrix[..., column, :, row, :] = blocks[..., pair, :, :]
    return gradient, matrix.reshape(*batch, free * features, free * features)


def softmax_step(gradient: Array, matrix: Array) -> Array:
    """Returns the direction of `newton_softmax`, `(…, c, d)`, that follows from the sums."""
    *batch, classes, features = gradient.shape
    if classes == 1:
        return np.zeros_like(gradient)
    if not _is_small(features, classes):
        # The inverse of (1 − 11ᵀ / c) / 2 is, on differences between classes, twice identity.
        return _newton(matrix[..., None, :, :], gradient)
    free = classes - 1
    direction = np.zeros_like(gradient)
    found = _newton(matrix, gradient[..., :free, :].reshape(*batch, free * features))
    direction[..., :free, :] = found.reshape(*batch, free, features)
    return direction - direction.mean(axis=-2, keepdims=True)


def softmax_steps(features: int, classes: int) -> int:
    """Returns how many steps of `newton_softmax` make an M-step: more where a bound holds them."""
    return 1 if _is_small(features, classes) else 5


def _is_small(features: int, classes: int) -> bool:
    return features * classes <= 400


def climb(
    point: Array,
    fitted: Fitted,
    *,
    evaluate: Callable[[Array], Fitted],
    value: Callable[[Fitted], Array],
    direction: Callable[[Fitted], Array],
    steps: int,
) -> tuple[Array, Fitted]:
    """Takes Newton steps, each halved where the value would fall.

    Args:
        point: The coefficients `(…, u, d)`.
        fitted: What `evaluate` says of them.
        evaluate: Returns what the others need to know of coefficients.
        value: Returns what is to rise, `(…)`.
        direction: Returns the step `(…, u, d)`.
        steps: How many at most.

    Returns:
        The coefficients reached, and what `evaluate` says of them.
    """
    height = value(fitted)
    for _ in range(steps):
        slack = 1e-12 * (1.0 + np.abs(height))  # sums are rounded
        step = direction(fitted)
        for halving in range(_HALVINGS + 1):
            further = evaluate(point + step)
            reached = value(further)
            falls = ~(reached >= height - slack)
            if not falls.any():
                break
            step = np.where(falls[..., None, None], step * (0.5 * (halving < _HALVINGS)), step)
        point, fitted, gain, height = point + step, further, reached - height, reached
        if (gain <= slack).all():
            break
    return point, fitted


def _newton(matrix: Array, gradient: Array) -> Array:
    """Solves for Newton steps `(…, d)`; a small ridge makes a singular matrix regular."""
    size = gradient.shape[-1]
    matrices = np.broadcast_to(matrix, (*gradient.shape, size))

    def with_ridge(index: tuple[int, ...]) -> Array:
        ridge = 1e-10 * max(float(np.trace(matrices[index])) / size, 1e-12)
        regular = matrices[index] + ridge * np.eye(size)
        return np.linalg.lstsq(regular, gradient[index][:, None], rcond=None)[0]

    return _solve(matrices, gradient[..., None], with_ridge)[..., 0]


def _solve(matrix: Array, right: Array, otherwise: Callable[[tuple[int, ...]], Array]) -> Array:
    """Solves symmetric systems `(…, d, d)`, right-hand sides `(…, d, k)`.

    Args:
        matrix: Positive, or singular.
        right: The right-hand sides.
        otherwise: Returns the solution `(d, k)` of an ill-conditioned system, given its index.
    """
    diagonal = np.sqrt(np.maximum(np.diagonal(matrix, axis1=-2, axis2=-1), 1e-300))
    scaled = matrix / (diagonal[..., :, None] * diagonal[..., None, :])
    identity = np.eye(matrix.shape[-1])
    try:
        # With this ridge a singular matrix has a factor too; its pivots tell how near it is to one.
        factor = np.linalg.cholesky(scaled + 1e-11 * identity)
        poor = np.diagonal(factor, axis1=-2, axis2=-1).min(axis=-1) < _SMALLEST_PIVOT
    except np.linalg.LinAlgError:
        poor = np.ones(matrix.shape[:-2], bool)
    regular = np.where(poor[..., None, None], identity, scaled) if poor.any() else scaled
    found = np.linalg.solve(regular, right / diagonal[..., None]) / diagonal[..., None]
    for index in np.ndindex(poor.shape):
        if poor[index]:
            found[index] = otherwise(index)
    return found
