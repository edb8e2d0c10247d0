"""The rows of a table, and which of them train, hold out and score."""

import pathlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plait.errors import message
from plait.tables import Schema, matrix, read, target

if TYPE_CHECKING:
    import pandas as pd

_SHARE = 0.2  # held out for scoring without a test table, and again for early stopping
_FEWEST = 10


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


def load_training(path: pathlib.Path, target_name: str, ignore: list[str]) -> "pd.DataFrame":
    """Reads a training table, without the ignored columns."""
    frame = read(path)
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


def load_rows(path: pathlib.Path, schema: Schema) -> Rows:
    """Reads a table that must have a schema's columns and target."""
    return as_rows(read(path, schema.texts), schema)


def as_rows(frame: "pd.DataFrame", schema: Schema) -> Rows:
    """Returns a table in all its forms."""
    return Rows(frame, matrix(frame, schema), target(frame, schema))


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


__all__ = ["Parts", "Rows", "as_rows", "divide", "load_rows", "load_training"]
