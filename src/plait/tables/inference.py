"""What the columns of a training table are."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plait.encoding import Column, Schema
from plait.encoding.schema import TASKS
from plait.errors import choose_from, message
from plait.tables import cells
from plait.tables.findings import Findings
from plait.tables.matrix import few, require
from plait.tables.summary import MOST_COUNTED, Feature, Target
from plait.tables.table import Table, batches_of

if TYPE_CHECKING:
    import pandas as pd

_MOST_CATEGORIES = 1000
_FEW_ROWS = 20  # below it every column has many levels


def infer(
    table: "pd.DataFrame | Table", target: str, task: str = "auto", plain: bool = False
) -> Schema:
    """Reads off a training table, in one pass over its batches, what its columns are.

    Numbers are standardised with their mean and standard deviation, an empty cell is taken as the
    median and marked by a feature of its own. The median of more than 65,536 numbers is that of a
    uniform sample of so many, the same in every run. Texts become categories in sorted order, an
    empty cell one of them. Dates and times become the numbers `PARTS`. With `task="auto"` a target
    of texts, of truth values, or of at most 20 different integers is classified; any other is
    regressed on.

    Args:
        table: A table of `b` rows, in memory or in batches.
        target: The target's column.
        task: `"auto"`, `"classification"` or `"regression"`.
        plain: Whether the model reads numbers alone: dates and empty cells are refused.

    Raises:
        ValueError: If the target is missing, has an empty cell, or holds one class only; if a
            column holds infinity, numbers beyond 32 bits, or what is neither number, text nor
            date; if a text column has more than 1,000 different texts. All such columns are named.

    Example:
    >>> import pandas as pd
    >>> from plait.tables import infer
    >>> schema = infer(pd.DataFrame({"age": [40, 50], "sex": ["f", "m"]}), "sex")
    >>> schema.task, schema.classes, schema.names
    ('classification', ('f', 'm'), ['age'])
    """
    if task not in ("auto", *TASKS):
        raise ValueError(choose_from("task", task, ("auto", *TASKS)))
    require(table, [target])
    names = [name for name in map(str, table.columns) if name != target]
    if not names:
        raise ValueError(
            message(
                "A training table needs a feature beside the target",
                f"only {target!r}",
                "Add a column to learn from",
            )
        )
    features, goal = [Feature(name, plain) for name in names], Target(target)
    keys = np.random.default_rng(0)
    for frame in batches_of(table):
        drawn = keys.random(len(frame))
        for feature in features:
            feature.add(frame[feature.name], drawn)
        goal.add(frame[target], drawn)
    findings = Findings()
    findings.rows = goal.rows
    found: list[Column] = []
    for feature in features:
        found += feature.columns(findings)
        if feature.kind == "text" and len(feature.categories) > _MOST_CATEGORIES:
            _note_many(feature, table, findings)
    findings.check()
    columns = tuple(found)
    task = goal.task if task == "auto" else task
    if task == "regression":
        center, spread = goal.scaling()
        return Schema(columns, target, task, center=center, spread=spread)
    return Schema(columns, target, task, goal.classes())


def doubts(table: "pd.DataFrame | Table", schema: Schema) -> list[str]:
    """Returns one sentence per column that is likely of no use: row numbers, names, nothing at all.

    Example:
    >>> import pandas as pd
    >>> from plait.tables import doubts, infer
    >>> frame = pd.DataFrame({"id": [f"n{i}" for i in range(30)], "y": [0.5] * 29 + [1.0]})
    >>> doubts(frame, infer(frame, "y"))
    ["'id' has 30 different texts in 30 rows: if it only names the rows, use --ignore id"]
    """
    rows = table.rows if isinstance(table, Table) else len(table)
    found = []
    for column in schema.columns:
        name = column.table_name
        if column.categories is None:
            nothing = column == Column(name, fill=0.0, optional=True)
            if nothing and all(frame[name].isna().all() for frame in batches_of(table)):
                found.append(f"{name!r} is empty in every row: it is of no use")
        elif len(column.categories) > rows / 2 and rows >= _FEW_ROWS:
            odd = _odd(name, table)
            found.append(
                f"{name!r} has {len(column.categories):,} different texts in {rows:,} rows: "
                + (
                    f"mostly numbers, but also {few(odd.words, 3)}"
                    if odd.numbers > rows / 2 and odd.others
                    else f"if it only names the rows, use --ignore {name}"
                )
            )
    return found


class _Odd(NamedTuple):
    """Texts of a column of which many are numbers.

    Attributes:
        numbers: How many cells hold a finite number.
        others: How many hold a text that is no number.
        row: The row of the first of these, counted from 1.
        words: The different ones, sorted.
    """

    numbers: int
    others: int
    row: int
    words: list[str]


def _odd(name: str, table: "pd.DataFrame | Table") -> _Odd:
    """Looks through a column once more for what is no number in it."""
    numbers = count = 0
    row, words = 1, set[str]()
    for frame in batches_of(table):
        values = frame[name]
        numbered, odd = cells.numbers(values)
        if odd.any() and not count:
            row = int(values.index[int(np.argmax(odd))]) + 1
        numbers, count = numbers + int(np.isfinite(numbered).sum()), count + int(odd.sum())
        if len(words) <= MOST_COUNTED:
            words |= {str(value) for value in values[odd]}
    return _Odd(numbers, count, row, sorted(words))


def _note_many(feature: Feature, table: "pd.DataFrame | Table", findings: Findings) -> None:
    """Notes a column that has too many different texts."""
    name, odd, number = feature.name, _odd(feature.name, table), len(feature.categories)
    mostly = odd.others < feature.rows / 2 and odd.words
    findings.note(
        name,
        f"A column of texts may have {_MOST_CATEGORIES:,} different ones",
        (f"{number:,}" if number <= MOST_COUNTED else f"more than {MOST_COUNTED:,}")
        + f" in the {feature.rows:,} rows of {name!r}"
        + (f", mostly numbers, but also {few(odd.words, 3)}" if mostly else ""),
        odd.others or feature.rows,
        "Mend these cells" if mostly else f"Leave it out with --ignore {name}",
        odd.row,
    )


__all__ = ["doubts", "infer"]
