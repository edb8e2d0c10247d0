"""The backend functions on JAX."""

import math
from contextlib import nullcontext as outside_of_graphs
from contextlib import suppress
from itertools import compress
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plait.ops.backend.common import (
    GROUPED_PRODUCTS,
    NotLoweredError,
    by_sorted_rows,
    inside,
    is_float,
    numbered,
    partition,
)
from plait.ops.backend.jax_devices import on_devices
from plait.ops.backend.jax_lowering import Runs, lowered

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
    return jax.vmap(function)(tensors)


maps_seeds = True

# What `jax.vmap` raises where a function asks for a value that differs between experts.
CANNOT_VECTORIZE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)
SHAPE_ERRORS = (TypeError, ValueError, IndexError)


draws_like_loops = True


def stacking_pays(num_values, num_experts):
    """Whether a call that stacks the values of all experts beats one call per expert.

    Args:
        num_values: How many numbers the variables of one expert hold.
        num_experts: How many experts there are.
    """
    del num_values, num_experts
    return False  # a compiled step has no call to save, only the copies into one tensor to make


def refuses(error):
    """Whether an exception says that `vectorize` cannot batch a function."""
    return isinstance(error, CANNOT_VECTORIZE)


def unstack(tensor):
    """Slices along the first axis; the gradient is one stack, not one scatter a slice.

    Args:
        tensor: Tensor `(e, …)`.

    Returns:
        List of `e` tensors `(…)`.
    """
    return _unstack(tensor)


@jax.custom_vjp
def _unstack(tensor):
    return [tensor[i] for i in range(tensor.shape[0])]


def _unstack_forward(tensor):
    return _unstack(tensor), None


def _unstack_backward(_, gradients):
    return (jnp.stack(gradients),)


_unstack.defvjp(_unstack_forward, _unstack_backward)


def take_rows(tensor, index, inverse):
    """Rows by number, with a gradient that gathers too.

    `out[i] = tensor[index[i]]` and `gradient[j] = Σ_k gradient_out[inverse[j, k]]`. A number
    past the end gives a row of zeros. A scatter would add row after row.

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
    return tensor.at[index.astype("uint32")].get(mode="fill", fill_value=0)


@jax.custom_vjp
def _take_rows(tensor, index, inverse):
    return _take(tensor, index)


def _take_rows_forward(tensor, index, inverse):
    return _take(tensor, index), inverse


def _take_rows_backward(inverse, gradient):
    gradients = [_take(gradient, inverse[:, k]) for k in range(inverse.shape[1])]
    return sum(gradients[1:], gradients[0]), None, None


_take_rows.defvjp(_take_rows_forward, _take_rows_backward)


def calls_are_eager(tensors):
    """Whether a call with these tensors runs at once, and may be compiled and kept."""
    return not any(isinstance(tensor, jax.core.Tracer) for tensor in tensors)


compiled = jax.jit


def clear_gradients(groups, outputs):
    """Does nothing: gradients are not kept with the variables."""


def keep_gradient(tensor, kept):
    """The tensor itself; where an expert is not kept, its gradient becomes zero.

    Args:
        tensor: Tensor `(e, …)` of a floating dtype.
        kept: bool `(e,)`.

    Returns:
        Tensor `(e, …)`.
    """
    return _keep_gradient(tensor, kept)


@jax.custom_vjp
def _keep_gradient(tensor, kept):
    return tensor


def _keep_gradient_backward(kept, gradient):
    # A pass over all gradients is worth avoiding, and most often every expert is kept.
    return (
        jax.lax.cond(jnp.all(kept), lambda g: g, lambda g: _where(kept, g, 0), gradient),
        None,
    )


_keep_gradient.defvjp(lambda tensor, kept: (tensor, kept), _keep_gradient_backward)


def loops_are_faster():
    """Whether a loop over experts in use beats one vectorised call on buffers of a capacity."""
    # XLA's batched products on CPU are slower than single ones, and buffers have spare rows.
    return jax.default_backend() == "cpu" and not inside.get()


def map_choices(groups, leaves, choices):
    """Each expert on the rows that chose it: see `plait.ops.backend.map_choices`."""

    def mapped(groups, rows, offsets):
        if GROUPED_PRODUCTS and len(groups) == 1:
            with suppress(NotLoweredError):
                return _map_grouped(groups[0], rows, offsets)
        return map_segments(groups, rows, offsets, choices.shards)

    return by_sorted_rows(take_rows, mapped, groups, leaves, choices)


def _map_grouped(group, rows, offsets):
    """Runs the experts of one architecture by grouped products: as `map_segments`.

    Rows behind the last that counts repeat it, and have no gradient.
    """
    num_rows = rows[0].shape[0]
    if not (group.vectorized and isinstance(num_rows, int) and num_rows):
        raise NotLoweredError("rows of unknown number")
    counts, last = jnp.arange(num_rows) < offsets[-1], jnp.maximum(offsets[-1] - 1, 0)
    rows = [_where(counts, x, _one(x, last)) for x in rows]
    runs = Runs.of(offsets, num_rows)
    outputs = lowered(lambda own, fed: group.function(own, fed, 0), group.variables, rows, runs)
    return [_where(counts, y, 0) for y in outputs]


def map_segments(groups, rows, offsets, shards=1):
    """Runs each expert on its own run of sorted rows, in segments of a fixed number of rows.

    A loop of dynamic length visits the segments in use, group after group. The last segment of an
    expert is padded with repeats of its last row; the next segment overwrites what they give, or
    it lies behind the last row that counts. The gradient loops over the same segments, runs them
    again, and adds each expert's share in place: `∂variables[l] += ∂function/∂variables[l]`.

    Args:
        groups: Experts by architecture, one vectorised call or not.
        rows: List of tensors `(m, …)`, sorted by expert.
        offsets: int32 `(e + 1,)`: the rows of expert `l` are `offsets[l]:offsets[l + 1]`.
        shards: About one row in so many is expected before `offsets[e]`.

    Returns:
        List of tensors `(m, …)`. Rows from `offsets[e]` on mean nothing.
    """
    parts = [partition(group.variables) for group in groups]
    merges = [merge for _, _, merge in parts]
    inputs, other_inputs, merge_inputs = partition(rows)
    num_rows, num_experts = rows[0].shape[0], offsets.shape[0] - 1
    size = segment_size(num_rows, num_experts * shards)
    outputs = _output_specs(groups, rows, size)
    if isinstance(num_rows, int) and num_rows == 0:
        return [jnp.zeros((0, *output.shape[1:]), output.dtype) for output in outputs]
    buffers = [(num_rows + size, *output.shape[1:]) for output in outputs]
    differentiable = [jnp.issubdtype(output.dtype, jnp.floating) for output in outputs]

    def segment(s, first, held, inputs, constants):
        """What segment `s` of a group holds: its expert, its rows, their numbers, its bounds."""
        _, other_inputs, plan = constants
        expert, start, end = plan.bounds(s, size)
        index = jnp.minimum(start + jnp.arange(size), end - 1)
        expert = expert - first
        held = [[_one(variable, expert) for variable in each] for each in held]
        fed = [[_at(x, index) for x in each] for each in (inputs, other_inputs)]
        return expert, start, end, index, held, fed

    def loop(body, plan, first, last, carried):
        """Visits the segments of the experts from `first` to the one before `last`."""
        start = plan.first[first] if first else 0
        return jax.lax.fori_loop(start, plan.last[last - 1], body, carried)

    @jax.custom_vjp
    def run(weights, inputs, constants):
        results = [jnp.zeros(b, o.dtype) for b, o in zip(buffers, outputs, strict=True)]
        for number, (first, last) in enumerate(numbered(groups)):
            every = weights[number], constants[0][number]

            def body(s, results, number=number, first=first, every=every):
                _, start, _, _, held, fed = segment(s, first, every, inputs, constants)
                function, merge = groups[number].function, merges[number]
                values = function(merge(*held), merge_inputs(*fed), s)
                return [_write(r, v, start) for r, v in zip(results, values, strict=True)]

            results = loop(body, constants[2], first, last, results)
        return results

    def forward(weights, inputs, constants):
        return run(weights, inputs, constants), (weights, inputs, constants)

    def backward(residuals, cotangents):
        weights, inputs, constants = residuals
        cotangents = list(compress(cotangents, differentiable))
        of_inputs = [jnp.zeros((num_rows + size, *x.shape[1:]), x.dtype) for x in inputs]
        of_weights = []
        for number, (first, last) in enumerate(numbered(groups)):
            every = weights[number], constants[0][number]

            def body(s, gradients, number=number, first=first, every=every):
                expert, start, end, index, held, fed = segment(s, first, every, inputs, constants)

                def call(weights, inputs):
                    variables = merges[number](weights, held[1])
                    values = groups[number].function(variables, merge_inputs(inputs, fed[1]), s)
                    return list(compress(values, differentiable))

                primals, pull = jax.vjp(call, held[0], fed[0])
                counts = start + jnp.arange(size) < end
                given = [
                    _where(counts, _at(c, index), 0).astype(p.dtype)
                    for c, p in zip(cotangents, primals, strict=True)
                ]
                shares = pull(given)
                return (
                    [_add(g, d, expert) for g, d in zip(gradients[0], shares[0], strict=True)],
                    [_write(g, d, start) for g, d in zip(gradients[1], shares[1], strict=True)],
                )

            # Half-precision sums over many segments would lose what is small.
            wide = [jnp.promote_types(w.dtype, "float32") for w in every[0]]
            zeros = [jnp.zeros(w.shape, d) for w, d in zip(every[0], wide, strict=True)]
            found, of_inputs = loop(body, constants[2], first, last, (zeros, of_inputs))
            of_weights.append([g.astype(w.dtype) for g, w in zip(found, every[0], strict=True)])
        return of_weights, [g[:num_rows] for g in of_inputs], None

    run.defvjp(forward, backward)
    plan = _Plan.of(offsets, num_rows, size)
    constants = [other for _, other, _ in parts], other_inputs, plan
    results = run([weights for weights, _, _ in parts], inputs, constants)
    return [r[:num_rows] for r in results]


def _output_specs(groups, rows, size):
    """Shapes and dtypes of what one segment gives; of several dtypes, the one that holds all."""
    found = [
        jax.eval_shape(
            group.function,
            [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in group.variables],
            [jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype) for leaf in rows],
            jax.ShapeDtypeStruct((), "int32"),
        )
        for group in groups
    ]
    return [
        jax.ShapeDtypeStruct(column[0].shape, jnp.result_type(*(each.dtype for each in column)))
        for column in zip(*found, strict=True)
    ]


def segment_size(num_rows, num_experts):
    """Rows per segment: the mean load `m / e` and two standard deviations, at most 256.

    So most experts need one segment at a balanced load, and slices of their variables are copied
    once; an expert in demand takes several. Multiples of 8 suit vector units.
    """
    if not isinstance(num_rows, int):
        return 64  # a symbolic number, in an export
    mean = num_rows / num_experts
    rows = 8 * math.ceil((mean + 2 * math.sqrt(mean)) / 8)
    return max(1, min(num_rows, 256, rows))


class _Plan(NamedTuple):
    """Which segments there are.

    Attributes:
        expert: int32 `(s,)`, the expert of each segment.
        first: int32 `(e,)`, each expert's first segment.
        last: int32 `(e,)`, the one after its last.
        offsets: int32 `(e + 1,)`, as for `map_segments`.
    """

    expert: jax.Array
    first: jax.Array
    last: jax.Array
    offsets: jax.Array

    @classmethod
    def of(cls, offsets, num_rows, size):
        """Returns the plan for runs of sorted rows."""
        num_experts = offsets.shape[0] - 1
        counts = (offsets[1:] - offsets[:-1] + size - 1) // size
        last = jnp.cumsum(counts, dtype="int32")
        # Each expert wastes less than one segment.
        segments = jnp.arange(num_rows // size + num_experts, dtype="int32")
        expert = jnp.sum(segments[:, None] >= last, axis=1, dtype="int32")
        expert = jnp.minimum(expert, num_experts - 1)
        return cls(expert, last - counts, last, offsets)

    def bounds(self, segment, size):
        """Returns the expert of a segment, its first row, and the one after the expert's last."""
        expert = _one(self.expert, segment)
        start = _one(self.offsets, expert) + (segment - _one(self.first, expert)) * size
        return expert, start, _one(self.offsets, expert + 1)


def _at(tensor, index):
    """Returns `tensor[index]`; indices lie within: nothing checks them, or counts from the end."""
    return tensor.at[index.astype("uint32")].get(mode="promise_in_bounds")


# Slices rather than `tensor[index]`, which takes a millisecond to trace.
def _one(tensor, index):
    """Returns `tensor[index]` of a scalar index that lies within."""
    one = jax.lax.dynamic_slice(tensor, _from(index, tensor), (1, *tensor.shape[1:]))
    return jax.lax.squeeze(one, (0,))


def _write(buffer, rows, start):
    return jax.lax.dynamic_update_slice(buffer, rows.astype(buffer.dtype), _from(start, buffer))


def _add(stack, value, index):
    """Adds to one entry, in place in a loop, where a scatter is no single kernel."""
    value = _one(stack, index) + value.astype(stack.dtype)
    return jax.lax.dynamic_update_slice(stack, value[None], _from(index, stack))


def _from(index, tensor):
    """Returns where a slice begins that starts at an index of the first axis: none is negative."""
    return [index.astype("uint32"), *[np.uint32(0)] * (tensor.ndim - 1)]


def _where(counts, rows, other):
    return jnp.where(counts.reshape((-1,) + (1,) * (rows.ndim - 1)), rows, other)
