"""Intervals: what of a mean, or of a difference of means, is noise."""

from typing import NamedTuple

import numpy as np

_CHUNK = 2**22  # numbers drawn at a time


class Interval(NamedTuple):
    """A value and the interval that resampled rows give it.

    Attributes:
        value: On the rows as they are.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def noise(self) -> bool:
        """Whether the interval holds zero: a difference that may be none."""
        return self.low <= 0.0 <= self.high


def bootstrap(
    values: np.ndarray,
    groups: np.ndarray | None = None,
    root: bool = False,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Returns the mean with its percentile interval over resampled rows (Efron 1979).

    Values of shape `(b, 2)` are paired: the mean of the first column less that of the second, both
    over the same resampled rows.

    Args:
        values: One value per row `(b,)`, or two `(b, 2)`.
        groups: Which rows belong together `(b,)`: whole groups are drawn.
        root: Whether to take the square root of each mean, as of squared errors.
        level: Share of the resampled means inside the interval.
        samples: How many times to resample.
        seed: Of the draws.

    Example:
    >>> import numpy as np
    >>> from plait.inspection import bootstrap
    >>> found = bootstrap(np.array([[2.0, 1.0], [3.0, 2.0], [5.0, 4.0]]))
    >>> [round(float(number), 4) for number in found], found.noise
    ([1.0, 1.0, 1.0], False)
    """
    values = np.asarray(values, "float64")
    columns = values.reshape(len(values), -1)
    if groups is None:
        sums, sizes = columns, np.ones(len(columns))
    else:
        names, place = np.unique(groups, return_inverse=True)
        sums = np.zeros((len(names), columns.shape[1]))
        np.add.at(sums, place, columns)
        sizes = np.bincount(place).astype("float64")
    rng = np.random.default_rng(seed)
    n = len(sums)
    draws = []
    for _ in range(0, samples, step := max(1, _CHUNK // n)):
        drawn = rng.integers(n, size=(step, n))
        draws.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)[:, None])
    means = np.concatenate(draws)[:samples]
    whole = sums.sum(axis=0) / sizes.sum()
    if root:
        means, whole = np.sqrt(means), np.sqrt(whole)
    sign = np.array([1.0, -1.0])[: columns.shape[1]]
    low, high = np.quantile(means @ sign, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(whole @ sign), float(low), float(high))


__all__ = ["Interval", "bootstrap"]
