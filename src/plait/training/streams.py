"""What `fit` takes beside arrays: datasets, loaders and generators, read once into files."""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import tree

from plait.errors import message
from plait.training.on_disk import OnDisk
from plait.typing import Nested, Tensor


class Data(NamedTuple):
    """Arrays of `n` rows: input, target and sample weights, or `None`."""

    x: Nested
    y: Nested
    sample_weight: Nested


class Stored(NamedTuple):
    """Rows of a stream, in files, and how many the first batch had."""

    data: Data
    batch_size: int


def is_stream(x: Nested) -> bool:
    """Returns whether `x` yields batches of input and target, as a dataset, a loader, a generator.

    Example:
    >>> import numpy as np
    >>> from plait.training.streams import is_stream
    >>> is_stream([np.ones(2), np.ones(2)]), is_stream(iter([]))
    (False, True)
    """
    if isinstance(x, keras.utils.PyDataset):
        return True
    array = hasattr(x, "shape") or hasattr(x, "to_numpy")
    return isinstance(x, Iterable) and not array and not isinstance(x, (list, tuple, dict, str))


def no_stream_arguments(caller: str, **given: Any) -> None:
    """Checks that arguments that a stream cannot have were not given.

    Raises:
        ValueError: If one is not `None`.
    """
    for name, (value, remedy) in given.items():
        if value is not None:
            raise ValueError(
                message(
                    f"`{name}` of {caller} goes with arrays, not with a dataset or generator",
                    f"{name} of type {type(value).__name__}",
                    remedy,
                )
            )


def folder_of(files: contextlib.ExitStack) -> str:
    """Returns a temporary folder, which is removed when `files` is closed."""
    return files.enter_context(tempfile.TemporaryDirectory(prefix="plait-"))


def stored(
    x: Any,
    steps: int | None,
    files: contextlib.ExitStack,
    caller: str,
    name: str = "x",
    keep: Callable[[Data], Data] = lambda batch: batch,
) -> Stored:
    """Reads a stream once and returns its rows, as arrays in files of a temporary folder.

    Args:
        x: `tf.data.Dataset`, `keras.utils.PyDataset`, `torch.utils.data.DataLoader`, generator or
            anything else that yields `(x, y)` or `(x, y, sample_weight)`.
        steps: How many batches are read; `None` for all.
        files: Removes the folder when it is closed.
        caller: The function that reads, for error texts.
        name: The argument's name, for error texts.
        keep: What becomes of each batch before it is stored.

    Raises:
        ValueError: If a stream may never end, has no or other batches, or rows that do not agree in
            shape and dtype.
    """
    argument = "steps_per_epoch" if name == "x" else "validation_steps"
    _check_end(x, steps, caller, name, argument)
    folder = folder_of(files)
    arrays: list[OnDisk] = []
    structure: Any = None
    batch_size = read = 0
    for batch in _batches(x, steps):
        read += 1
        parts = [part for part in keep(_checked(batch, caller, name)) if part is not None]
        leaves = tree.flatten(parts)
        if not arrays:
            structure, batch_size = parts, len(leaves[0])
            arrays = [OnDisk(folder, leaf.dtype, (0, *leaf.shape[1:])) for leaf in leaves]
        _check_alike(arrays, leaves, caller, name)
        for array, leaf in zip(arrays, leaves, strict=True):
            array.append(leaf)
    if not arrays or not len(arrays[0]):
        raise ValueError(
            message(
                f"`{name}` of {caller} must yield rows",
                f"a {type(x).__name__} of {read} batches without rows",
                "Pass one that has not been read yet",
            )
        )
    if steps is not None and read < steps:
        raise ValueError(
            message(
                f"`{name}` of {caller} must yield {argument}={steps} batches",
                f"a {type(x).__name__} of {read} batches",
                f"Use {argument}={read}, or a stream that goes on",
            )
        )
    parts = tree.pack_sequence_as(structure, arrays)
    return Stored(Data(*parts, *[None] * (3 - len(parts))), batch_size)


def _check_end(x: Any, steps: int | None, caller: str, name: str, argument: str) -> None:
    if steps is not None:
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(
                message(
                    f"`{argument}` of {caller} must be an integer of at least 1",
                    f"{argument}={steps!r}",
                    f"Use the number of batches of `{name}` to read",
                )
            )
        return
    endless = isinstance(x, Iterator)
    if isinstance(x, keras.utils.PyDataset):
        endless = x.num_batches is None
    elif hasattr(x, "cardinality"):  # of tf.data: −1 where there is no end, −2 where none is known
        endless = int(x.cardinality()) == -1
    if endless:
        raise ValueError(
            message(
                f"{caller} reads `{name}` once, whole, and a generator may never end",
                f"a {type(x).__name__} without {argument}",
                f"Pass {argument}, the number of batches to read",
            )
        )


def _batches(x: Any, steps: int | None) -> Iterator[Any]:
    """Yields the batches of one pass, no more of them than are asked for."""
    if isinstance(x, keras.utils.PyDataset):
        counts = [count for count in (x.num_batches, steps) if count is not None]
        x.on_epoch_begin()
        yield from (x[i] for i in range(min(counts)))
        x.on_epoch_end()
        return
    batches = iter(x)
    done = 0
    while steps is None or done < steps:  # a generator is not read beyond its last step
        try:
            batch = next(batches)
        except StopIteration:
            return
        done += 1
        yield batch


def _checked(batch: Any, caller: str, name: str) -> Data:
    """Returns a batch as arrays."""
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if len(parts) not in (2, 3) or parts[1] is None:
        raise ValueError(
            message(
                f"`{name}` of {caller} must yield (x, y) or (x, y, sample_weight)",
                f"a {type(batch).__name__} of {len(parts)}"
                if isinstance(batch, (tuple, list))
                else f"a {type(batch).__name__}",
                "Yield the target beside the input",
            )
        )
    made = [tree.map_structure(as_array, part) for part in parts if part is not None]
    leaves = [np.asarray(leaf) for leaf in tree.flatten(made)]
    rows = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    dtypes = {leaf.dtype for leaf in leaves if leaf.dtype.kind not in "biuf"}
    if dtypes or len(rows) != 1 or None in rows:
        raise ValueError(
            message(
                f"`{name}` of {caller} must yield arrays of numbers, of as many rows each",
                f"dtype {dtypes.pop()}" if dtypes else f"arrays of {_several(rows)} rows",
                "Yield numbers, with the rows along the first axis",
            )
        )
    return Data(*made, *[None] * (3 - len(made)))


def _several(rows: set[Any]) -> str:
    return " and ".join(sorted(map(str, rows)))


def _check_alike(arrays: list[OnDisk], leaves: list[Any], caller: str, name: str) -> None:
    """Checks that a batch has the structure, shapes and dtypes of the first."""
    first = [(array.shape[1:], array.dtype.name) for array in arrays]
    found = [(leaf.shape[1:], leaf.dtype.name) for leaf in leaves]
    if first != found:
        raise ValueError(
            message(
                f"All batches of `{name}` of {caller} must agree with the first in shape and "
                f"dtype of a row: {_rows(first)}",
                _rows(found),
                "Pad all batches to one length and cast them to one dtype",
            )
        )


def _rows(kinds: list[tuple[tuple[int, ...], str]]) -> str:
    return " and ".join(f"{shape} {dtype}" for shape, dtype in kinds)


def as_array(leaf: Tensor) -> Any:
    """Returns tensors of any backend, columns and tables of pandas as arrays of NumPy.

    A table becomes `(n, columns)` and a column `(n, 1)`, as in Keras.

    Example:
    >>> from plait.training.streams import as_array
    >>> as_array([1, 2]).shape
    (2,)
    """
    if leaf is None or isinstance(leaf, (np.ndarray, OnDisk)):
        return leaf
    if hasattr(leaf, "to_numpy"):
        array = leaf.to_numpy()
        return array[:, None] if array.ndim == 1 else array
    if hasattr(leaf, "detach"):  # PyTorch, under whichever backend
        return leaf.detach().cpu().numpy()
    return np.asarray(leaf)


__all__ = ["Data", "Stored", "as_array", "folder_of", "is_stream", "stored"]
