"""What the columns of a training table are."""

from typing import TYPE_CHECKING

import numpy as np

from plait.encoding import Column, Schema, scaling
from plait.encoding.schema import PARTS, TASKS
from plait.errors import choose_from, message
from plait.tables import cells
from plait.tables.findings import Findings
from plait.tables.matrix import (
    LARGEST,
    few,
    finite,
    labels,
    moments,
    numbers,
    refuse_empty,
    require,
)

if TYPE_CHECKING:
    import pandas as pd

_MOST_CATEGORIES = 1000
_MOST_INTEGER_CLASSES = 20
_FEW_ROWS = 20  # below it every column has many levels


def infer(frame: "pd.DataFrame", target: str, task: str = "auto", plain: bool = False) -> Schema:
    """Reads off a training table what its columns are.

    Numbers are standardised with their mean and standard deviation, an empty cell is taken as the
    median and marked by a feature of its own. Texts become categories in sorted order, an empty
    cell one of them. Dates and times become the numbers `PARTS`. With `task="auto"` a target of
    texts, of truth values, or of at most 20 different integers is classified; any other is
    regressed on.

    Args:
        frame: A table of `b` rows.
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
    require(frame, [target])
    features = [name for name in map(str, frame.columns) if name != target]
    if not features:
        raise ValueError(
            message(
                "A training table needs a feature beside the target",
                f"only {target!r}",
                "Add a column to learn from",
            )
        )
    findings = Findings()
    findings.rows = len(frame)
    found = [_columns(frame[name], name, findings, plain) for name in features]
    findings.check()
    columns = tuple(column for several in found for column in several)
    values = frame[target]
    if task == "auto":
        task = _guess(values)
    if task == "regression":
        return _regression(columns, values, target)
    classes = tuple(sorted(set(labels(values, target).tolist())))
    if len(classes) < 2:
        raise ValueError(
            message(
                "A target needs at least two classes",
                f"{classes[0]!r} in all {len(values)} rows of {target!r}",
                "Choose another target, or add rows of other classes",
            )
        )
    return Schema(columns, target, task, classes)


def doubts(frame: "pd.DataFrame", schema: Schema) -> list[str]:
    """Returns one sentence per column that is likely of no use: row numbers, names, nothing at all.

    Example:
    >>> import pandas as pd
    >>> from plait.tables import doubts, infer
    >>> frame = pd.DataFrame({"id": [f"n{i}" for i in range(30)], "y": [0.5] * 29 + [1.0]})
    >>> doubts(frame, infer(frame, "y"))
    ["'id' has 30 different texts in 30 rows: if it only names the rows, use --ignore id"]
    """
    found = []
    for column in schema.columns:
        name = column.table_name
        if column.categories is None:
            if not column.part and frame[name].isna().all():
                found.append(f"{name!r} is empty in every row: it is of no use")
        elif len(column.categories) > len(frame) / 2 and len(frame) >= _FEW_ROWS:
            numbered, odd = cells.numbers(frame[name])
            mostly = np.isfinite(numbered).mean() > 0.5 and odd.any()
            words = sorted({str(value) for value in frame[name][odd]})
            found.append(
                f"{name!r} has {len(column.categories):,} different texts in {len(frame):,} rows: "
                + (
                    f"mostly numbers, but also {few(words, 3)}"
                    if mostly
                    else f"if it only names the rows, use --ignore {name}"
                )
            )
    return found


def _columns(values: "pd.Series", name: str, findings: Findings, plain: bool) -> tuple[Column, ...]:
    """Returns what one column of a table becomes; notes what cannot be read."""
    kind = cells.kind_of(values)
    if kind == "nothing" or (plain and kind == "moment"):
        findings.fault(
            name,
            f"Column {name!r} must hold numbers"
            + ("" if plain else ", texts, dates or truth values"),
            f"{values.iloc[0]!r} ({values.dtype})",
            values,
            np.ones(len(values), bool),
            f"Turn it into numbers, or leave it out with --ignore {name}",
        )
        return ()
    if plain:
        refuse_empty(values, name, findings)
    if kind == "number":
        found = numbers(values, name, findings)
        return _number(found, values, name, findings, plain)
    if kind == "moment":
        return _parts(moments(values, name, findings), name)
    return _categories(values, name, findings)


def _number(
    found: np.ndarray, values: "pd.Series", name: str, findings: Findings, plain: bool
) -> tuple[Column, ...]:
    there = found[np.isfinite(found)]
    if not len(there):
        return (Column(name, fill=0.0, optional=True),)
    mean, scale = scaling(there)
    if scale < 1e-5 * abs(mean) and np.ptp(there) > 0:
        findings.fault(
            name,
            f"Column {name!r} must vary enough for 32-bit numbers",
            f"values around {mean:.9g} with a standard deviation of {scale:.3g}",
            values,
            np.ones(len(values), bool),
            "Subtract a constant from the column first",
        )
    fill = None if plain else float(np.median(there))
    return (Column(name, None, mean, scale, fill, not plain and len(there) < len(found)),)


def _parts(found: dict[str, np.ndarray], name: str) -> tuple[Column, ...]:
    """Returns the columns of those parts of a date that vary; of the year if none does."""
    columns: list[Column] = []
    there = {part: found[part][np.isfinite(found[part])] for part in PARTS}
    varying = [part for part in PARTS if len(there[part]) and np.ptp(there[part]) > 0]
    for part in varying or [part for part in PARTS if len(there[part])][:1]:
        mean, scale = scaling(there[part])
        optional = not columns and len(there[part]) < len(found[part])
        median = float(np.median(there[part]))
        columns.append(Column(f"{name} ({part})", None, mean, scale, median, optional, name, part))
    return tuple(columns)


def _categories(values: "pd.Series", name: str, findings: Findings) -> tuple[Column, ...]:
    texts = cells.texts(values)
    categories = tuple(sorted(set(texts.tolist())))
    if len(categories) > _MOST_CATEGORIES:
        _, odd = cells.numbers(values)
        words = sorted({str(value) for value in values[odd]})
        mostly = odd.sum() < len(texts) / 2
        findings.fault(
            name,
            f"A column of texts may have {_MOST_CATEGORIES:,} different ones",
            f"{len(categories):,} in the {len(texts):,} rows of {name!r}"
            + (f", mostly numbers, but also {few(words, 3)}" if mostly and words else ""),
            values,
            odd if odd.any() else np.ones(len(texts), bool),
            "Mend these cells" if mostly and words else f"Leave it out with --ignore {name}",
        )
    return (Column(name, categories),)


def _regression(columns: tuple[Column, ...], values: "pd.Series", target: str) -> Schema:
    found = finite(values, target)
    center, spread = scaling(found)
    if np.ptp(found) == 0:
        raise ValueError(
            message(
                "A target must vary",
                f"{found[0]:g} in all {len(found)} rows of {target!r}",
                "Choose another target",
            )
        )
    if np.abs(found).max() > LARGEST / 1e3:
        raise ValueError(
            message(
                f"Target {target!r} must be well within 32-bit numbers",
                f"values up to {np.abs(found).max():.3g}",
                "Divide the column by a constant first",
            )
        )
    return Schema(columns, target, "regression", center=center, spread=spread)


def _guess(values: "pd.Series") -> str:
    if cells.kind_of(values) != "number":
        found, odd = cells.numbers(values) if cells.kind_of(values) == "text" else (None, None)
        texts = set(cells.texts(values).tolist()) - {""}
        if found is None or odd is None or odd.any() or texts <= {"True", "False"}:
            return "classification"
        if any(
            text.lstrip("+-").startswith("0") and text.isdigit() and len(text) > 1 for text in texts
        ):
            return "classification"
    else:
        found, _ = cells.numbers(values)
    found = found[np.isfinite(found)]
    whole = bool((found == np.round(found)).all())
    few_values = len(np.unique(found)) <= _MOST_INTEGER_CLASSES
    return "classification" if whole and few_values else "regression"


__all__ = ["doubts", "infer"]
