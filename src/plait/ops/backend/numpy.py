"""The backend functions on NumPy, which has no gradients: loops."""

from contextlib import nullcontext as outside_of_graphs

import numpy as np

from plait.ops.backend.common import by_sorted_rows, numbered

__all__ = [
    "SHAPE_ERRORS",
    "calls_are_eager",
    "clear_gradients",
    "compiled",
    "draws_like_loops",
    "keep_gradient",
    "loops_are_faster",
    "map_choices",
    "maps_seeds",
    "on_devices",
    "outside_of_graphs",
    "refuses",
    "stacking_pays",
    "take_rows",
    "unstack",
    "vectorize",
]


def vectorize(function, tensors):
    """Lists in, lists out: see `plait.ops.backend.vectorized_map`."""
    results = [function(list(slices)) for slices in zip(*tensors, strict=True)]
    return [np.stack(values) for values in zip(*results, strict=True)]


maps_seeds = True
SHAPE_ERRORS = (TypeError, ValueError, IndexError)


draws_like_loops = True
# One program for several devices is compiled by JAX alone.
on_devices = None


def stacking_pays(num_values, num_experts):
    """Whether a call that stacks the values of all experts beats one call per expert.

    Args:
        num_values: How many numbers the variables of one expert hold.
        num_experts: How many experts there are.
    """
    del num_values, num_experts
    return False  # a vectorised call is a loop here


def refuses(error):
    """Whether an exception says that `vectorize` cannot batch a function: a loop takes any."""
    return False


def unstack(tensor):
    """Slices along the first axis: a list of `e` arrays `(…)`."""
    return list(tensor)


def take_rows(tensor, index, inverse):
    """Rows by number; a number past the end gives a row of zeros."""
    zero = np.zeros((1, *tensor.shape[1:]), tensor.dtype)
    return np.concatenate([tensor, zero])[index]


# Nothing is compiled: eager calls run as they are.
compiled = None


def calls_are_eager(tensors):
    """Whether a call with these tensors runs at once: always."""
    del tensors
    return True


def clear_gradients(groups, outputs):
    """Does nothing: gradients are not kept with the variables."""


def keep_gradient(tensor, kept):
    """The tensor itself."""
    return tensor


def loops_are_faster():
    """Whether a loop over experts in use beats one vectorised call on buffers of a capacity."""
    return False


def map_choices(groups, leaves, choices):
    """Each expert on the rows that chose it: see `plait.ops.backend.map_choices`."""
    return by_sorted_rows(take_rows, map_segments, groups, leaves, choices)


def map_segments(groups, rows, offsets):
    """Runs each expert on its own run of sorted rows: a loop over the experts in use."""
    results = []
    for group, (first, last) in zip(groups, numbered(groups), strict=True):
        for expert in range(first, last):
            start, end = offsets[expert], offsets[expert + 1]
            # One call on no rows gives the outputs their shape, where no expert was chosen.
            if start < end or (expert == 0 and offsets[-1] == 0):
                variables = [variable[expert - first] for variable in group.variables]
                results.append(group.function(variables, [row[start:end] for row in rows], expert))
    values = [np.concatenate(value) for value in zip(*results, strict=True)]
    rest = len(rows[0]) - offsets[-1]
    return [np.concatenate([v, np.zeros((rest, *v.shape[1:]), v.dtype)]) for v in values]
