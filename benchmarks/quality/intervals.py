"""Paired intervals: how much of a difference is noise of seeds and of test rows."""

from typing import NamedTuple

import numpy as np

DRAWS = 2000


class Gap(NamedTuple):
    """A method's measure less another's; below zero it is better.

    Attributes:
        value: The mean over seeds.
        low: The 2.5 % point of the bootstrap.
        high: The 97.5 % point.
    """

    value: float
    low: float
    high: float


def measures(errors: np.ndarray, root: bool) -> np.ndarray:
    """Returns the measure of each seed, `(seeds,)`, from errors of rows `(seeds, b)`."""
    found = errors.astype("float64").mean(axis=1)
    return np.sqrt(found) if root else found


def gaps(
    errors: dict[str, np.ndarray], of: str, root: bool, groups: np.ndarray | None
) -> dict[str, Gap]:
    """Returns the difference between one method and each other, with 95 % intervals.

    The bootstrap (Efron and Tibshirani 1993) draws seeds and test rows, the same for both methods;
    whole groups of rows where rows of one belong together.

    Args:
        errors: By method, errors of rows `(seeds, b)`.
        of: The method that the others are taken from.
        root: Whether the measure is the root of the mean.
        groups: Which rows belong together `(b,)`, or `None`.

    Example:
    >>> import numpy as np
    >>> from benchmarks.quality.intervals import gaps
    >>> errors = {"a": np.zeros((2, 4)), "b": np.ones((2, 4))}
    >>> gaps(errors, "a", False, None)["b"]
    Gap(value=-1.0, low=-1.0, high=-1.0)
    """
    rng = np.random.default_rng(0)
    seeds, rows = errors[of].shape
    place = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    n = int(place.max()) + 1
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    counts = rng.multinomial(n, np.full(n, 1 / n), DRAWS).astype("float32")
    each = np.bincount(place, minlength=n)
    total = counts @ each.astype("float32")
    draws = {}
    for name, found in errors.items():
        sums = np.stack([np.bincount(place, seed, minlength=n) for seed in found], axis=1)
        means = counts @ sums.astype("float32") / total[:, None]
        draws[name] = ((np.sqrt(means) if root else means) * drawn).sum(axis=1)
    mean = {name: float(measures(found, root).mean()) for name, found in errors.items()}
    result = {}
    for name in errors:
        low, high = np.percentile(draws[of] - draws[name], (2.5, 97.5))
        result[name] = Gap(mean[of] - mean[name], float(low), float(high))
    return result
