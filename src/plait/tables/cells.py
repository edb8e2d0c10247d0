"""Cells of one column as numbers, texts, and parts of dates."""

import re
from collections.abc import Set
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from plait.tables.reading import need_pandas

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "text", "moment", "nothing"]

_DATE = re.compile(
    r"\d{4}([-/])\d{2}\1\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?"
)
_TIME = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?")
_OF_OBJECTS: dict[str, Kind] = {
    "string": "text",
    "boolean": "text",
    "empty": "number",
    "decimal": "number",
    "integer": "number",
    "floating": "number",
    "mixed-integer-float": "number",
    "timedelta": "number",
    "date": "moment",
    "datetime": "moment",
    "time": "moment",
}


def kind_of(values: "pd.Series") -> Kind:
    """Returns what a column holds: numbers, texts, dates or times (moments), or nothing usable.

    Truth values are texts, durations are numbers of seconds, and texts that all look like
    `2024-01-31`, `2024-01-31 12:30` or `12:30` are moments.

    Example:
    >>> import pandas as pd
    >>> from plait.tables.cells import kind_of
    >>> [kind_of(pd.Series(v)) for v in ([1, 2], [True, False], ["a", "b"], ["2024-01-31"])]
    ['number', 'text', 'text', 'moment']
    """
    types = need_pandas().api.types
    kind = values.dtype
    if isinstance(kind, need_pandas().CategoricalDtype):
        return kind_of(values.astype(kind.categories.dtype))
    if types.is_bool_dtype(kind):
        return "text"
    if types.is_numeric_dtype(kind):
        return "nothing" if types.is_complex_dtype(kind) else "number"
    if types.is_timedelta64_dtype(kind):
        return "number"
    if types.is_datetime64_any_dtype(kind):
        return "moment"
    found = _OF_OBJECTS.get(types.infer_dtype(values, skipna=True), "nothing")
    if found == "text" and not types.is_bool_dtype(values.dropna().infer_objects()):
        there = values.dropna()
        if len(there) and all(
            _DATE.fullmatch(text) or _TIME.fullmatch(text) for text in there.unique()
        ):
            return "moment"
    return found


def numbers(values: "pd.Series") -> tuple[np.ndarray, np.ndarray]:
    """Returns a column as float64 `(b,)`, NaN where it is empty, and which cells are no numbers.

    Example:
    >>> import pandas as pd
    >>> from plait.tables.cells import numbers
    >>> [part.tolist() for part in numbers(pd.Series(["1.5", None, "tall"]))]
    [[1.5, nan, nan], [False, False, True]]
    """
    pandas = need_pandas()
    types = pandas.api.types
    missing = np.asarray(values.isna())
    if types.is_timedelta64_dtype(values.dtype):
        return np.asarray(values.dt.total_seconds(), "float64"), np.zeros(len(values), bool)
    if isinstance(values.dtype, pandas.CategoricalDtype):
        values = values.astype(values.dtype.categories.dtype)
    if not types.is_numeric_dtype(values.dtype):
        what = types.infer_dtype(values, skipna=True)
        if what == "decimal":
            values = values.astype("float64")
        elif what == "timedelta":
            return numbers(pandas.to_timedelta(values))
        else:
            values = pandas.to_numeric(values, errors="coerce")
    found = values.to_numpy("float64", na_value=np.nan)
    return found, np.isnan(found) & ~missing


def texts(values: "pd.Series") -> np.ndarray:
    """Returns a column as texts `(b,)`, `""` for empty cells.

    An integer is written without a point: beside empty cells pandas keeps it as a float.

    Example:
    >>> import pandas as pd
    >>> from plait.tables.cells import texts
    >>> texts(pd.Series(["true", None, "FALSE"])).tolist()
    ['true', '', 'FALSE']
    >>> texts(pd.Series([7, None])).tolist()
    ['7', '']
    """
    missing = np.asarray(values.isna())
    found = values.astype(object).where(~missing, "")
    return found.map(_whole).astype(str).to_numpy(dtype=object)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def truth_values(different: Set[str]) -> set[str]:
    """Returns different texts in one spelling if all of them are truth values, else none.

    Example:
    >>> from plait.tables.cells import truth_values
    >>> sorted(truth_values({"true", "FALSE"})), truth_values({"true", "x"})
    (['False', 'True'], set())
    """
    found = {text.capitalize() for text in different}
    return found if found <= {"True", "False"} else set()


def all_numbers(values: "pd.Series") -> bool:
    """Returns whether texts are numbers, and none of them is written with more digits: 007.

    Example:
    >>> import pandas as pd
    >>> from plait.tables.cells import all_numbers
    >>> [all_numbers(pd.Series(v)) for v in (["1.5", None], ["7", "007"], ["True"], [True])]
    [True, False, False, False]
    """
    different = set(texts(values.dropna()).tolist())
    if numbers(values)[1].any() or truth_values(different):
        return False
    bare = (text.lstrip("+-") for text in different)
    return not any(text.startswith("0") and text.isdigit() and len(text) > 1 for text in bare)


def moments(values: "pd.Series") -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns year, month, day, weekday (0 is Monday) and hour `(b,)`, and the cells that are none.

    A time without a date has an hour only; an empty cell has NaN everywhere.

    Example:
    >>> import pandas as pd
    >>> from plait.tables.cells import moments
    >>> parts, wrong = moments(pd.Series(["2024-01-31 12:30", None, "soon"]))
    >>> {name: float(part[0]) for name, part in parts.items()}
    {'year': 2024.0, 'month': 1.0, 'day': 31.0, 'weekday': 2.0, 'hour': 12.5}
    >>> wrong.tolist()
    [False, False, True]
    """
    pandas = need_pandas()
    missing = np.asarray(values.isna())
    hours = np.full(len(values), np.nan)
    if not pandas.api.types.is_datetime64_any_dtype(values.dtype):
        written = values.astype(object).where(~missing, "").astype(str).str.replace("/", "-")
        times = np.array([bool(_TIME.fullmatch(text)) for text in written], bool)
        if times.any():
            seconds = written[times].map(lambda text: text if text.count(":") > 1 else f"{text}:00")
            passed = pandas.to_timedelta(seconds, errors="coerce").dt.total_seconds()
            hours[times] = np.asarray(passed, "float64") / 3600.0
        dates = written.where(~times & ~missing, None)
        values = pandas.to_datetime(dates, errors="coerce", format="ISO8601", utc=True)
    there = np.asarray(values.notna())
    when = values.dt
    whole = {
        "year": when.year,
        "month": when.month,
        "day": when.day,
        "weekday": when.day_of_week,
        "hour": when.hour + when.minute / 60.0,
    }
    parts = {
        name: np.where(there, part.to_numpy("float64", na_value=np.nan), np.nan)
        for name, part in whole.items()
    }
    parts["hour"] = np.where(there, parts["hour"], hours)
    return parts, ~missing & np.isnan(parts["hour"])


def prints_back(text: str) -> bool:
    """Returns whether an integer is written as Python would print it.

    Example:
    >>> from plait.tables.cells import prints_back
    >>> [prints_back(text) for text in ("7", "-3", "007", "1e3", "1.0", "9007199254740993")]
    [True, True, False, False, False, True]
    """
    return bool(re.fullmatch(r"0|-?[1-9]\d*", text))


__all__ = [
    "Kind",
    "all_numbers",
    "kind_of",
    "moments",
    "numbers",
    "prints_back",
    "texts",
    "truth_values",
]
