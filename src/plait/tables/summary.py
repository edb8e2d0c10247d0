"""What is kept of the columns of a table while its rows pass, a batch at a time."""

from typing import TYPE_CHECKING

import numpy as np

from plait.encoding import Column
from plait.encoding.schema import PARTS, standard
from plait.errors import message
from plait.tables import cells
from plait.tables.findings import Findings
from plait.tables.matrix import LARGEST, finite, label_texts, moments, numbers, refuse_empty

if TYPE_CHECKING:
    import pandas as pd

_SAMPLE = 2**16  # numbers of a column from which its median is taken
MOST_COUNTED = 100_000  # different texts
_MOST_INTEGER_CLASSES = 20


class Numbers:
    """Count, mean, variance, bounds and a uniform sample of numbers that pass in batches.

    Means and variances are merged by the formula of Chan, Golub and LeVeque (1983). The sample has
    the numbers of the lowest keys, so it does not depend on how they are cut into batches; few
    numbers are all in it.

    Example:
    >>> import numpy as np
    >>> from plait.tables.summary import Numbers
    >>> found = Numbers()
    >>> for batch in ([1.0, np.nan], [2.0, 6.0]):
    ...     found.add(np.array(batch), np.array([0.5, 0.25]))
    >>> found.count, found.mean, found.median
    (3, 3.0, 2.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.variance = 0.0
        self.low, self.high = np.inf, -np.inf
        self._keys, self._sample = np.empty(0), np.empty(0)

    def add(self, found: np.ndarray, keys: np.ndarray) -> None:
        """Takes numbers in, but for those that are not finite.

        Args:
            found: Numbers `(b,)`.
            keys: Random numbers `(b,)`, of which the lowest are sampled.
        """
        there = np.isfinite(found)
        found, keys = found[there], keys[there]
        n = len(found)
        if not n:
            return
        total = self.count + n
        mean, variance = float(found.mean()), float(found.var())
        if self.count:
            apart, share = mean - self.mean, n / total
            mean = self.mean + share * apart
            between = share * (1.0 - share) * apart**2
            variance = (1.0 - share) * self.variance + share * variance + between
        self.count, self.mean, self.variance = total, mean, variance
        self.low, self.high = min(self.low, found.min()), max(self.high, found.max())
        self._keys = np.concatenate([self._keys, keys])
        self._sample = np.concatenate([self._sample, found])
        if len(self._keys) > _SAMPLE:
            lowest = np.argpartition(self._keys, _SAMPLE)[:_SAMPLE]
            self._keys, self._sample = self._keys[lowest], self._sample[lowest]

    @property
    def varies(self) -> bool:
        """Whether there are two different numbers."""
        return self.low < self.high

    @property
    def scaling(self) -> tuple[float, float]:
        """Mean and standard deviation, the latter 1 where nothing varies."""
        return standard(self.mean, float(np.sqrt(self.variance)))

    @property
    def median(self) -> float:
        """The median, of a sample where there are many."""
        return float(np.median(self._sample))


class Feature:
    """A column that is learned from.

    What it holds shows at the end only: a text in the last row makes all of it texts. Until then
    each reading that is possible is kept.

    Args:
        name: Its name.
        plain: Whether the model reads numbers alone.
    """

    def __init__(self, name: str, plain: bool) -> None:
        self.name, self.plain = name, plain
        self.rows = self.missing = 0
        self._kinds: dict[cells.Kind, str] = {}  # with the first cell of each
        self._blank: cells.Kind = "number"
        self._empty, self._faults = Findings(), Findings()
        self._numbers = Numbers()
        self._parts = {part: Numbers() for part in PARTS}
        self._texts: set[str] = set()

    def add(self, values: "pd.Series", keys: np.ndarray) -> None:
        """Takes rows in.

        Args:
            values: The column, `b` rows.
            keys: Random numbers `(b,)`, of which the lowest are sampled.
        """
        self.rows += len(values)
        missing = int(values.isna().sum())
        self.missing += missing
        if self.plain:
            refuse_empty(values, self.name, self._empty)
        kind = cells.kind_of(values)
        if kind != "moment" and missing == len(values):  # says nothing of the others
            self._blank = kind
            return
        if kind not in self._kinds:
            self._kinds[kind] = f"{values.iloc[0]!r} ({values.dtype})"
        if kind == "number":
            self._numbers.add(numbers(values, self.name, self._faults), keys)
        elif kind in ("text", "moment") and len(self._texts) <= MOST_COUNTED:
            self._texts.update(cells.texts(values.dropna()).tolist())
        if kind == "moment" and self.kind == kind:
            for part, found in moments(values, self.name, self._faults).items():
                self._parts[part].add(found, keys)

    @property
    def kind(self) -> cells.Kind:
        """What the column holds as far as it was seen."""
        if self._kinds.keys() == {"text", "moment"}:
            return "text"
        if len(self._kinds) > 1:
            return "nothing"
        return next(iter(self._kinds), self._blank)

    @property
    def categories(self) -> tuple[str, ...]:
        """Its different texts in sorted order, at most some more than `MOST_COUNTED` of them."""
        found = cells.truth_values(self._texts) or self._texts
        return tuple(sorted(found | ({""} if self.missing else set())))

    def columns(self, findings: Findings) -> tuple[Column, ...]:
        """Returns what the column becomes; notes what cannot be read.

        Numbers become one column, dates those of their parts that vary, or the year if none does.
        """
        kind = self.kind
        if kind == "nothing" or (self.plain and kind == "moment"):
            findings.note(
                self.name,
                f"Column {self.name!r} must hold numbers"
                + ("" if self.plain else ", texts, dates or truth values"),
                " and ".join(self._kinds.values()),
                self.rows,
                f"Turn it into numbers, or leave it out with --ignore {self.name}",
            )
            return ()
        findings.include(self._empty)
        if kind == "text":
            return (Column(self.name, self.categories),)
        findings.include(self._faults)
        return self._of_moments() if kind == "moment" else self._of_numbers(findings)

    def _of_numbers(self, findings: Findings) -> tuple[Column, ...]:
        name, found = self.name, self._numbers
        if not found.count:
            return (Column(name, fill=0.0, optional=True),)
        mean, scale = found.scaling
        if scale < 1e-5 * abs(mean) and found.varies:
            findings.note(
                name,
                f"Column {name!r} must vary enough for 32-bit numbers",
                f"values around {mean:.9g} with a standard deviation of {scale:.3g}",
                self.rows,
                "Subtract a constant from the column first",
            )
        fill = None if self.plain else found.median
        return (Column(name, None, mean, scale, fill, fill is not None and self._gaps(found)),)

    def _of_moments(self) -> tuple[Column, ...]:
        columns: list[Column] = []
        there = [part for part in PARTS if self._parts[part].count]
        for part in [part for part in there if self._parts[part].varies] or there[:1]:
            found, name = self._parts[part], f"{self.name} ({part})"
            optional = not columns and self._gaps(found)
            columns.append(
                Column(name, None, *found.scaling, found.median, optional, self.name, part)
            )
        return tuple(columns)

    def _gaps(self, found: Numbers) -> bool:
        """Whether some rows have no number."""
        return found.count < self.rows


class Target:
    """The column that is learned: as values and as classes, until it shows which.

    Args:
        name: Its name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0
        self._is_number = self._is_whole = True
        self._different: set[float] = set()
        self._values, self._labels = Numbers(), set[str]()
        self._no_value, self._no_label = Findings(), Findings()

    def add(self, values: "pd.Series", keys: np.ndarray) -> None:
        """Takes rows in.

        Args:
            values: The column, `b` rows.
            keys: Random numbers `(b,)`, of which the lowest are sampled.
        """
        self.rows += len(values)
        kind = cells.kind_of(values)
        if len(self._labels) <= MOST_COUNTED:
            found = label_texts(values, self.name, self._no_label)
            self._labels.update(text for text in found.tolist() if text is not None)
        self._is_number &= kind in ("number", "text")
        if kind == "nothing":
            received = f"{values.iloc[0]!r} ({values.dtype})"
            rule, remedy = f"Column {self.name!r} must hold numbers", "Choose another target"
            self._no_value.note(self.name, rule, received, len(values), remedy)
            return
        numbered = finite(values, self.name, self._no_value)
        self._values.add(numbered, keys)
        if self._is_number:
            self._is_number = kind == "number" or cells.all_numbers(values)
            there = numbered[np.isfinite(numbered)]
            self._is_whole &= bool((there == np.round(there)).all())
            if len(self._different) <= _MOST_INTEGER_CLASSES:
                self._different.update(np.unique(there).tolist())

    @property
    def task(self) -> str:
        """`"regression"` or `"classification"`: of texts, or of at most 20 different integers."""
        few = len(self._different) <= _MOST_INTEGER_CLASSES
        regression = self._is_number and not (self._is_whole and few)
        return "regression" if regression else "classification"

    def scaling(self) -> tuple[float, float]:
        """Returns mean and standard deviation of a target that is regressed on.

        Raises:
            ValueError: If a cell holds no number, all hold the same, or one is too large.
        """
        self._check(self._no_value)
        found = self._values
        if not found.varies:
            raise ValueError(
                message(
                    "A target must vary",
                    f"{found.low:g} in all {self.rows} rows of {self.name!r}",
                    "Choose another target",
                )
            )
        largest = max(abs(found.low), abs(found.high))
        if largest > LARGEST / 1e3:
            raise ValueError(
                message(
                    f"Target {self.name!r} must be well within 32-bit numbers",
                    f"values up to {largest:.3g}",
                    "Divide the column by a constant first",
                )
            )
        return found.scaling

    def classes(self) -> tuple[str | int, ...]:
        """Returns the class labels in sorted order: texts, or integers if all print back.

        Raises:
            ValueError: If a cell is empty or holds no label, or there are too few or many classes.
        """
        self._check(self._no_label)
        labels = self._labels
        whole = all(map(cells.prints_back, labels))
        if len(labels) < 2:
            only = int(*labels) if whole else next(iter(labels))
            raise ValueError(
                message(
                    "A target needs at least two classes",
                    f"{only!r} in all {self.rows} rows of {self.name!r}",
                    "Choose another target, or add rows of other classes",
                )
            )
        if len(labels) > MOST_COUNTED:
            raise ValueError(
                message(
                    f"A target may have {MOST_COUNTED:,} different classes",
                    f"more in the {self.rows:,} rows of {self.name!r}",
                    "Choose another target, or use --task regression",
                )
            )
        return tuple(sorted(map(int, labels)) if whole else sorted(labels))

    def _check(self, findings: Findings) -> None:
        findings.rows = self.rows
        findings.check()


__all__ = ["MOST_COUNTED", "Feature", "Numbers", "Target"]
