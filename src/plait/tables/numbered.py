"""Which columns of texts are meant as numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# Digits that a number would not print back: 007 becomes 7.
_PADDED = r"[+-]?0\d+"
_WHOLE = r"\s*[+-]?\d+\s*"
_EXACT = 2**53  # integers from here on are not all different as floats


class Numbered:
    """Which columns of texts hold a number in every row, however these are cut into batches.

    Digits that would not print back stay texts: 007, and integers beyond 2^53.

    Args:
        texts: Columns that stay texts whatever they look like.

    Example:
    >>> import pandas as pd
    >>> from plait.tables.numbered import Numbered
    >>> numbers = Numbered(["code"])
    >>> for cells in (["1", "2"], ["1.5", None]):
    ...     numbers.add(pd.DataFrame({"a": cells, "b": ["7", "007"], "code": cells}))
    >>> numbers.typed(pd.DataFrame({"a": ["1"], "b": ["7"], "code": ["1"]})).to_dict("list")
    {'a': [1.0], 'b': ['7'], 'code': ['1']}
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = set(texts)
        self._gaps: set[str] = set()
        self._fractions: set[str] = set()
        self._inexact: set[str] = set()

    def add(self, frame: "pd.DataFrame") -> None:
        """Looks at the next rows."""
        import pandas

        types = pandas.api.types
        for name, values in frame.items():
            if name in self._texts:
                continue
            there = values.dropna()
            if len(there) < len(values):
                self._gaps.add(name)
            try:
                numbers = pandas.to_numeric(there)
            except (ValueError, TypeError):
                self._texts.add(name)
                continue
            if there.str.fullmatch(_PADDED).any():
                self._texts.add(name)
                continue
            # How pandas reads an integer depends on the others beside it: its text tells.
            whole = name not in self._fractions and (
                types.is_integer_dtype(numbers.dtype) or there.str.fullmatch(_WHOLE).all()
            )
            if not whole:
                self._fractions.add(name)
            elif (numbers.astype("float64").abs() >= _EXACT).any():
                self._inexact.add(name)

    def typed(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """Returns rows that were looked at, with numbers for texts where a column holds them."""
        import pandas

        columns = {
            name: pandas.to_numeric(values).astype(self._kind(name))
            if self._is_number(name)
            else values
            for name, values in frame.items()
        }
        return pandas.DataFrame(columns, index=frame.index)

    def _is_number(self, name: str) -> bool:
        return name not in self._texts | (self._inexact - self._fractions)

    def _kind(self, name: str) -> str:
        return "float64" if name in self._gaps | self._fractions else "int64"


__all__ = ["Numbered"]
