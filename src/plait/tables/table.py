"""A table in a file: read in batches, as often as it is asked, or whole."""

import copy
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from plait.errors import message
from plait.tables.numbered import Numbered
from plait.tables.reading import Frames, holds_texts, need_pandas, raw_batches

if TYPE_CHECKING:
    import pandas as pd


class Table:
    r"""A table that is read in batches, as often as it is asked: memory holds one of them.

    Columns of a CSV file that hold numbers in every row come back as numbers, all others as texts
    exactly as they stand in the file: the file is read once to tell. Digits that would not print
    back the same stay texts: 007, and integers beyond 2^53. A line of a JSON lines file is an
    object, whose values are read as cells of a CSV file. In an NPZ file each array with one axis is
    a column, and an array `x` of shape `(b, d)` gives the columns `x0`, `x1`, … A folder is read as
    the Parquet files in it; folders named `column=value` are a column. A column that a file lacks
    is empty there, and numbers of several types are read as the one that holds them all.

    Args:
        path: A file that ends in one of `ENDINGS`, or a folder of Parquet files.
        texts: Columns to leave as texts even if every cell is a number.
        size: Rows of a batch; `None` for as many as make about a million cells.

    Attributes:
        columns: Their names.
        rows: How many there are.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, is not what its ending says, or has two columns of one
            name.

    Example:
    >>> import pathlib, tempfile
    >>> from plait.tables import Table
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "t.csv"
    >>> _ = path.write_text("age,code\n40,7\n50,007\n")
    >>> table = Table(path, size=1)
    >>> table.columns, table.rows, [frame["code"].tolist() for frame in table.batches()]
    (['age', 'code'], 2, [['7'], ['007']])
    """

    def __init__(
        self, path: str | os.PathLike[str], texts: Sequence[str] = (), size: int | None = None
    ) -> None:
        self.path, self._size = path, size
        self._numbers = Numbered(texts) if holds_texts(path) else None
        self.rows = 0
        self._only: pd.DataFrame | None = None
        for frame in raw_batches(path, size):
            self._only = None if self.rows else frame
            self.rows += len(frame)
            self.columns = [str(name) for name in frame.columns]
            if self._numbers is not None:
                self._numbers.add(frame)
        if self._only is not None:
            self._only = self._typed(self._only)

    def batches(self) -> Frames:
        """Yields the rows in batches, whose index counts them from 0.

        Raises:
            ValueError: If the file is not what it was when it was first read.
        """
        if self._only is not None:  # it was read already
            yield self._only[self.columns]
            return
        rows = 0
        for frame in raw_batches(self.path, self._size):
            rows += len(frame)
            lost = [name for name in self.columns if name not in frame.columns]
            if lost:
                raise ValueError(self._changed(f"no column {lost[0]!r}, which was there before"))
            yield self._typed(frame)[self.columns]
        if rows != self.rows:
            raise ValueError(self._changed(f"{rows:,} rows where {self.rows:,} were before"))

    def without(self, names: Sequence[str]) -> "Table":
        """Returns the table without some columns."""
        found = copy.copy(self)
        found.columns = [name for name in self.columns if name not in names]
        return found

    def take(self, rows: np.ndarray) -> "pd.DataFrame":
        """Returns rows by number, in the order that is asked for, as one frame."""
        wanted = np.sort(rows)
        found = []
        for frame in self.batches():
            first = frame.index[0]
            near = np.searchsorted(wanted, [first, first + len(frame)])
            found.append(frame.iloc[wanted[slice(*near)] - first])
        return need_pandas().concat(found).loc[rows]

    def _changed(self, received: str) -> str:
        rule = f"{self.path} must stay as it is while it is read"
        return message(rule, received, "Wait until it is written")

    def _typed(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        return frame if self._numbers is None else self._numbers.typed(frame)


def read(path: str | os.PathLike[str], texts: Sequence[str] = ()) -> "pd.DataFrame":
    r"""Reads a whole table into memory, as `Table` reads it in batches.

    Args:
        path: A file that ends in one of `ENDINGS`, or a folder of Parquet files.
        texts: Columns to leave as texts even if every cell is a number.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, is not what its ending says, or has two columns of one
            name.

    Example:
    >>> import pathlib, tempfile
    >>> from plait.tables import read
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "t.csv"
    >>> _ = path.write_text("age,sex,code\n40,f,007\n50,m,010\n")
    >>> frame = read(path)
    >>> frame["age"].tolist(), frame["sex"].tolist(), frame["code"].tolist()
    ([40, 50], ['f', 'm'], ['007', '010'])
    """
    return need_pandas().concat(list(Table(path, texts).batches()))


def batches_of(table: "pd.DataFrame | Table") -> "Iterator[pd.DataFrame]":
    """Yields the rows of a table, which may be in memory."""
    if isinstance(table, Table):
        yield from table.batches()
    else:
        yield table


__all__ = ["Table", "batches_of", "read"]
