"""The rows of a table, and which of them train, hold out and score."""

import pathlib
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np

from plait.cli import interrupts
from plait.cli.console import remarks
from plait.errors import message
from plait.tables import Findings, Schema, Table, TableEncoder, matrix, target
from plait.tables.cells import texts
from plait.training.folds import fold_numbers
from plait.training.on_disk import OnDisk

if TYPE_CHECKING:
    import pandas as pd

MOST_SCORED = 50_000  # rows on which losses are computed: their standard error is small
IN_MEMORY = 2**26  # bytes of rows to learn from; what needs more lies in a file
_SHARE = 0.2  # held out for scoring without a test table, and again for early stopping
_FEWEST = 10
_FOLDS, _MOST_FOLDS = 5, 10
_MANY_ROWS = 20_000
_PIECE = 2**14  # rows


class Rows(NamedTuple):
    """Some rows of a table, in memory.

    Attributes:
        table: The whole table, in its file.
        x: Raw matrix `(b, c)`.
        y: Class codes `(b,)`, or values `(b,)`.
        numbers: Which rows of the table these are, `(b,)`.
    """

    table: Table
    x: np.ndarray
    y: np.ndarray
    numbers: np.ndarray

    def frame(self) -> "pd.DataFrame":
        """Returns their cells as they stand in the table."""
        return self.table.take(self.numbers)


class AllRows(NamedTuple):
    """All rows of a table, the matrix in a file.

    Attributes:
        table: The table itself.
        x: Raw matrix `(b, c)`.
        y: Class codes `(b,)`, or values `(b,)`.
    """

    table: Table
    x: OnDisk
    y: np.ndarray

    def take(self, rows: np.ndarray) -> Rows:
        """Returns some of the rows."""
        return Rows(self.table, self.x[rows], self.y[rows], rows)

    def drawn(self, seed: int = 0) -> Rows:
        """Returns at most `MOST_SCORED` of the rows, drawn at random."""
        return self.take(measured(np.arange(len(self.y)), seed))


def measured(rows: np.ndarray, seed: int) -> np.ndarray:
    """Returns at most `MOST_SCORED` of the rows, drawn at random."""
    return draw(rows, MOST_SCORED, seed)


def draw(rows: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Returns at most so many of the rows, drawn at random, in the order in which they stand.

    Example:
    >>> import numpy as np
    >>> from plait.cli.data import draw
    >>> draw(np.arange(3), 5).tolist(), len(draw(np.arange(9), 5))
    ([0, 1, 2], 5)
    """
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))]


class Encoded:
    """Features `(b, d)` of the rows of a raw matrix `(b, c)`, encoded as they are taken."""

    def __init__(self, x: np.ndarray | OnDisk, encoder: TableEncoder) -> None:
        self._x, self._encoder = x, encoder
        self.shape = (len(x), encoder.schema.width)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return keras.ops.convert_to_numpy(self._encoder(self._x[rows]))


def features(x: np.ndarray | OnDisk, encoder: TableEncoder) -> np.ndarray | Encoded:
    """Returns what networks read `(b, d)`: in memory, or encoded as rows are taken."""
    found = Encoded(x, encoder)
    return found if 4 * int(np.prod(found.shape)) > IN_MEMORY else found[:]


class Parts(NamedTuple):
    """Which rows serve what.

    Attributes:
        rows: The table to learn from.
        train: Which of its rows to learn from, `(b,)`.
        valid: Rows to stop early on.
        score: Rows to score on.
        name: What the scored rows are, in words.
    """

    rows: AllRows
    train: np.ndarray
    valid: Rows
    score: Rows
    name: str

    def seen(self, seed: int) -> Rows:
        """Returns rows that are not scored on, at most `MOST_SCORED` of them."""
        seen = np.concatenate([self.train, self.valid.numbers])
        return self.rows.take(measured(seen, seed))

    def x_train(self) -> np.ndarray | OnDisk:
        """Returns the raw matrix `(b, c)` to learn from, in memory or in a file."""
        x = self.rows.x
        if 4 * len(self.train) * x.shape[1] <= IN_MEMORY:
            return x[self.train]
        found = _file(x.shape[1])
        for start in range(0, len(self.train), _PIECE):
            found.append(x[self.train[start : start + _PIECE]])
        return found


def _file(columns: int) -> OnDisk:
    """Returns an empty matrix in a temporary file, which goes with the object."""
    return OnDisk(tempfile.gettempdir(), "float32", (0, columns))


def load_training(
    path: pathlib.Path, target_name: str, ignore: list[str], texts: tuple[str, ...] = ()
) -> Table:
    """Opens a training table, without the ignored columns; labels and `texts` as they stand."""
    table = Table(path, (target_name, *texts))
    unknown = [name for name in ignore if name not in table.columns]
    if unknown or target_name in ignore:
        raise ValueError(
            message(
                "`--ignore` names feature columns of the table",
                repr((unknown or [target_name])[0]),
                f"Choose among {', '.join(c for c in table.columns if c != target_name)}",
            )
        )
    if table.rows < _FEWEST:
        raise ValueError(
            message(
                f"A training table needs at least {_FEWEST} rows",
                f"{table.rows} in {path}",
                "Add rows",
            )
        )
    return table.without(ignore)


def load_rows(
    path: pathlib.Path, schema: Schema, strict: bool = True, texts: tuple[str, ...] = ()
) -> AllRows:
    """Reads a table that must have a schema's columns and target.

    Args:
        path: The table.
        schema: Its columns.
        strict: Whether categories and empty cells that training has not seen are refused;
            otherwise they are counted on standard error.
        texts: Further columns to read as texts.
    """
    return as_rows(Table(path, [*schema.texts, schema.target, *texts]), schema, strict)


def as_rows(table: Table, schema: Schema, strict: bool = True) -> AllRows:
    """Returns all rows of a table, the matrix in a file; every cell that is odd is counted."""
    findings = Findings(strict)
    x, y = _file(len(schema.columns)), []
    for frame in table.batches():
        interrupts.check()
        part = matrix(frame, schema, findings)
        codes = target(frame, schema, findings)
        if not findings.faulty:  # else read on only to count
            x.append(part)
            y.append(codes)
    findings.check()
    for remark in findings.remarks():
        remarks.print(remark)
    return AllRows(table, x, np.concatenate(y))


def group_codes(table: Table, column: str) -> np.ndarray:
    """Returns which rows belong together `(b,)`, numbered in the order of the groups' names."""
    seen: dict[str, int] = {}
    found = []
    for frame in table.batches():
        names = texts(frame[column]).tolist()
        found.append(np.array([seen.setdefault(name, len(seen)) for name in names], "int32"))
    place = np.empty(len(seen), "int32")
    place[[seen[name] for name in sorted(seen)]] = np.arange(len(seen))
    return place[np.concatenate(found)]


def named(what: str, scored: int, rows: int) -> str:
    """Returns what is scored on, with its number of rows.

    Example:
    >>> from plait.cli.data import named
    >>> named("t.csv", 10, 10), named("t.csv", 10, 2000)
    ('t.csv (10 rows)', 't.csv (10 of its 2,000 rows)')
    """
    of = "" if scored == rows else f" of its {rows:,}"
    return f"{what} ({scored:,}{of} rows)"


def held_out_name(rows: int) -> str:
    """Returns what is held out of a table of so many rows, in words."""
    return f"{'a fifth' if rows <= _candidates() else 'rows'} held out of the table"


def divide(rows: AllRows, test: AllRows | None, test_name: str, seed: int) -> Parts:
    """Divides rows at random; the test table, where there is one, is only scored on."""
    order = np.random.default_rng(seed).permutation(len(rows.y))
    if test is None:
        held, order = np.split(order, [_few(len(order))])
        score, name = rows.take(held), named(held_out_name(len(rows.y)), len(held), len(held))
    else:
        score = test.drawn(seed)
        name = named(test_name, len(score.y), len(test.y))
    valid, train = np.split(order, [_few(len(order))])
    return Parts(rows, train, rows.take(valid), score, name)


def _candidates() -> int:
    """Returns from how many rows those to hold out are drawn: a fifth of them is measured on."""
    return round(MOST_SCORED / _SHARE)


def _few(rows: int) -> int:
    """Returns how many of so many rows to hold out: a fifth, or as many as are measured on."""
    return max(1, min(int(_SHARE * rows), MOST_SCORED))


def hold_out(rows: AllRows, task: str, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """Returns which rows `(b,)` to hold out: about a fifth, or of many as many as are scored on.

    Each class in its share of the rows, values evenly along the target, or a fifth of the groups,
    whole.

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
    shuffled = rng.permutation(b)[: _candidates()]
    # In the order of the target, every fifth row from a random start: strata of five.
    order = shuffled[np.argsort(rows.y[shuffled], kind="stable")]
    held = np.zeros(b, bool)
    every = round(1.0 / _SHARE)
    for first in range(0, len(order) - 1, every):
        block = order[first : first + every]
        held[rng.choice(block)] = True
    return held


def folds_of(y: np.ndarray, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """Returns for each row `(b,)` the number of the fold that holds it out, -1 for none.

    Five folds, or one for each of up to ten groups. Of many rows one part is enough: a fifth, or
    as many as anything is measured on.

    Args:
        y: Class codes `(b,)`, or values `(b,)`.
        groups: Which rows belong together `(b,)`, or `None`.
        seed: Of the draw.
    """
    folds, rows = _FOLDS, np.arange(len(y))
    if groups is not None:
        folds = max(2, min(_MOST_FOLDS, len(np.unique(groups))))
    else:
        rows = draw(rows, _candidates(), seed)
    number = fold_numbers(y[rows], folds, groups, seed)
    if len(y) > _MANY_ROWS:
        number = np.where(number < max(1, round(_SHARE * folds)), 0, -1)
    found = np.full(len(y), -1, "int8")
    found[rows] = number
    return found


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
    "IN_MEMORY",
    "AllRows",
    "Encoded",
    "Parts",
    "Rows",
    "as_rows",
    "check_groups",
    "divide",
    "draw",
    "features",
    "folds_of",
    "group_codes",
    "held_out_name",
    "hold_out",
    "load_rows",
    "load_training",
    "measured",
    "named",
]
