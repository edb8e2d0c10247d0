"""From a table to the matrix a model reads, and back from outputs to labels."""

from typing import TYPE_CHECKING, Any

import numpy as np

from plait.errors import choose_from, message
from plait.tables.reading import need_pandas
from plait.tables.schema import TASKS, Column, Schema, scaling

if TYPE_CHECKING:
    import pandas as pd

_MOST_CATEGORIES = 1000
_MOST_INTEGER_CLASSES = 20


def infer(frame: "pd.DataFrame", target: str, task: str = "auto") -> Schema:
    """Reads off a training table what its columns are.

    Numbers are standardised with their mean and standard deviation, texts become categories in
    sorted order. With `task="auto"` a target of texts, of truth values, or of at most 20 different
    integers is classified; any other is regressed on.

    Args:
        frame: A table of `b` rows.
        target: The target's column.
        task: `"auto"`, `"classification"` or `"regression"`.

    Raises:
        ValueError: If the target is missing or holds one class only; if a value is missing, NaN or
            infinite; if a column holds what is neither number nor text; if a text column has more
            than 1,000 different texts.

    Example:
    >>> import pandas as pd
    >>> from plait.tables import infer
    >>> schema = infer(pd.DataFrame({"age": [40, 50], "sex": ["f", "m"]}), "sex")
    >>> schema.task, schema.classes, schema.names
    ('classification', ('f', 'm'), ['age'])
    """
    if task not in ("auto", *TASKS):
        raise ValueError(choose_from("task", task, ("auto", *TASKS)))
    _require(frame, [target])
    features = [name for name in map(str, frame.columns) if name != target]
    if not features:
        raise ValueError(
            message(
                "A training table needs a feature beside the target",
                f"only {target!r}",
                "Add a column to learn from",
            )
        )
    columns = tuple(_column(frame, name) for name in features)
    values = frame[target]
    if task == "auto":
        task = _guess(values)
    if task == "regression":
        numbers = _finite(values, target)
        center, spread = scaling(numbers)
        if np.ptp(numbers) == 0:
            raise ValueError(
                message(
                    "A target must vary",
                    f"{numbers[0]:g} in all {len(numbers)} rows of {target!r}",
                    "Choose another target",
                )
            )
        return Schema(columns, target, task, center=center, spread=spread)
    labels = _labels(values, target)
    classes = tuple(sorted(set(labels.tolist())))
    if len(classes) < 2:
        raise ValueError(
            message(
                "A target needs at least two classes",
                f"{classes[0]!r} in all {len(labels)} rows of {target!r}",
                "Choose another target, or add rows of other classes",
            )
        )
    return Schema(columns, target, task, classes)


def matrix(frame: "pd.DataFrame", schema: Schema) -> np.ndarray:
    """Returns the raw matrix a model reads: numbers as they are, categories as codes.

    Args:
        frame: A table of `b` rows with the schema's columns in any order, others beside them.
        schema: What the columns were at training time.

    Returns:
        Array `(b, c)` in float32.

    Raises:
        ValueError: If a column is missing, holds NaN or infinity, holds text where numbers were
            at training time, or a text that was not seen then.
    """
    _require(frame, schema.names)
    return np.stack([_codes(frame[c.name], c) for c in schema.columns], axis=1).astype("float32")


def target(frame: "pd.DataFrame", schema: Schema) -> np.ndarray:
    """Returns the target: class codes `(b,)` as int32, or numbers `(b,)` as float64.

    Raises:
        ValueError: If the target is missing, not finite, or holds a label unknown at training.
    """
    _require(frame, [schema.target])
    values = frame[schema.target]
    if schema.task == "regression":
        return _finite(values, schema.target)
    labels = _labels(values, schema.target)
    # As texts: 3 may be a number in one file, and in another a text beside other texts.
    codes = {str(label): i for i, label in enumerate(schema.classes)}
    found = np.array([codes.get(str(label), -1) for label in labels.tolist()], "int32")
    if (found < 0).any():
        i = int(np.argmax(found < 0))
        raise ValueError(
            message(
                f"Target {schema.target!r} must hold one of the model's {len(schema.classes)} "
                f"classes ({_few(schema.classes)})",
                f"{labels[i]!r} in row {_row(values, i)}",
                "Remove these rows, or train on a table that has them",
            )
        )
    return found


def _column(frame: "pd.DataFrame", name: str) -> Column:
    values = frame[name]
    if _is_number(values):
        numbers = _finite(values, name)
        mean, scale = scaling(numbers)
        if scale < 1e-5 * abs(mean) and np.ptp(numbers) > 0:
            raise ValueError(
                message(
                    f"Column {name!r} must vary enough for 32-bit numbers",
                    f"values around {mean:.9g} with a standard deviation of {scale:.3g}",
                    "Subtract a constant from the column first",
                )
            )
        return Column(name, None, mean, scale)
    texts = _texts(values, name)
    categories = tuple(sorted(set(texts.tolist())))
    if len(categories) > _MOST_CATEGORIES:
        numbers = need_pandas().to_numeric(values, errors="coerce")
        odd = [text for text, bad in zip(texts, numbers.isna(), strict=True) if bad]
        mostly_numbers = len(odd) < len(texts) / 2
        raise ValueError(
            message(
                f"A column of texts may have {_MOST_CATEGORIES:,} different ones",
                f"{len(categories):,} in the {len(texts):,} rows of {name!r}"
                + (f", mostly numbers, but also {_few(sorted(set(odd)), 3)}" * mostly_numbers),
                "Mend these cells" if mostly_numbers else f"Leave it out with --ignore {name}",
            )
        )
    return Column(name, categories)


def _codes(values: "pd.Series", column: Column) -> np.ndarray:
    if column.categories is None:
        return _finite(values, column.name)
    texts = _texts(values, column.name)
    known = {text: i for i, text in enumerate(column.categories)}
    found = np.array([known.get(text, -1) for text in texts.tolist()], "float32")
    if (found < 0).any():
        i = int(np.argmax(found < 0))
        raise ValueError(
            message(
                f"Column {column.name!r} must hold one of the {len(known)} categories seen in "
                f"training ({_few(column.categories)})",
                f"{texts[i]!r} in row {_row(values, i)}",
                "Mend or remove these rows, or train on a table that has them",
            )
        )
    return found


def _guess(values: "pd.Series") -> str:
    types = need_pandas().api.types
    if not _is_number(values) or types.is_bool_dtype(values):
        return "classification"
    numbers = np.asarray(values, "float64")
    numbers = numbers[np.isfinite(numbers)]
    whole = bool((numbers == np.round(numbers)).all())
    few = len(np.unique(numbers)) <= _MOST_INTEGER_CLASSES
    return "classification" if whole and few else "regression"


def _labels(values: "pd.Series", name: str) -> np.ndarray:
    """Returns class labels `(b,)` as Python integers or texts."""
    if not _is_number(values):
        return _texts(values, name)
    numbers = _finite(values, name)
    if (numbers != np.round(numbers)).any():
        i = int(np.argmax(numbers != np.round(numbers)))
        raise ValueError(
            message(
                f"Class labels in {name!r} are texts or integers",
                f"{numbers[i]:g} in row {_row(values, i)}",
                "Use --task regression, or write the classes as texts",
            )
        )
    return numbers.astype("int64").astype(object)


def _finite(values: "pd.Series", name: str) -> np.ndarray:
    """Returns a column of finite numbers `(b,)` as float64."""
    pandas = need_pandas()
    if not _is_number(values):
        numbers = pandas.to_numeric(values, errors="coerce")
        odd = np.asarray(numbers.isna() & values.notna())
        if odd.any() or not len(values):
            i = int(np.argmax(odd))
            raise ValueError(
                message(
                    f"Column {name!r} must hold numbers",
                    f"{str(values.iloc[i])!r} in row {_row(values, i)}",
                    "Mend the cell, or remove the row",
                )
            )
        values = numbers
    numbers = values.to_numpy(dtype="float64", na_value=np.nan)
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        raise ValueError(_missing(name, numbers[np.argmax(wrong)], values, wrong))
    return numbers


def _texts(values: "pd.Series", name: str) -> np.ndarray:
    """Returns a column of texts `(b,)`; truth values and integers are written out."""
    pandas = need_pandas()
    missing = np.asarray(values.isna())
    if missing.any():
        raise ValueError(_missing(name, "an empty cell", values, missing))
    kind = values.dtype
    if isinstance(kind, pandas.CategoricalDtype):
        kind = kind.categories.dtype
    types = pandas.api.types
    if types.is_datetime64_any_dtype(kind) or types.is_timedelta64_dtype(kind):
        raise ValueError(
            message(
                "A column holds numbers or texts",
                f"{name!r} of {kind}",
                f"Turn it into numbers, or leave it out with --ignore {name}",
            )
        )
    return values.astype(str).to_numpy(dtype=object)


def _is_number(values: "pd.Series") -> bool:
    types = need_pandas().api.types
    return bool(types.is_numeric_dtype(values) and not types.is_bool_dtype(values))


def _require(frame: "pd.DataFrame", names: list[str]) -> None:
    there = [str(name) for name in frame.columns]
    missing = [name for name in names if name not in there]
    if missing:
        hint = "Check the spelling and the header line"
        if len(there) == 1 and any(mark in there[0] for mark in ";\t|"):
            hint = "Separate the cells by commas"
        raise ValueError(
            message(
                f"The table must have the column{'s' * (len(missing) > 1)} {_few(missing)}",
                f"the columns {_few(there)}",
                hint,
            )
        )


def _missing(name: str, value: Any, values: "pd.Series", wrong: np.ndarray) -> str:
    what = value if isinstance(value, str) else "NaN or an empty cell"
    if isinstance(value, float) and np.isinf(value):
        what = "infinity"
    count = int(wrong.sum())
    return message(
        f"Column {name!r} must hold a finite value in every row",
        f"{what} in row {_row(values, int(np.argmax(wrong)))} ({count:,} such "
        f"row{'s' * (count > 1)} of {len(wrong):,})",
        "Fill the cell, or remove the row",
    )


def _row(values: "pd.Series", i: int) -> int:
    """Returns the row's number as a reader counts it: the first row of data is 1."""
    return int(values.index[i]) + 1


def _few(names: Any, most: int = 8) -> str:
    shown = [repr(name) for name in list(names)[:most]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


__all__ = ["infer", "matrix", "target"]
