"""What is wrong with the cells of a table, or new in them, counted over all of its rows."""

import collections
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plait.errors import message

if TYPE_CHECKING:
    import pandas as pd


class Fault(NamedTuple):
    """Cells of one column that cannot be read.

    Attributes:
        rule: What must hold.
        received: The first such cell, in words.
        row: Its row, counted from 1.
        remedy: What to do.
    """

    rule: str
    received: str
    row: int
    remedy: str


class Findings:
    """Collects, batch by batch, what a table holds that a model has not learned to read.

    Args:
        strict: Whether categories that training has not seen, and empty cells in columns that had
            none, are faults too. Otherwise they are taken as unknown, and counted.

    Example:
    >>> import pandas as pd
    >>> from plait.tables import Findings, infer, matrix
    >>> schema = infer(pd.DataFrame({"sex": ["f", "m"], "y": [0.5, 1.0]}), "y")
    >>> findings = Findings(strict=False)
    >>> matrix(pd.DataFrame({"sex": ["x", "f"]}), schema, findings).tolist()
    [[-1.0], [0.0]]
    >>> findings.remarks()
    ["'sex': 1 of 2 rows holds a category not seen in training ('x'): taken as unknown"]
    """

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        self.rows = 0
        self._faults: dict[tuple[str, str], Fault] = {}
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._unknown: dict[str, collections.Counter[str]] = {}
        self._empty: collections.Counter[str] = collections.Counter()

    @property
    def faulty(self) -> bool:
        """Whether a cell was found that cannot be read."""
        return bool(self._faults)

    def fault(
        self,
        column: str,
        rule: str,
        received: str,
        values: "pd.Series",
        wrong: np.ndarray,
        remedy: str,
    ) -> None:
        """Notes cells that cannot be read; the first is shown, all are counted.

        Args:
            column: The column's name.
            rule: What must hold.
            received: The first such cell, in words.
            values: The column, whose index counts the rows from 0.
            wrong: Which of its cells, `(b,)`.
            remedy: What to do.
        """
        row = int(values.index[int(np.argmax(wrong))]) + 1
        self.note(column, rule, received, int(wrong.sum()), remedy, row)

    def note(
        self, column: str, rule: str, received: str, count: int, remedy: str, row: int = 1
    ) -> None:
        """Notes so many cells that cannot be read, the first of them in a row counted from 1."""
        self._faults.setdefault((column, rule), Fault(rule, received, row, remedy))
        self._counts[column, rule] += count

    def include(self, other: "Findings") -> None:
        """Notes the cells that another has found and that cannot be read."""
        for (column, rule), fault in other._faults.items():
            count = other._counts[column, rule]
            self.note(column, rule, fault.received, count, fault.remedy, fault.row)

    def unknown(self, column: str, texts: list[str]) -> None:
        """Counts categories that training has not seen."""
        self._unknown.setdefault(column, collections.Counter()).update(texts)

    def empty(self, column: str, count: int) -> None:
        """Counts empty cells in a column of numbers that had none in training."""
        self._empty[column] += count

    def check(self) -> None:
        """Raises if a cell cannot be read, naming every such column.

        Raises:
            ValueError: With one sentence per column.
        """
        texts = [
            message(
                fault.rule,
                f"{fault.received} in row {fault.row}{self._such(key)}",
                fault.remedy,
            )
            for key, fault in self._faults.items()
        ]
        if texts:
            head = f"{len(texts)} columns cannot be read. " if len(texts) > 1 else ""
            raise ValueError(head + " ".join(texts))

    def _such(self, key: tuple[str, str]) -> str:
        count = self._counts[key]
        return f" ({count:,} such row{'s' * (count > 1)} of {self.rows:,})"

    def remarks(self) -> list[str]:
        """Returns one sentence per column with unknown categories or new empty cells."""
        found = []
        for column, texts in self._unknown.items():
            names = ", ".join(
                ("an empty cell" if not text else repr(text)) + (f", {count:,} times" * (count > 1))
                for text, count in texts.most_common(3)
            )
            more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
            total = sum(texts.values())
            found.append(
                f"{column!r}: {total:,} of {self.rows:,} rows hold{'s' * (total == 1)} a category "
                f"not seen in training ({names}{more}): taken as unknown"
            )
        for column, count in self._empty.items():
            found.append(
                f"{column!r}: {count:,} of {self.rows:,} rows {'is' if count == 1 else 'are'} "
                "empty, which none was in training: taken as the median"
            )
        return found


__all__ = ["Fault", "Findings"]
