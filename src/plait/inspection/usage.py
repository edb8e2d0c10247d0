"""Which expert did what: numbers from the mixing weights and the targets."""

from typing import NamedTuple

import numpy as np


class Usage(NamedTuple):
    """How a mixture uses its experts.

    Attributes:
        share: Mean weight of each expert, `(e,)`; sums to one where the weights do.
        first: Share of the examples in which the expert has the largest weight, `(e,)`.
        entropy: Entropy of the weights of each example over `log e`, `(b,)`: 0 where one expert
            has all the weight, 1 where all have the same.
        effective: Number of experts in use: `exp` of the entropy of `share`.
    """

    share: np.ndarray
    first: np.ndarray
    entropy: np.ndarray
    effective: float


class Confusion(NamedTuple):
    """Experts against classes.

    Attributes:
        counts: Examples of class `k` in which expert `l` has the largest weight, `(e, k)`.
        accuracy: Share of the examples of class `k` that expert `l` alone gets right, `(e, k)`;
            NaN for a class without examples.
    """

    counts: np.ndarray
    accuracy: np.ndarray


class Along(NamedTuple):
    """Weights along a continuous target.

    Attributes:
        edges: Borders of the bins, `(n + 1,)`, with about as many examples in each.
        weights: Mean weights in each bin, `(n, e)`.
    """

    edges: np.ndarray
    weights: np.ndarray


def usage(weights: np.ndarray) -> Usage:
    """Returns how often and how decidedly experts are used.

    Args:
        weights: Mixing weights `(b, e)`.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import usage
    >>> usage(np.array([[1.0, 0.0], [0.5, 0.5]])).entropy.tolist()
    [0.0, 1.0]
    """
    weights = np.asarray(weights, "float64")
    e = weights.shape[1]
    share = weights.mean(axis=0)
    first = np.bincount(np.argmax(weights, axis=1), minlength=e) / len(weights)
    entropy = _entropy(weights) / np.log(e) if e > 1 else np.zeros(len(weights))
    return Usage(share, first, entropy, float(np.exp(_entropy(share))))


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1) + 0.0  # no negative zero


def weights_per_class(weights: np.ndarray, y: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the mean weights over the examples of each class, `(k, e)`; NaN without examples.

    Args:
        weights: Mixing weights `(b, e)`.
        y: Class codes `(b,)`.
        num_classes: How many classes there are, `k`.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import weights_per_class
    >>> weights_per_class(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0, 0]), 1).tolist()
    [[0.75, 0.25]]
    """
    weights = np.asarray(weights, "float64")
    total = np.zeros((num_classes, weights.shape[1]))
    np.add.at(total, y, weights)
    count = np.bincount(y, minlength=num_classes)[:, None]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def weights_along(weights: np.ndarray, target: np.ndarray, bins: int = 12) -> Along:
    """Returns the mean weights in bins of a continuous target with equal numbers of examples.

    Args:
        weights: Mixing weights `(b, e)`.
        target: Values `(b,)`.
        bins: How many bins; fewer come back where the target has few different values.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import weights_along
    >>> weights = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> weights_along(weights, np.array([1.0, 2.0, 3.0, 4.0]), bins=2).weights.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    weights = np.asarray(weights, "float64")
    edges = np.unique(np.quantile(target, np.linspace(0.0, 1.0, bins + 1)))
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    place = np.clip(np.searchsorted(edges, target, side="right") - 1, 0, len(edges) - 2)
    return Along(edges, weights_per_class(weights, place, len(edges) - 1))


def expert_confusion(weights: np.ndarray, outputs: np.ndarray, y: np.ndarray) -> Confusion:
    """Returns which expert leads in which class, and what each gets right there alone.

    Args:
        weights: Mixing weights `(b, e)`.
        outputs: Experts' probabilities `(b, e, u)`.
        y: Class codes `(b,)`.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import expert_confusion
    >>> outputs = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.9, 0.1], [0.2, 0.8]]])
    >>> found = expert_confusion(np.array([[1.0, 0.0], [0.0, 1.0]]), outputs, np.array([0, 1]))
    >>> found.counts.tolist(), found.accuracy.tolist()
    ([[1, 0], [0, 1]], [[1.0, 0.0], [0.0, 1.0]])
    """
    e, u = outputs.shape[1:]
    counts = np.zeros((e, u), "int64")
    np.add.at(counts, (np.argmax(weights, axis=1), y), 1)
    right = np.argmax(outputs, axis=-1) == np.asarray(y)[:, None]
    return Confusion(counts, weights_per_class(right, y, u).T)


def worst(losses: np.ndarray, count: int = 10) -> np.ndarray:
    """Returns the indices of the examples with the highest loss, the highest first.

    Args:
        losses: Losses `(b,)`.
        count: How many indices.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import worst
    >>> worst(np.array([0.1, 3.0, 2.0]), 2).tolist()
    [1, 2]
    """
    return np.argsort(-np.asarray(losses), kind="stable")[:count]


__all__ = [
    "Along",
    "Confusion",
    "Usage",
    "expert_confusion",
    "usage",
    "weights_along",
    "weights_per_class",
    "worst",
]
