"""The seam on TensorFlow."""

from itertools import compress

import tensorflow as tf

from plait.ops.backend.structure import by_sorted_rows, is_float, partition

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

# Variables made here get their first values at once, also while TensorFlow traces.
outside_of_graphs = tf.init_scope


def vectorize(function, tensors):
    """Lists in, lists out: see `plait.ops.backend.vectorized_map`."""

    def named(tensors):
        # An eager tensor from outside, returned as it is, has no place in the graph.
        return [tf.identity(output) for output in function(tensors)]

    return tf.vectorized_map(named, tensors)


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


def forget_gradients(variables):
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


def map_choices(function, variables, leaves, choices, vectorized):
    """Each expert on the rows that chose it: see `plait.ops.backend.map_choices`."""
    del vectorized  # one expert after another in any case
    return by_sorted_rows(take_rows, map_segments, function, variables, leaves, choices)


def map_segments(function, variables, rows, offsets):
    """Runs each expert on its own run of sorted rows.

    A loop over the experts in use, of dynamic length and with rows of dynamic number. Slices along
    the first axis share memory. The gradient loops over the same experts, runs them again, and
    writes each expert's share once: automatic differentiation of the loop would make a gradient
    the size of all experts at every step.

    Args:
        function: Maps `(variables_of_one_expert, rows, segment)` to a list of tensors `(r, …)`.
        variables: List of tensors `(e, …)`.
        rows: List of tensors `(m, …)`, sorted by expert.
        offsets: int32 `(e + 1,)`: the rows of expert `l` are `offsets[l]:offsets[l + 1]`.

    Returns:
        List of tensors `(m, …)`. Rows from `offsets[e]` on mean nothing.
    """
    # A variable read inside `run` would count as one that its gradient must answer for.
    weights, other_weights, merge_weights = partition([tf.identity(v) for v in variables])
    inputs, other_inputs, merge_inputs = partition(rows)
    num_rows = tf.shape(rows[0])[0]
    used = tf.cast(tf.where(offsets[1:] > offsets[:-1])[:, 0], "int32")
    num_used = tf.size(used)
    # Where nobody was chosen, one call gives the outputs their shape. It sees one row, which is cut
    # off again: on no rows, Keras takes what a residual block adds for a bias.
    called = tf.cond(num_used > 0, lambda: used, lambda: tf.zeros([1], "int32"))
    num_called = tf.size(called)

    def segment(expert):
        """What an expert holds and is fed: its variables and its rows."""
        start, end = offsets[expert], offsets[expert + 1]
        held = tf.nest.map_structure(lambda w: w[expert], (weights, other_weights))
        last = tf.maximum(end, start + 1)
        fed = tf.nest.map_structure(lambda x: x[start:last], (inputs, other_inputs))
        return start, end, held, fed

    def call(i):
        start, end, held, fed = segment(called[i])
        values = function(merge_weights(*held), merge_inputs(*fed), called[i])
        return [value[: end - start] for value in values]

    @tf.custom_gradient
    def run(*floats):
        del floats  # the same tensors, seen from outside
        # The first call stands before the loop and tells what the outputs are.
        first = call(0)
        arrays = [_array(num_called, value.dtype, [None, *value.shape[1:]]) for value in first]
        arrays = [array.write(0, value) for array, value in zip(arrays, first, strict=True)]

        def body(i, arrays):
            values = call(i)
            return i + 1, [a.write(i, v) for a, v in zip(arrays, values, strict=True)]

        _, filled = tf.while_loop(lambda i, _: i < num_called, body, (1, arrays))
        results = [_fill(array.concat(), num_rows) for array in filled]
        differentiable = [value.dtype.is_floating for value in first]

        def backward(*cotangents):
            given = list(compress(cotangents, differentiable))
            of_weights = [_array(w.shape[0], w.dtype, w.shape[1:]) for w in weights]
            of_inputs = [_array(num_used, x.dtype, [None, *x.shape[1:]]) for x in inputs]

            def body(i, of_weights, of_inputs):
                start, end, held, fed = segment(used[i])
                with tf.GradientTape() as tape:
                    tape.watch((held[0], fed[0]))
                    values = function(merge_weights(*held), merge_inputs(*fed), used[i])
                    values = list(compress(values, differentiable))
                shares = tape.gradient(
                    values,
                    (held[0], fed[0]),
                    output_gradients=[c[start:end] for c in given],
                    unconnected_gradients=tf.UnconnectedGradients.ZERO,
                )
                return (
                    i + 1,
                    [a.write(used[i], g) for a, g in zip(of_weights, shares[0], strict=True)],
                    [a.write(i, g) for a, g in zip(of_inputs, shares[1], strict=True)],
                )

            _, of_weights, of_inputs = tf.while_loop(
                lambda i, *_: i < num_used, body, (0, of_weights, of_inputs)
            )
            return [
                *(array.stack() for array in of_weights),
                *(_fill(array.concat(), num_rows) for array in of_inputs),
            ]

        return results, backward

    return list(run(*weights, *inputs))


def _array(size, dtype, shape):
    return tf.TensorArray(dtype, size, element_shape=shape, infer_shape=False)


def _fill(tensor, num_rows):
    """Appends zeros: tensor `(r, …)` to `(m, …)`."""
    missing = num_rows - tf.shape(tensor)[0]
    return tf.pad(tensor, [[0, missing], *[[0, 0]] * (tensor.shape.rank - 1)])
