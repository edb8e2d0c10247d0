"""The best constant weights: what a mixture can reach without looking at its input."""

import numpy as np

from plait.inspection.losses import TINY


def best_constant_weights(outputs: np.ndarray, y: np.ndarray, task: str) -> np.ndarray:
    """Returns the weights on the simplex that fit `y` best when they are the same for every row.

    Classification maximises the mean log-likelihood `log Σ_l w_l f_l(x)[y]` by
    expectation-maximisation (Dempster, Laird and Rubin 1977): `w_l` becomes the mean
    responsibility of expert `l`. Regression minimises the mean squared error by projected gradient
    steps with momentum (Beck and Teboulle 2009). Both problems are convex: there is one optimum.

    Args:
        outputs: Experts' outputs `(b, e, u)`; probabilities for classification.
        y: Class codes `(b,)`, or values `(b,)`.
        task: `"classification"` or `"regression"`.

    Returns:
        Weights `(e,)` that are not negative and sum to one.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import best_constant_weights
    >>> outputs = np.array([[[0.0], [4.0]], [[0.0], [8.0]]])
    >>> best_constant_weights(outputs, np.array([1.0, 2.0]), "regression").round(4).tolist()
    [0.75, 0.25]
    """
    outputs = np.asarray(outputs, "float64")
    if task == "classification":
        return _em(np.maximum(outputs[np.arange(len(y)), :, y], TINY))
    return _least_squares(outputs[:, :, 0], np.asarray(y, "float64"))


def _em(likelihood: np.ndarray, steps: int = 2000, tolerance: float = 1e-10) -> np.ndarray:
    e = likelihood.shape[1]
    weights = np.full(e, 1.0 / e)
    before = -np.inf
    for _ in range(steps):
        joint = likelihood * weights
        total = joint.sum(axis=1, keepdims=True)
        weights = (joint / total).mean(axis=0)
        now = float(np.log(total).mean())
        if now - before < tolerance:
            break
        before = now
    return weights / weights.sum()


def _least_squares(f: np.ndarray, y: np.ndarray, steps: int = 5000) -> np.ndarray:
    e = f.shape[1]
    gram, moment = f.T @ f / len(y), f.T @ y / len(y)
    rate = 1.0 / max(float(np.linalg.eigvalsh(gram)[-1]), TINY)
    weights = ahead = np.full(e, 1.0 / e)
    momentum = 1.0
    for _ in range(steps):
        new = project_to_simplex(ahead - rate * (gram @ ahead - moment))
        grown = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead = new + (momentum - 1.0) / grown * (new - weights)
        moved = float(np.abs(new - weights).max())
        weights, momentum = new, grown
        if moved < 1e-12:
            break
    return weights


def project_to_simplex(v: np.ndarray) -> np.ndarray:
    """Returns the nearest point to `v` whose entries are not negative and sum to one.

    The sorting method of Held, Wolfe and Crowder (1974).

    Example:
    >>> import numpy as np
    >>> from plait.inspection.constant import project_to_simplex
    >>> project_to_simplex(np.array([1.0, 0.6, -3.0])).round(4).tolist()
    [0.7, 0.3, 0.0]
    """
    u = np.sort(v)[::-1]
    excess = (np.cumsum(u) - 1.0) / np.arange(1, len(v) + 1)
    support = int(np.flatnonzero(u > excess)[-1])
    return np.maximum(v - excess[support], 0.0)


__all__ = ["best_constant_weights", "project_to_simplex"]
