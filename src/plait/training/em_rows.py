"""The rows that EM fits: of arrays, or read once from a dataset or generator into files."""

import contextlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from plait.errors import message
from plait.training.em_by_batch import Rows, class_weights
from plait.training.on_disk import in_file
from plait.training.streams import Data, as_array, stored
from plait.typing import Nested

__all__ = ["read", "rows_of"]


def read(
    x: Any,
    steps: int | None,
    files: contextlib.ExitStack,
    class_weight: Mapping[int, float] | None = None,
    name: str = "x",
) -> tuple[Rows, int]:
    """Returns the rows of a dataset or generator that count, in files, and its batch size."""

    def keep(batch: Data) -> Data:
        return Data(*_counted(*batch, class_weight))

    found = stored(x, steps, files, "fit_em", name, keep)
    return Rows(*found.data), found.batch_size


def rows_of(
    x: Nested,
    y: Nested,
    sample_weight: ArrayLike | None = None,
    class_weight: Mapping[int, float] | None = None,
) -> Rows:
    """Returns the rows of arrays that count; those in files stay there, whatever they weigh."""
    x, y = (keras.tree.map_structure(as_array, part) for part in (x, y))
    in_files = in_file((x, y))
    rows = _counted(x, y, sample_weight, class_weight, leave_out=not in_files)
    if not rows.sample_weight.any():
        raise ValueError(
            message(
                "`sample_weight` of fit_em must be finite, not negative and not all zero",
                "zeros alone",
                "Use the number of rows that each row counts as, 0 to leave it out",
            )
        )
    return rows._replace(x=x, y=y) if in_files else rows


def _counted(
    x: Nested,
    y: Nested,
    sample_weight: ArrayLike | None = None,
    class_weight: Mapping[int, float] | None = None,
    leave_out: bool = True,
) -> Rows:
    """Returns rows with their weights `(n,)`, without those that weigh nothing.

    Raises:
        ValueError: If the weights are not one number for each row, finite and not negative.
    """
    y = np.asarray(y)
    if class_weight is not None:
        if sample_weight is not None:
            raise ValueError(
                message(
                    "fit_em takes `class_weight` or `sample_weight`",
                    "both",
                    "Multiply the sample weights by those of the classes",
                )
            )
        sample_weight = class_weights(y, class_weight)
    if sample_weight is None:
        return Rows(x, y, np.ones(len(y)))
    weights = np.asarray(sample_weight, "float64")
    if weights.shape != (len(y),):
        raise ValueError(
            message(
                f"`sample_weight` of fit_em must be one number for each of the {len(y)} rows",
                f"sample_weight of shape {weights.shape}",
                f"Use a sample_weight of shape {(len(y),)}",
            )
        )
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            message(
                "`sample_weight` of fit_em must be finite, not negative and not all zero",
                f"{weights[row]} for row {row}",
                "Use the number of rows that each row counts as, 0 to leave it out",
            )
        )
    if weights.all() or not leave_out:
        return Rows(x, y, weights)
    kept = weights > 0
    return Rows(keras.tree.map_structure(lambda leaf: leaf[kept], x), y[kept], weights[kept])
