"""Conversion of a table to the matrix that a model reads, and of its target to codes or numbers."""

from typing import TYPE_CHECKING, Any

import numpy as np

from plait.encoding import Schema
from plait.encoding.schema import Column
from plait.errors import message
from plait.tables import cells
from plait.tables.findings import Findings
from plait.tables.reading import nearest

if TYPE_CHECKING:
    import pandas as pd

    from plait.tables.table import Table

LARGEST = float(np.finfo("float32").max)


def matrix(frame: "pd.DataFrame", schema: Schema, findings: Findings | None = None) -> np.ndarray:
    """Returns the raw matrix a model reads: numbers as they are, categories as codes.

    An empty cell of a number is NaN where the schema has a value to fill it with.

    Args:
        frame: A table of `b` rows with the schema's columns in any order, and possibly others.
        schema: The columns at training time.
        findings: Collects cells that cannot be read and values that are new; the caller raises the
            error. Without it, both raise here.

    Returns:
        Array `(b, c)` in float32.

    Raises:
        ValueError: If a column is missing; without `findings` also if one holds infinity, text
            in a column of numbers, a text that was not seen in training, or an empty cell in a
            column that had none in training. The error names all such columns.
    """
    require(frame, schema.names)
    noted = Findings() if findings is None else findings
    noted.rows += len(frame)
    found: dict[str, np.ndarray] = {}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for column in schema.columns:
        values = frame[column.table_name]
        if column.categories is not None:
            found[column.name] = _codes(values, column, noted)
        elif column.part:
            if column.table_name not in parts:
                parts[column.table_name] = moments(values, column.table_name, noted)
            found[column.name] = parts[column.table_name][column.part]
            if column.part == next(
                c.part for c in schema.columns if c.table_name == column.table_name
            ):
                _empty_cells(values, column, schema, noted)
        else:
            found[column.name] = numbers(values, column.table_name, noted)
            _empty_cells(values, column, schema, noted)
    if findings is None:
        noted.check()
    return np.stack([found[c.name] for c in schema.columns], axis=1).astype("float32")


def target(frame: "pd.DataFrame", schema: Schema, findings: Findings | None = None) -> np.ndarray:
    """Returns the target: class codes `(b,)` as int32, or numbers `(b,)` as float64.

    Args:
        frame: A table of `b` rows.
        schema: The target at training time.
        findings: As for `matrix`, which counts the rows.

    Raises:
        ValueError: If the target is missing; without `findings` also if it is not finite, or holds
            a label unknown at training.
    """
    require(frame, [schema.target])
    values = frame[schema.target]
    noted = findings
    if noted is None:
        noted = Findings()
        noted.rows = len(frame)
    if schema.task == "regression":
        found = finite(values, schema.target, noted)
    else:
        found = _classes(values, schema, noted)
    if findings is None:
        noted.check()
    return found


def _classes(values: "pd.Series", schema: Schema, findings: Findings) -> np.ndarray:
    """Returns class codes `(b,)`, -1 where there is no label, or none seen in training."""
    found = label_texts(values, schema.target, findings)
    # Compared as texts: 3 may be read as a number from one file and as a text from another.
    codes = {str(label): i for i, label in enumerate(schema.classes)}
    numbered = np.array([codes.get(label, -1) for label in found.tolist()], "int32")
    unknown = (numbered < 0) & (found != None)  # noqa: E711 - of each cell
    if unknown.any():
        label = found[int(np.argmax(unknown))]
        findings.fault(
            schema.target,
            f"Target {schema.target!r} must hold one of the model's {len(schema.classes)} "
            f"classes ({few(schema.classes)})",
            repr(int(label) if cells.prints_back(label) else label),
            values,
            unknown,
            "Remove these rows, or train on a table that has them",
        )
    return numbered


def numbers(values: "pd.Series", name: str, findings: Findings) -> np.ndarray:
    """Returns a column of numbers `(b,)`, NaN where it is empty; records cells with no number."""
    found, odd = cells.numbers(values)
    if odd.any():
        findings.fault(
            name,
            f"Column {name!r} must hold numbers",
            repr(values.iloc[int(np.argmax(odd))]),
            values,
            odd,
            "Mend these cells; decimals are written with a point",
        )
    large = np.abs(np.where(np.isnan(found), 0.0, found)) > LARGEST
    if large.any():
        first = found[int(np.argmax(large))]
        findings.fault(
            name,
            f"Column {name!r} must hold a finite value of 32 bits",
            "infinity" if np.isinf(first) else f"{first:g}",
            values,
            large,
            "Mend the cell, or divide the column by a constant first",
        )
    return np.where(large, np.nan, found)


def moments(values: "pd.Series", name: str, findings: Findings) -> dict[str, np.ndarray]:
    """Returns the parts of a column of dates or times; records cells that are no dates or times."""
    parts, odd = cells.moments(values)
    if odd.any():
        findings.fault(
            name,
            f"Column {name!r} must hold dates or times",
            repr(values.iloc[int(np.argmax(odd))]),
            values,
            odd,
            "Write them as 2024-01-31 or 2024-01-31 12:30",
        )
    return parts


def finite(values: "pd.Series", name: str, findings: Findings) -> np.ndarray:
    """Returns a target of numbers `(b,)` as float64; records empty cells and others."""
    found = numbers(values, name, findings)
    refuse_empty(values, name, findings)
    return found


def refuse_empty(values: "pd.Series", name: str, findings: Findings) -> None:
    """Records empty cells as faults."""
    missing = np.asarray(values.isna())
    if missing.any():
        findings.fault(
            name,
            f"Column {name!r} must hold a value in every row",
            "an empty cell",
            values,
            missing,
            "Fill the cell, or remove the row",
        )


def label_texts(values: "pd.Series", name: str, findings: Findings) -> np.ndarray:
    """Returns class labels `(b,)` as texts: unchanged ones, or integers as they print.

    An empty cell, and a number that is no integer, is `None` and recorded.
    """
    refuse_empty(values, name, findings)
    if cells.kind_of(values) != "number" or not np.issubdtype(_type(values), np.number):
        found = values.astype(str).to_numpy(dtype=object, copy=True)
        found[np.asarray(values.isna())] = None
        return found
    if np.issubdtype(_type(values), np.integer):
        return np.array([str(int(value)) for value in values], dtype=object)
    numbered = numbers(values, name, findings)
    there = np.isfinite(numbered)
    broken = there & (numbered != np.round(numbered))
    if broken.any():
        findings.fault(
            name,
            f"Class labels in {name!r} are texts or integers",
            f"{numbered[int(np.argmax(broken))]:g}",
            values,
            broken,
            "Use --task regression, or write the classes as texts",
        )
    whole = there & ~broken
    return np.array(
        [str(int(n)) if ok else None for n, ok in zip(numbered, whole, strict=True)], dtype=object
    )


def _type(values: "pd.Series") -> Any:
    return values.dtype if isinstance(values.dtype, np.dtype) else values.to_numpy().dtype


def _codes(values: "pd.Series", column: Column, findings: Findings) -> np.ndarray:
    """Returns the codes of categories `(b,)`, -1 for a category that training has not seen."""
    texts = cells.texts(values)
    categories = column.categories or ()
    known = {text: i for i, text in enumerate(categories)}
    if cells.truth_values(known.keys() - {""}):
        texts = np.array([_truth(text) for text in texts.tolist()], dtype=object)
    found = np.array([known.get(text, -1) for text in texts.tolist()], "float32")
    new = found < 0
    if not new.any():
        return found
    if not findings.strict:
        findings.unknown(column.name, texts[new].tolist())
        return found
    first = texts[int(np.argmax(new))]
    findings.fault(
        column.table_name,
        f"Column {column.name!r} must hold one of the {len(known)} categories seen in "
        f"training ({few(categories)})",
        repr(first) if first else "an empty cell",
        values,
        new,
        "Mend or remove these rows, or train on a table that has them",
    )
    return found


def _truth(text: str) -> str:
    """Returns a truth value in one spelling, any other text as it stands."""
    return next(iter(cells.truth_values({text})), text)


def _empty_cells(values: "pd.Series", column: Column, schema: Schema, findings: Findings) -> None:
    """Counts empty cells of a column that had none in training, or records them as faults."""
    missing = np.asarray(values.isna())
    if not missing.any() or column.optional:
        return
    if findings.strict or column.fill is None:
        refuse_empty(values, column.table_name, findings)
    else:
        findings.empty(column.table_name, int(missing.sum()))


def require(frame: "pd.DataFrame | Table", names: list[str]) -> None:
    """Raises unless a table has these columns."""
    there = [str(name) for name in frame.columns]
    missing = [name for name in names if name not in there]
    if not missing:
        return
    spelled = [nearest(name, there) for name in missing]
    near = [repr(name) for name in spelled if name]
    hint = "Check the spelling and the header line"
    if near:
        hint = f"Did you mean {', '.join(near[:8])}"
    if len(there) == 1 and any(mark in there[0] for mark in ";\t|"):
        hint = "Separate the cells by commas"
    raise ValueError(
        message(
            f"The table must have the column{'s' * (len(missing) > 1)} {few(missing)}",
            f"the columns {few(there)}",
            hint,
        )
    )


def few(names: Any, most: int = 8) -> str:
    """Returns the first names, and how many more there are."""
    shown = [repr(name) for name in list(names)[:most]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


__all__ = [
    "LARGEST",
    "few",
    "finite",
    "label_texts",
    "matrix",
    "moments",
    "numbers",
    "refuse_empty",
    "require",
    "target",
]
