"""What the backends share: structures of tensors taken apart and put together again."""

from contextvars import ContextVar
from typing import Any, NamedTuple

import keras
from keras import ops, tree

__all__ = ["Choices", "by_sorted_rows", "inside", "is_float", "partition", "vectorized_map_with"]

inside = ContextVar("inside a vectorised call", default=False)


class Choices(NamedTuple):
    """Which rows chose which experts: the `n * k` choices sorted by expert, ties by row.

    Attributes:
        order: int32 `(n * k,)`, the choice at each place; choice `i * k + j` belongs to row `i`.
        place: int32 `(n * k,)`, the place of each choice.
        offsets: int32 `(e + 1,)`: the run of expert `l` is `offsets[l]:offsets[l + 1]`. Behind
            `offsets[e]` stand the choices of nobody.
        num_selected: `k`, an integer.
    """

    order: Any
    place: Any
    offsets: Any
    num_selected: int


def is_float(tensor):
    """Whether a tensor has a floating dtype, and hence may have a gradient."""
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


def partition(tensors):
    """Parts a list into what may have a gradient and what may not.

    Returns:
        A triple `(floats, others, merge)`; `merge(floats, others)` is a list in the first order.
    """
    flags = [is_float(tensor) for tensor in tensors]

    def merge(floats, others):
        floats, others = iter(floats), iter(others)
        return [next(floats if flag else others) for flag in flags]

    floats = [tensor for tensor, flag in zip(tensors, flags, strict=True) if flag]
    others = [tensor for tensor, flag in zip(tensors, flags, strict=True) if not flag]
    return floats, others, merge


def by_sorted_rows(take_rows, map_segments, function, variables, leaves, choices):
    """`map_choices` by gathering rows into runs, mapping the runs, and gathering back.

    Args:
        take_rows: A backend's.
        map_segments: A backend's: maps `(function, variables, rows, offsets)` to outputs `(m, …)`
            of rows `(m, …)` sorted by expert; those behind `offsets[e]` may be anything.
        function: As for `map_choices`.
        variables: As for `map_choices`.
        leaves: As for `map_choices`.
        choices: As for `map_choices`.

    Returns:
        As for `map_choices`.
    """
    order, place, offsets, num_selected = choices
    place = ops.where(place < offsets[-1], place, ops.shape(place)[0])
    back = ops.reshape(place, (-1, num_selected))
    rows = [take_rows(leaf, order // num_selected, back) for leaf in leaves]
    outputs = map_segments(function, variables, rows, offsets)
    return [take_rows(output, place, order[:, None]) for output in outputs]


def vectorized_map_with(vectorize, function, mapped, shared):
    """`vectorized_map` by a backend's `vectorize`, which knows only lists of tensors.

    Args:
        vectorize: Maps `(function, tensors)` to a list of tensors; its function takes the list of
            one expert's slices and returns a list of tensors.
        function: As for `vectorized_map`.
        mapped: As for `vectorized_map`.
        shared: As for `vectorized_map`.

    Returns:
        As for `vectorized_map`.
    """
    returned = None

    def on_leaves(leaves):
        nonlocal returned
        returned = function(tree.pack_sequence_as(mapped, leaves), shared)
        outputs = [leaf for leaf in tree.flatten(returned) if leaf is not None]
        return [keras.ops.convert_to_tensor(output) for output in outputs]

    leaves = [keras.ops.convert_to_tensor(leaf) for leaf in tree.flatten(mapped)]
    token = inside.set(True)
    try:
        stacked = iter(vectorize(on_leaves, leaves))
    finally:
        inside.reset(token)
    outputs = [None if leaf is None else next(stacked) for leaf in tree.flatten(returned)]
    return tree.pack_sequence_as(returned, outputs)
