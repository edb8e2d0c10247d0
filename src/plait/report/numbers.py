"""Numbers as JSON that every reader takes."""

import math
from typing import Any

import numpy as np


def finite(value: Any) -> Any:
    """Returns plain values, to any depth, with `None` in place of NaN and infinity.

    Example:
    >>> import numpy as np
    >>> from plait.report import finite
    >>> finite({"a": np.array([1.0, np.nan]), "b": (np.int64(2), "c")})
    {'a': [1.0, None], 'b': [2, 'c']}
    """
    if isinstance(value, dict):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return finite(value.tolist())
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


__all__ = ["finite"]
