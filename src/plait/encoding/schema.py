"""The schema: how a model encodes the columns of a table, in plain values that fit in a config."""

import dataclasses
from typing import Any

import numpy as np

from plait.errors import message

TASKS = ("classification", "regression")
PARTS = ("year", "month", "day", "weekday", "hour")


@dataclasses.dataclass(frozen=True)
class Column:
    """One feature column of the matrix that a model reads.

    Args:
        name: The column's name, also where it is part of a date: `"day (month)"`.
        categories: The texts it may hold, in the order of their codes; `None` for numbers. The
            empty text is the category of an empty cell.
        mean: What is subtracted from a number.
        scale: What a number is divided by, above zero.
        fill: The value that replaces a missing number; `None` makes it an error.
        optional: Whether a second feature marks where the number is missing.
        source: The table's column it is read from, if that has another name.
        part: The part of a date or time, one of `PARTS`, if it is one.

    Example:
    >>> from plait.encoding import Column
    >>> Column("colour", categories=("blue", "red")).width
    2
    """

    name: str
    categories: tuple[str, ...] | None = None
    mean: float = 0.0
    scale: float = 1.0
    fill: float | None = None
    optional: bool = False
    source: str = ""
    part: str = ""

    @property
    def table_name(self) -> str:
        """The table's column it is read from."""
        return self.source or self.name

    @property
    def width(self) -> int:
        """How many features the column becomes."""
        return 1 + self.optional if self.categories is None else len(self.categories)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The best expert and the best constant weights on the training data: rivals of a gate.

    Stored with the model, so that a later score does not choose them on the rows it is measured on.

    Args:
        expert: Index of the expert with the lowest training loss.
        weights: One weight per expert, the best constant ones on the training data.
        names: The name of each expert in a report.
    """

    expert: int
    weights: tuple[float, ...]
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Schema:
    """The columns that a model reads, and the meaning of its output.

    Args:
        columns: The feature columns, in the order of the model's input.
        target: The target's name.
        task: `"classification"` or `"regression"`.
        classes: Class labels in the order of the output's units; empty for regression. Labels
            are texts or integers, as in the data.
        center: Mean of a regression target in the training data.
        spread: Its standard deviation.
        baseline: The best single expert and the best constant weights, once known.
        record: How the model was made, in JSON values: options, versions, other candidates.

    Example:
    >>> from plait.encoding import Column, Schema
    >>> columns = (Column("age", mean=40.0, scale=10.0),)
    >>> schema = Schema(columns, "sex", "classification", classes=("f", "m"))
    >>> schema == Schema.from_config(schema.to_config())
    True
    """

    columns: tuple[Column, ...]
    target: str
    task: str
    classes: tuple[str | int, ...] = ()
    center: float = 0.0
    spread: float = 1.0
    baseline: Baseline | None = None
    record: dict[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """The names of the table's columns that features are read from."""
        return list(dict.fromkeys(column.table_name for column in self.columns))

    @property
    def runs(self) -> list[tuple[tuple[Column, ...], int]]:
        """Groups of columns, each with its first position: adjacent numbers, or one category."""
        found: list[tuple[tuple[Column, ...], int]] = []
        for i, column in enumerate(self.columns):
            last = found[-1][0] if found else ()
            if column.categories is None and last and last[-1].categories is None:
                found[-1] = ((*last, column), found[-1][1])
            else:
                found.append(((column,), i))
        return found

    @property
    def features(self) -> list[str]:
        """The names of the encoded features, `(d,)`.

        Example:
        >>> from plait.encoding import Column, Schema
        >>> columns = (Column("age", optional=True), Column("sex", ("f", "m")))
        >>> Schema(columns, "y", "regression").features
        ['age', 'age is empty', 'sex = f', 'sex = m']
        """
        names: list[str] = []
        for columns, _ in self.runs:
            if columns[0].categories is None:
                names += [column.name for column in columns]
                names += [f"{column.name} is empty" for column in columns if column.optional]
            else:
                names += [f"{columns[0].name} = {text}" for text in columns[0].categories]
        return names

    @property
    def texts(self) -> list[str]:
        """The columns to read as texts in any case, including the target."""
        found = [column.table_name for column in self.columns if column.categories is not None]
        return found + [self.target] * any(isinstance(label, str) for label in self.classes)

    @property
    def width(self) -> int:
        """How many features the columns become."""
        return sum(column.width for column in self.columns)

    def to_config(self) -> dict[str, Any]:
        """Returns the schema as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Schema":
        """Returns the schema that `to_config` described."""
        values = dict(config)
        values["columns"] = tuple(_column(column) for column in config["columns"])
        values["classes"] = tuple(config["classes"])
        if config["baseline"] is not None:
            kept = config["baseline"]
            values["baseline"] = Baseline(
                int(kept["expert"]), tuple(kept["weights"]), tuple(kept["names"])
            )
        return cls(**values)


def _column(config: dict[str, Any]) -> Column:
    categories = config["categories"]
    return Column(**{**config, "categories": None if categories is None else tuple(categories)})


def agree(schemas: list[Schema], names: list[str]) -> None:
    """Raises unless all schemas have the same columns and the same kind of output.

    Args:
        schemas: At least one schema.
        names: The name of each in an error, for example its file's name.

    Raises:
        ValueError: Naming the first schema that differs from the first, and in what.
    """
    first = schemas[0]
    for schema, name in zip(schemas[1:], names[1:], strict=True):
        parts: list[tuple[str, Any, Any]] = [
            ("tasks", first.task, schema.task),
            ("targets", first.target, schema.target),
            ("class labels", first.classes, schema.classes),
            (
                "columns",
                [column.name for column in first.columns],
                [column.name for column in schema.columns],
            ),
        ]
        # Of files with the same columns; the first that differs is named.
        parts += [
            (f"categories of {ours.name!r}", ours.categories, theirs.categories)
            for ours, theirs in zip(first.columns, schema.columns, strict=False)
        ]
        for what, a, b in parts:
            if a != b:
                raise ValueError(
                    message(
                        f"Models to blend must have the same {what}",
                        f"{names[0]} with {_short(a)}, {name} with {_short(b)}",
                        "Fit them on tables with the same columns, categories and classes, with "
                        "the same --ignore",
                    )
                )


def _short(value: Any, limit: int = 120) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def scaling(values: np.ndarray) -> tuple[float, float]:
    """Returns mean and standard deviation of a column, the latter 1 where nothing varies.

    Example:
    >>> import numpy as np
    >>> from plait.encoding.schema import scaling
    >>> scaling(np.array([1.0, 3.0])), scaling(np.array([5.0, 5.0]))
    ((2.0, 1.0), (5.0, 1.0))
    """
    values = np.asarray(values, "float64")
    return standard(float(values.mean()), float(values.std()))


def standard(mean: float, deviation: float) -> tuple[float, float]:
    """Returns mean and standard deviation, the latter 1 where it is no more than rounding.

    Example:
    >>> from plait.encoding.schema import standard
    >>> standard(1e6, 1e-9)
    (1000000.0, 1.0)
    """
    return mean, deviation if deviation > 1e-12 * max(1.0, abs(mean)) else 1.0


__all__ = ["PARTS", "TASKS", "Baseline", "Column", "Schema", "agree", "scaling", "standard"]
