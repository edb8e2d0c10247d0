"""Folds: which rows are held out together."""

from typing import Any

import numpy as np

from plait.errors import message

FEWEST = 2


def fold_numbers(
    y: np.ndarray, folds: Any, groups: np.ndarray | None = None, seed: int | None = 0
) -> np.ndarray:
    """Returns for each row the number of the fold that holds it out.

    Class labels are dealt out evenly, class by class; groups stay whole, the largest first to the
    fold with the fewest rows; other rows are dealt out at random.

    Args:
        y: Target of `n` rows: class labels `(n,)` or `(n, 1)`, one-hot rows, or values.
        folds: How many; or their numbers `(n,)`; or an object with scikit-learn's
            `split(x, y, groups)`.
        groups: `(n,)`, or `None`. Rows of one group are held out together.
        seed: Of the order in which rows are dealt out.

    Returns:
        Integers `(n,)` from 0 on.

    Raises:
        ValueError: If there are fewer than two folds, more than rows or groups, or the given ones
            do not hold out each row once.

    Example:
    >>> import numpy as np
    >>> from plait.training.folds import fold_numbers
    >>> numbers = fold_numbers(np.array([0, 0, 1, 1]), folds=2)
    >>> sorted(numbers[:2].tolist()), sorted(numbers[2:].tolist())
    ([0, 1], [0, 1])
    """
    y = np.asarray(y)
    rows = len(y)
    if groups is not None and len(groups) != rows:
        raise ValueError(
            message("`groups` must name a group for each row", f"{len(groups)} for {rows} rows",
                    "Pass one entry for each row")
        )  # fmt: skip
    if hasattr(folds, "split"):
        return _by_splitter(y, folds, groups)
    if isinstance(folds, (list, tuple, np.ndarray)):
        return _given(np.asarray(folds), rows)
    rng = np.random.default_rng(seed)
    units = rows if groups is None else len(np.unique(groups))
    if not isinstance(folds, (int, np.integer)) or not FEWEST <= folds <= units:
        what = "rows" if groups is None else "groups"
        raise ValueError(
            message(
                f"`folds` must be an integer from {FEWEST} to the {units} {what}, or the fold of "
                "each row",
                f"folds={folds!r}",
                "Use folds=5",
            )
        )
    if groups is not None:
        return _by_groups(np.asarray(groups), int(folds), rng)
    order = rng.permutation(rows)
    labels = class_labels(y)
    if labels is not None:  # one class after another, each in random order
        order = order[np.argsort(labels[order], kind="stable")]
    numbers = np.empty(rows, int)
    numbers[order] = np.arange(rows) % folds
    return numbers


def class_labels(y: np.ndarray) -> np.ndarray | None:
    """Returns the class of each row `(n,)`, or `None` where a target does not hold classes."""
    if y.ndim == 2 and y.shape[1] > 1:
        one_hot = ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all()
        return y.argmax(axis=1) if one_hot else None
    if y.ndim > 2 or y.dtype.kind == "f":
        return None
    return np.unique(y.reshape(len(y)), return_inverse=True)[1]


def _by_groups(groups: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    _, of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    fold_of = np.empty(len(sizes), int)
    filled = np.zeros(folds, int)
    shuffled = rng.permutation(len(sizes))
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
    return fold_of[of_row]


def _by_splitter(y: np.ndarray, splitter: Any, groups: np.ndarray | None) -> np.ndarray:
    numbers = np.full(len(y), -1)
    held = np.zeros(len(y), int)
    for fold, (_, rows) in enumerate(splitter.split(np.zeros((len(y), 1)), y, groups)):
        numbers[rows] = fold
        held[rows] += 1
    if (held != 1).any():
        raise ValueError(
            message(
                "`folds` must hold out each row once",
                f"{type(splitter).__name__}, which holds out {(held == 0).sum()} rows never and "
                f"{(held > 1).sum()} more than once",
                "Use KFold, StratifiedKFold or GroupKFold",
            )
        )
    return numbers


def _given(numbers: np.ndarray, rows: int) -> np.ndarray:
    if numbers.shape != (rows,) or len(np.unique(numbers)) < FEWEST:
        raise ValueError(
            message(
                f"Given folds must be a number for each of the {rows} rows, two of them at least",
                f"{len(np.unique(numbers))} folds of shape {numbers.shape}",
                "Use folds=5, or the number of the fold that holds out each row",
            )
        )
    return np.unique(numbers, return_inverse=True)[1]


__all__ = ["class_labels", "fold_numbers"]
