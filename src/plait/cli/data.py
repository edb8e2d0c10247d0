"""The rows of a table, and which of them train, hold out and score."""

import pathlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plait.cli.console import remarks
from plait.errors import message
from plait.tables import Findings, Schema, matrix, read, target
from plait.training.folds import fold_numbers

if TYPE_CHECKING:
    import pandas as pd

_SHARE = 0.2  # held out for scoring without a test table, and again for early stopping
_FEWEST = 10
_FOLDS, _MOST_FOLDS = 5, 10
_MANY_ROWS = 20_000


class Rows(NamedTuple):
    """A table in all its forms.

    Attributes:
        frame: As it was read.
        x: Raw matrix `(b, c)`.
        y: Class codes `(b,)`, or values `(b,)`.
    """

    frame: "pd.DataFrame"
    x: np.ndarray
    y: np.ndarray

    def take(self, rows: np.ndarray) -> "Rows":
        """Returns some of the rows."""
        return Rows(self.frame.iloc[rows], self.x[rows], self.y[rows])


class Parts(NamedTuple):
    """Which rows serve what.

    Attributes:
        train: To learn from.
        valid: To stop early on.
        score: To score on.
        name: What the scored rows are, in words.
    """

    train: Rows
    valid: Rows
    score: Rows
    name: str

    @property
    def seen(self) -> Rows:
        """Everything but what is scored on."""
        both = zip(self.train[1:], self.valid[1:], strict=True)
        return Rows(self.train.frame, *(np.concatenate(pair) for pair in both))


def load_training(
    path: pathlib.Path, target_name: str, ignore: list[str], texts: tuple[str, ...] = ()
) -> "pd.DataFrame":
    """Reads a training table, without the ignored columns; labels and `texts` as they stand."""
    frame = read(path, (target_name, *texts))
    unknown = [name for name in ignore if name not in frame.columns]
    if unknown or target_name in ignore:
        raise ValueError(
            message(
                "`--ignore` names feature columns of the table",
                repr((unknown or [target_name])[0]),
                f"Choose among {', '.join(str(c) for c in frame.columns if c != target_name)}",
            )
        )
    if len(frame) < _FEWEST:
        raise ValueError(
            message(
                f"A training table needs at least {_FEWEST} rows",
                f"{len(frame)} in {path}",
                "Add rows",
            )
        )
    return frame.drop(columns=ignore)


def load_rows(
    path: pathlib.Path, schema: Schema, strict: bool = True, texts: tuple[str, ...] = ()
) -> Rows:
    """Reads a table that must have a schema's columns and target.

    Args:
        path: The table.
        schema: Its columns.
        strict: Whether categories and empty cells that training has not seen are refused;
            otherwise they are counted on standard error.
        texts: Further columns to read as texts.
    """
    return as_rows(read(path, [*schema.texts, schema.target, *texts]), schema, strict)


def as_rows(frame: "pd.DataFrame", schema: Schema, strict: bool = True) -> Rows:
    """Returns a table in all its forms."""
    findings = Findings(strict)
    x = matrix(frame, schema, findings)
    findings.check()
    for remark in findings.remarks():
        remarks.print(remark)
    return Rows(frame, x, target(frame, schema))


def divide(rows: Rows, test: Rows | None, test_name: str, seed: int) -> Parts:
    """Divides rows at random; the test table, where there is one, is only scored on."""
    order = np.random.default_rng(seed).permutation(len(rows.y))
    if test is None:
        held, order = np.split(order, [max(1, int(_SHARE * len(order)))])
        test, test_name = rows.take(held), f"a fifth held out of the table ({len(held):,} rows)"
    else:
        test_name = f"{test_name} ({len(test.y):,} rows)"
    valid, train = np.split(order, [max(1, int(_SHARE * len(order)))])
    return Parts(rows.take(train), rows.take(valid), test, test_name)


def hold_out(rows: Rows, task: str, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """Returns which rows `(b,)` to hold out, about a fifth of them.

    Each class in its share of the rows, values evenly along the target, or whole groups.

    Args:
        rows: A table.
        task: `"classification"` or `"regression"`.
        groups: Which rows belong together `(b,)`, or `None`.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    if groups is not None:
        number, place = check_groups(groups), np.unique(groups, return_inverse=True)[1]
        drawn = rng.permutation(number)[: max(1, round(_SHARE * number))]
        return np.isin(place, drawn)
    b = len(rows.y)
    shuffled = rng.permutation(b)
    # In the order of the target, every fifth row from a random start: strata of five.
    order = shuffled[np.argsort(rows.y[shuffled], kind="stable")]
    held = np.zeros(b, bool)
    every = round(1.0 / _SHARE)
    for first in range(0, b - 1, every):
        block = order[first : first + every]
        held[rng.choice(block)] = True
    return held


def folds_of(y: np.ndarray, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """Returns for each row `(b,)` the number of the fold that holds it out, -1 for none.

    Five folds, or one for each of up to ten groups. Of many rows one part is enough: a fifth.

    Args:
        y: Class codes `(b,)`, or values `(b,)`.
        groups: Which rows belong together `(b,)`, or `None`.
        seed: Of the draw.
    """
    folds = _FOLDS
    if groups is not None:
        folds = max(2, min(_MOST_FOLDS, len(np.unique(groups))))
    number = fold_numbers(y, folds, groups, seed)
    if len(y) <= _MANY_ROWS:
        return number
    return np.where(number < max(1, round(_SHARE * folds)), 0, -1)


def check_groups(groups: np.ndarray) -> int:
    """Returns how many groups there are, at least three."""
    number = len(np.unique(groups))
    if number < 3:
        raise ValueError(
            message(
                "`--group` must tell at least three groups apart",
                f"{number}",
                "Choose another column, or leave --group out",
            )
        )
    return number


__all__ = [
    "Parts",
    "Rows",
    "as_rows",
    "check_groups",
    "divide",
    "folds_of",
    "hold_out",
    "load_rows",
    "load_training",
]
