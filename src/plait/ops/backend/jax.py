"""The seam on JAX."""

from functools import partial

import jax
import jax.numpy as jnp

from plait.ops.backend.structure import is_float

__all__ = ["map_segments", "take_rows", "unstack", "vectorize"]


def vectorize(function, tensors):
    """Lists in, lists out: see `plait.ops.backend.vectorized_map`."""
    return jax.vmap(function)(tensors)


@jax.custom_vjp
def unstack(tensor):
    """Slices along the first axis; the gradient is one stack, not one scatter a slice.

    Args:
        tensor: Tensor `(e, …)`.

    Returns:
        List of `e` tensors `(…)`.
    """
    return [tensor[i] for i in range(tensor.shape[0])]


def _unstack_forward(tensor):
    return unstack(tensor), None


def _unstack_backward(_, gradients):
    return (jnp.stack(gradients),)


unstack.defvjp(_unstack_forward, _unstack_backward)


def take_rows(tensor, index, inverse):
    """Rows by number, with a gradient that gathers too.

    `out[i] = tensor[index[i]]` and `gradient[j] = Σ_k gradient_out[inverse[j, k]]`. A number
    past the end stands for a row of zeros. A scatter would add row after row.

    Args:
        tensor: Tensor `(m, …)`.
        index: int32 `(i,)` with values in `[0, m]`.
        inverse: int32 `(m, k)` with values in `[0, i]`: where each row went.

    Returns:
        Tensor `(i, …)`.
    """
    if not is_float(tensor):
        return _take(tensor, index)
    return _take_rows(tensor, index, inverse)


def _take(tensor, index):
    return tensor.at[index].get(mode="fill", fill_value=0)


@jax.custom_vjp
def _take_rows(tensor, index, inverse):
    return _take(tensor, index)


def _take_rows_forward(tensor, index, inverse):
    return _take(tensor, index), inverse


def _take_rows_backward(inverse, gradient):
    gradients = [_take(gradient, inverse[:, k]) for k in range(inverse.shape[1])]
    return sum(gradients[1:], gradients[0]), None, None


_take_rows.defvjp(_take_rows_forward, _take_rows_backward)


def map_segments(function, variables, rows, offsets):
    """Runs each expert on its own run of sorted rows, in segments of a fixed number of rows.

    A loop of dynamic length visits the segments in use. The last segment of an expert is filled up
    with repeats of its last row; what they give is overwritten by the next segment, or lies behind
    the last row that counts. The gradient loops over the same segments, runs them again, and adds
    each expert's share in place: `∂variables[l] += ∂function/∂variables[l]`.

    Args:
        function: Maps `(variables_of_one_expert, rows, segment)` to a list of tensors `(r, …)`.
        variables: List of tensors `(e, …)`.
        rows: List of tensors `(m, …)`, sorted by expert.
        offsets: int32 `(e + 1,)`: the rows of expert `l` are `offsets[l]:offsets[l + 1]`.

    Returns:
        List of tensors `(m, …)`. Rows from `offsets[e]` on mean nothing.
    """
    num_experts, num_rows = offsets.shape[0] - 1, rows[0].shape[0]
    size = segment_size(num_rows, num_experts)
    segments = _segments(offsets, num_rows, size)
    floats, others = _Split.of((variables, rows))
    return _run(partial(_call, function, floats), floats.tensors, others, segments, size)
