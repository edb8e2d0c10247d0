"""The seam on NumPy, which has no gradients: loops."""

from contextlib import nullcontext as outside_of_graphs

import numpy as np

from plait.ops.backend.structure import by_sorted_rows

__all__ = [
    "forget_gradients",
    "keep_gradient",
    "loops_are_faster",
    "map_choices",
    "outside_of_graphs",
    "take_rows",
    "unstack",
    "vectorize",
]


def vectorize(function, tensors):
    """Lists in, lists out: see `plait.ops.backend.vectorized_map`."""
    results = [function(list(slices)) for slices in zip(*tensors, strict=True)]
    return [np.stack(values) for values in zip(*results, strict=True)]


def unstack(tensor):
    """Slices along the first axis: a list of `e` arrays `(…)`."""
    return list(tensor)


def take_rows(tensor, index, inverse):
    """Rows by number; a number past the end stands for a row of zeros."""
    zero = np.zeros((1, *tensor.shape[1:]), tensor.dtype)
    return np.concatenate([tensor, zero])[index]


def forget_gradients(variables):
    """Does nothing: gradients are not kept with the variables."""


def keep_gradient(tensor, kept):
    """The tensor itself."""
    return tensor


def loops_are_faster():
    """Whether a loop over experts in use beats one vectorised call on buffers of a capacity."""
    return False


def map_choices(function, variables, leaves, choices, vectorized):
    """Each expert on the rows that chose it: see `plait.ops.backend.map_choices`."""
    del vectorized  # one expert after another in any case
    return by_sorted_rows(take_rows, map_segments, function, variables, leaves, choices)


def map_segments(function, variables, rows, offsets):
    """Runs each expert on its own run of sorted rows: a loop over the experts in use."""
    runs = [
        number for number in range(len(offsets) - 1) if offsets[number] < offsets[number + 1]
    ] or [0]
    results = [
        function(
            [variable[number] for variable in variables],
            [row[offsets[number] : offsets[number + 1]] for row in rows],
            number,
        )
        for number in runs
    ]
    values = [np.concatenate(value) for value in zip(*results, strict=True)]
    rest = len(rows[0]) - offsets[-1]
    return [np.concatenate([v, np.zeros((rest, *v.shape[1:]), v.dtype)]) for v in values]
