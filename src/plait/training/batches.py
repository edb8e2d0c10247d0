"""Batches of arrays that may lie in files, in an order that a given generator draws."""

from typing import Any, Protocol

import keras
import numpy as np
from keras import tree

from plait.typing import Nested, Tensor


class Shuffles(Protocol):
    """What puts an array in random order: `numpy.random`, or a generator of NumPy's."""

    def shuffle(self, x: np.ndarray) -> None:
        """Puts an array in random order, in place."""


class Batches(keras.utils.PyDataset):
    """Batches of arrays, read row by row, so that arrays in files are never loaded whole.

    Args:
        arrays: Structure of arrays of `n` rows.
        batch_size: Rows of one batch.
        shuffles: What draws the order of the rows anew for each epoch; `None` keeps them in order.
    """

    def __init__(self, arrays: Nested, batch_size: int, shuffles: Shuffles | None) -> None:
        super().__init__()
        self.arrays = arrays
        self.batch_size = batch_size
        self.shuffles = shuffles
        self.size = len(tree.flatten(arrays)[0])
        self.order = None if shuffles is None else _numbers(self.size)
        self.on_epoch_end()

    def __len__(self) -> int:
        """Returns the number of batches."""
        return -(-self.size // self.batch_size)

    def __getitem__(self, index: int) -> Nested:
        """Returns one batch."""
        rows: Any = slice(index * self.batch_size, (index + 1) * self.batch_size)
        if self.order is not None:
            rows = self.order[rows]

        def batch(leaf: Tensor) -> np.ndarray:
            part = np.asarray(leaf[rows])
            # Keras casts arrays so, but not what a PyDataset returns.
            return part.astype(keras.config.floatx()) if part.dtype == "float64" else part

        return tree.map_structure(batch, self.arrays)

    def on_epoch_end(self) -> None:
        """Draws the order of the next epoch."""
        if self.shuffles is not None and self.order is not None:
            self.shuffles.shuffle(self.order)


def _numbers(size: int) -> np.ndarray:
    """Returns the numbers of rows, which stay in memory however large the arrays are: small."""
    return np.arange(size, dtype="uint32" if size < 2**32 else "int64")
