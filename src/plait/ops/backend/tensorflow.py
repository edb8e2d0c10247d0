"""The backend functions on TensorFlow."""

from itertools import compress

import tensorflow as tf

from plait.ops.backend.common import by_sorted_rows, is_float, numbered, partition

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

# Variables made here get their first values at once, also while TensorFlow traces.
outside_of_graphs = tf.init_scope


def vectorize(function, tensors):
    """Lists in, lists out: see `plait.ops.backend.vectorized_map`."""

    def named(tensors):
        # `tf.vectorized_map` fails where a function returns an eager tensor from outside unchanged.
        return [tf.identity(output) for output in function(tensors)]

    return tf.vectorized_map(named, tensors)


maps_seeds = True
SHAPE_ERRORS = (TypeError, ValueError, IndexError, tf.errors.InvalidArgumentError)


draws_like_loops = False
# One program for several devices is compiled by JAX alone.
on_devices = None


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
    return isinstance(error, (NotImplementedError, tf.errors.OperatorNotAllowedInGraphError)) or (
        isinstance(error, (ValueError, TypeError))
        and any(word in str(error) for word in ("pfor", "vectoriz", "symbolic `tf.Tensor`"))
    )


def unstack(tensor):
    """Slices along the first axis; the gradient is one stack, not one scatter a slice.

    Args:
        tensor: Tensor `(e, …)`.

    Returns:
        List of `e` tensors `(…)`.
    """
    return tf.unstack(tensor)


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

    @tf.custom_gradient
    def take(tensor):
        def backward(gradient):
            parts = [_take(gradient, column) for column in tf.unstack(inverse, axis=1)]
            return tf.add_n(parts)

        return _take(tensor, index), backward

    return take(tensor)


def _take(tensor, index):
    padded = tf.concat([tensor, tf.zeros_like(tensor[:1])], 0)
    return tf.gather(padded, index)


def calls_are_eager(tensors):
    """Whether a call with these tensors runs at once, and may be compiled and kept."""
    del tensors
    return tf.executing_eagerly()


def compiled(function):
    """A function of structures of tensors as a graph, made at its first call."""
    return tf.function(function, autograph=False)


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

    @tf.custom_gradient
    def keep(tensor):
        def backward(gradient):
            mask = tf.reshape(kept, [-1] + [1] * (tensor.shape.rank - 1))
            return tf.where(mask, gradient, tf.zeros((), gradient.dtype))

        return tf.identity(tensor), backward

    return keep(tensor)


def loops_are_faster():
    """Whether a loop over experts in use beats one vectorised call on buffers of a capacity."""
    return not tf.config.list_physical_devices("GPU")  # buffers have spare rows


def map_choices(groups, leaves, choices):
    """Each expert on the rows that chose it: see `plait.ops.backend.map_choices`."""
    return by_sorted_rows(take_rows, map_segments, groups, leaves, choices)


def map_segments(groups, rows, offsets):
    """Runs each expert on its own run of sorted rows.

    A loop over the experts in use, of dynamic length and with rows of dynamic number. Slices along
    the first axis share memory. The gradient loops over the same experts, runs them again, and
    writes each expert's share once: automatic differentiation of the loop would make a gradient
    the size of all experts at every step.

    Args:
        groups: Experts by architecture.
        rows: List of tensors `(m, …)`, sorted by expert.
        offsets: int32 `(e + 1,)`: the rows of expert `l` are `offsets[l]:offsets[l + 1]`.

    Returns:
        List of tensors `(m, …)`. Rows from `offsets[e]` on mean nothing.
    """
    # `tf.custom_gradient` wants a gradient for each variable read inside; so they are read before.
    parts = [partition([tf.identity(v) for v in group.variables]) for group in groups]
    inputs, other_inputs, merge_inputs = partition(rows)
    num_rows = tf.shape(rows[0])[0]
    bounds = numbered(groups)
    plans = [_used(offsets, first, last) for first, last in bounds]

    def segment(number, expert):
        """What an expert of a group holds and is fed: its variables and its rows."""
        start, end = offsets[expert], offsets[expert + 1]
        local = expert - bounds[number][0]
        held = tf.nest.map_structure(lambda w: w[local], parts[number][:2])
        last = tf.maximum(end, start + 1)
        fed = tf.nest.map_structure(lambda x: x[start:last], (inputs, other_inputs))
        return start, end, held, fed

    def values_of(number, expert, held, fed):
        merge_weights = parts[number][2]
        return groups[number].function(merge_weights(*held), merge_inputs(*fed), expert)

    def call(number, expert):
        start, end, held, fed = segment(number, expert)
        return [value[: end - start] for value in values_of(number, expert, held, fed)]

    @tf.custom_gradient
    def run(*floats):
        del floats  # arguments only so that TensorFlow differentiates them
        # The first call comes before the loops and tells what the outputs are. Where no row chose
        # an expert of the first group, it gets one row, which is cut off again: with no
        # rows, Keras' `add` takes a residual operand for a bias.
        called = tf.cond(plans[0][1] > 0, lambda: plans[0][0], lambda: tf.zeros([1], "int32"))
        first = call(0, called[0])
        results = []
        for number, (used, num_used) in enumerate([(called, tf.size(called)), *plans[1:]]):
            done = int(number == 0)  # that call's rows are there, elsewhere no rows
            arrays = [
                _array(num_used + 1 - done, v.dtype, [None, *v.shape[1:]]).write(
                    0, v if done else v[:0]
                )
                for v in first
            ]

            def body(i, arrays, number=number, used=used, done=done):
                values = call(number, used[i])
                values = [tf.cast(v, f.dtype) for v, f in zip(values, first, strict=True)]
                place = i + 1 - done
                return i + 1, [a.write(place, v) for a, v in zip(arrays, values, strict=True)]

            _, arrays = tf.while_loop(
                lambda i, _, num_used=num_used: i < num_used, body, (done, arrays)
            )
            results.append([array.concat() for array in arrays])
        results = [_fill(tf.concat(column, 0), num_rows) for column in zip(*results, strict=True)]
        differentiable = [value.dtype.is_floating for value in first]

        def backward(*cotangents):
            given = list(compress(cotangents, differentiable))
            gradients, shares_of_inputs = [], []
            for number, (used, num_used) in enumerate(plans):
                weights = parts[number][0]
                of_weights = [_array(w.shape[0], w.dtype, w.shape[1:]) for w in weights]
                of_inputs = [
                    _array(num_used + 1, x.dtype, [None, *x.shape[1:]]).write(0, x[:0])
                    for x in inputs
                ]

                def body(i, of_weights, of_inputs, number=number, used=used):
                    start, end, held, fed = segment(number, used[i])
                    with tf.GradientTape() as tape:
                        tape.watch((held[0], fed[0]))
                        values = values_of(number, used[i], held, fed)
                        values = list(compress(values, differentiable))
                    shares = tape.gradient(
                        values,
                        (held[0], fed[0]),
                        output_gradients=[
                            tf.cast(c[start:end], v.dtype)
                            for c, v in zip(given, values, strict=True)
                        ],
                        unconnected_gradients=tf.UnconnectedGradients.ZERO,
                    )
                    local = used[i] - bounds[number][0]
                    return (
                        i + 1,
                        [a.write(local, g) for a, g in zip(of_weights, shares[0], strict=True)],
                        [a.write(i + 1, g) for a, g in zip(of_inputs, shares[1], strict=True)],
                    )

                _, of_weights, of_inputs = tf.while_loop(
                    lambda i, *_, num_used=num_used: i < num_used,
                    body,
                    (0, of_weights, of_inputs),
                )
                gradients += [array.stack() for array in of_weights]
                shares_of_inputs.append([array.concat() for array in of_inputs])
            columns = zip(*shares_of_inputs, strict=True)
            return [*gradients, *(_fill(tf.concat(column, 0), num_rows) for column in columns)]

        return results, backward

    return list(run(*(w for floats, _, _ in parts for w in floats), *inputs))


def _used(offsets, first, last):
    """The experts from `first` to the one before `last` that have rows, and their number."""
    busy = offsets[first + 1 : last + 1] > offsets[first:last]
    used = tf.cast(tf.where(busy)[:, 0], "int32") + first
    return used, tf.size(used)


def _array(size, dtype, shape):
    return tf.TensorArray(dtype, size, element_shape=shape, infer_shape=False)


def _fill(tensor, num_rows):
    """Appends zeros: tensor `(r, …)` to `(m, …)`."""
    missing = num_rows - tf.shape(tensor)[0]
    return tf.pad(tensor, [[0, missing], *[[0, 0]] * (tensor.shape.rank - 1)])
