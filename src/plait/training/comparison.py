"""Who is behind on held-out rows, and by more than noise: the one-standard-error rule."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Held(NamedTuple):
    """A candidate on held-out rows.

    Attributes:
        loss: Mean loss.
        behind: How much that is above the best candidate's.
        error: Standard error of that difference.
    """

    loss: float
    behind: float
    error: float


def compare(
    held_out: Mapping[str, np.ndarray], groups: np.ndarray | None = None
) -> dict[str, Held]:
    """Returns how far each candidate is behind the best on held-out rows.

    Differences are paired row by row: what is hard for all candidates is no noise. Their standard
    error is over rows, or over whole groups where rows of one belong together.

    Args:
        held_out: Losses `(b,)` of each candidate, on the same rows.
        groups: Which rows belong together `(b,)`, or `None`.

    Example:
    >>> import numpy as np
    >>> from plait.training.comparison import compare
    >>> hard = np.array([1.0, 9.0, 1.0, 9.0])
    >>> found = compare({"network": hard + [0.1, 0.3, 0.3, 0.1], "average": hard})
    >>> round(found["network"].behind, 4), round(found["network"].error, 4)
    (0.2, 0.0577)
    """
    losses = {name: np.asarray(values, "float64") for name, values in held_out.items()}
    means = {name: float(values.mean()) for name, values in losses.items()}
    best = min(means, key=lambda name: (np.isnan(means[name]), means[name]))
    rows = len(losses[best])
    place = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    n = int(place.max()) + 1
    found = {}
    for name, values in losses.items():
        behind = values - losses[best]
        off = np.bincount(place, behind - behind.mean(), minlength=n)
        error = np.sqrt((off**2).sum() * n / max(1, n - 1)) / rows
        found[name] = Held(means[name], float(behind.mean()), float(error))
    return found


def simplest(held: Mapping[str, Held], order: Iterable[str]) -> str:
    """Returns the first candidate that is behind the best by no more than one standard error.

    Breiman et al. (1984) take the standard error of the best one's own mean loss. Whether the
    simpler one is worse is asked of their difference, so that its error is taken here: where rows
    are unlike one another but the candidates are not, it is far smaller.

    Args:
        held: From `compare`.
        order: Names, from the simplest candidate to the richest; others than those in `held` are
            passed over.

    Example:
    >>> from plait.training.comparison import Held, simplest
    >>> order = ("network", "average")
    >>> simplest({"network": Held(1.3, 0.3, 0.4), "average": Held(1.0, 0.0, 0.0)}, order)
    'network'
    >>> simplest({"network": Held(1.3, 0.3, 0.1), "average": Held(1.0, 0.0, 0.0)}, order)
    'average'

    References:
        Breiman, Friedman, Olshen, Stone (1984), Classification and regression trees, section 3.4.3.
    """
    return next(name for name in order if name in held and held[name].behind <= held[name].error)


__all__ = ["Held", "compare", "simplest"]
