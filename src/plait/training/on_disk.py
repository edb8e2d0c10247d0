"""Arrays in temporary files, mapped anew for each read, so that memory holds only what is read."""

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from keras import tree
from numpy.typing import DTypeLike

from plait.typing import Nested

# Rows that are read at a time: no more, and fewer where they are wide.
_ROWS = 2**14
_BYTES = 2**25
# Rows in any order that are read from one map: each may bring pages of its own into memory.
_SCATTERED = 2**9


class OnDisk:
    """An array `(n, …)` in a file, which is deleted with the object.

    Reading rows gives an ordinary array. The map of the file (`numpy.memmap`) lives only as long as
    a read or a write: pages of a map that stays open count as memory of the process.

    Args:
        folder: Where the file is made.
        dtype: Of numbers.
        shape: `(n, …)`; `n` grows by `append`.

    Example:
    >>> import numpy as np, tempfile
    >>> from plait.training.on_disk import OnDisk
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     array = OnDisk(folder, "float32", (0, 2))
    ...     array.append(np.ones((3, 2)))
    ...     array[1:2] = 5.0
    ...     array.shape, array[[1, 2]].tolist()
    ((3, 2), [[5.0, 5.0], [1.0, 1.0]])
    """

    def __init__(self, folder: str, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
        handle, self.path = tempfile.mkstemp(".rows", dir=folder)
        self.dtype, self.shape = np.dtype(dtype), tuple(shape)
        os.truncate(handle, self.nbytes)
        os.close(handle)
        weakref.finalize(self, Path(self.path).unlink, missing_ok=True)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if not isinstance(rows, np.ndarray) or rows.dtype == bool or len(rows) <= _SCATTERED:
            return np.array(self._mapped("r")[rows])
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for start in range(0, len(rows), _SCATTERED):
            part = slice(start, start + _SCATTERED)
            found[part] = self._mapped("r")[rows[part]]
        return found

    def __setitem__(self, rows: Any, values: Any) -> None:
        self._mapped("r+")[rows] = values

    def append(self, values: np.ndarray) -> None:
        """Adds rows at the end."""
        with open(self.path, "ab") as file:
            file.write(np.ascontiguousarray(values, self.dtype).data)
        self.shape = (len(self) + len(values), *self.shape[1:])

    def _mapped(self, mode: Any) -> np.ndarray:
        if not self.nbytes:  # an empty file cannot be mapped
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, mode, shape=self.shape)


def in_file(structure: Nested) -> bool:
    """Returns whether any array of a structure lies in a file."""
    return any(isinstance(leaf, (OnDisk, np.memmap)) for leaf in tree.flatten(structure))


def chunks(arrays: Nested) -> Iterator[slice]:
    """Yields the rows of arrays, some at a time: few enough to be in memory together."""
    leaves = tree.flatten(arrays)
    size = len(leaves[0])
    wide = sum(np.dtype(leaf.dtype).itemsize * int(np.prod(leaf.shape[1:])) for leaf in leaves)
    step = max(1, min(_ROWS, _BYTES // max(wide, 1)))
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


__all__ = ["OnDisk", "chunks", "in_file"]
