"""Dispatch against a loop over rows in NumPy float64."""

import contextlib
import math
from fractions import Fraction
from unittest import mock

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from tests.gradients import value_and_gradients

from plait.ops import backend
from plait.ops.backend import batches
from plait.ops.dispatch import apply_experts, capacity, keep_within_capacity

# e, n, k: k = 1, k = e, e = 1, one row, fewer rows than experts, more than one segment of 16 rows.
SIZES = [(4, 7, 2), (4, 7, 1), (3, 6, 3), (1, 5, 1), (5, 1, 2), (9, 3, 2), (3, 60, 2)]
# Loops with and without several experts in a call, with fewer of them in a call than there would
# be, and buffers of a capacity, each on whichever backend; one call of the lowered function.
PATHS = ["one by one", "together", "in groups", "buffers"]
PATHS += {"torch": ["lowered"], "jax": ["grouped"]}.get(keras.config.backend(), [])
D, U = 3, 4


def expert(variables, rows, segment):
    """tanh(rows · W + b): row by row, and not linear."""
    del segment
    return ops.tanh(ops.matmul(rows, variables[0]) + variables[1])


def lowering(path):
    """PyTorch lowers unless told not to, JAX where it is told to."""
    if keras.config.backend() == "jax":
        from plait.ops.backend import jax as native

        return mock.patch.object(native, "GROUPED_PRODUCTS", path == "grouped")
    if keras.config.backend() != "torch" or path == "lowered":
        return contextlib.nullcontext()
    from plait.ops.backend import torch as native

    error = native.NotLoweredError("by a test")
    return mock.patch.object(native, "lowered", side_effect=error)


def by(path, function, variables, inputs, indices, e, room):
    """`apply_experts` by a path, which is not always the one that the backend would take."""
    call = 40.0 if path == "in groups" else 1e8
    with (
        lowering(path),
        mock.patch.object(backend, "loops_are_faster", return_value=path != "buffers"),
        mock.patch.object(batches, "_CALL", call),
        mock.patch.object(batches, "_READ", 0 if path == "in groups" else 16),
    ):
        return apply_experts(
            function,
            variables,
            inputs,
            indices,
            num_experts=e,
            capacity=room if path == "buffers" else None,
            vectorized=path != "one by one",
        )


def reference(kernels, biases, x, indices, cotangent):
    """Outputs and gradients of Σ out · cotangent, one row and one choice at a time."""
    kernels, biases, x, cotangent = (
        np.asarray(a, "float64") for a in (kernels, biases, x, cotangent)
    )
    out = np.zeros((*indices.shape, U))
    gradients = [np.zeros_like(kernels), np.zeros_like(biases), np.zeros_like(x)]
    for i, row in enumerate(indices):
        for j, number in enumerate(row):
            if number == len(kernels):
                continue
            out[i, j] = np.tanh(x[i] @ kernels[number] + biases[number])
            delta = cotangent[i, j] * (1 - out[i, j] ** 2)
            gradients[0][number] += np.outer(x[i], delta)
            gradients[1][number] += delta
            gradients[2][i] += kernels[number] @ delta
    return out, gradients


def draw(rng, e, n, k, load="random"):
    """Variables, inputs and a cotangent; distinct experts per row, some slots empty."""
    shapes = [(e, D, U), (e, U), (n, D), (n, k, U)]
    arrays = [rng.normal(size=shape).astype("float32") for shape in shapes]
    indices = np.argsort(rng.random((n, e)), axis=1)[:, :k].astype("int32")
    if load == "random":
        indices[rng.random((n, k)) < 0.2] = e
    elif load == "one expert":
        indices[:] = e - 1
    elif load == "first expert":
        indices[:] = 0
    elif load == "no expert":
        indices[:] = e
    return *arrays, indices


def run(path, indices, e, cotangent, function=expert):
    """A scalar function of (kernels, biases, x) by way of `apply_experts`."""
    room = math.prod(indices.shape)
    cotangent = ops.convert_to_tensor(cotangent)

    def total(kernels, biases, x):
        y = by(path, function, [kernels, biases], x, indices, e, room)
        return ops.sum(y * cotangent)

    return total


@pytest.fixture
def rng():
    return np.random.default_rng()


def compare(path, kernels, biases, x, cotangent, indices, compiled):
    e = len(kernels)
    out, gradients = reference(kernels, biases, x, indices, cotangent)
    y = by(
        path,
        expert,
        [ops.convert_to_tensor(kernels), ops.convert_to_tensor(biases)],
        ops.convert_to_tensor(x),
        ops.convert_to_tensor(indices),
        e,
        indices.size,
    )
    np.testing.assert_allclose(ops.convert_to_numpy(y), out, atol=1e-5)
    total = run(path, ops.convert_to_tensor(indices), e, ops.convert_to_tensor(cotangent))
    value, found = value_and_gradients(total, [kernels, biases, x], compiled=compiled)
    np.testing.assert_allclose(value, np.sum(out * cotangent), rtol=1e-4, atol=1e-4)
    for one, other in zip(found, gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("e", "n", "k"), SIZES)
def test_outputs_and_gradients_equal_a_loop_over_rows(rng, e, n, k, path, compiled):
    compare(path, *draw(rng, e, n, k), compiled)


@pytest.mark.parametrize("load", ["one expert", "first expert", "no expert"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", [1, 7, 40])
def test_any_load_is_served(rng, n, path, load):
    compare(path, *draw(rng, 4, n, 2, load), True)


@settings(deadline=None, max_examples=25)
@given(data=st.data(), path=st.sampled_from(PATHS))
def test_nothing_is_lost_and_nothing_doubled(data, path):
    """One-hot experts write their number and their row: every choice comes back once."""
    e, n, k = (data.draw(st.integers(1, 5)) for _ in range(3))
    indices = np.array(
        data.draw(st.lists(st.integers(0, e), min_size=n * k, max_size=n * k)), "int32"
    ).reshape(n, k)
    numbers = ops.arange(1, e + 1, dtype="int32")
    rows = ops.arange(n, dtype="int32")
    y = by(
        path,
        lambda variables, rows, segment: rows * 10 + variables[0],
        [numbers],
        rows,
        ops.convert_to_tensor(indices),
        e,
        n * k,
    )
    want = np.where(indices < e, 10 * np.arange(n)[:, None] + indices + 1, 0)
    np.testing.assert_array_equal(ops.convert_to_numpy(y), want)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), path=st.sampled_from(PATHS))
def test_permuting_experts_permutes(seed, path):
    rng = np.random.default_rng(seed)
    kernels, biases, x, cotangent, indices = draw(rng, 4, 6, 2)
    renamed = rng.permutation(4)
    place = np.append(np.argsort(renamed), 4).astype("int32")
    tensors = [ops.convert_to_tensor(a) for a in (kernels, biases, x)]
    first = run(path, ops.convert_to_tensor(indices), 4, cotangent)(*tensors)
    tensors = [ops.convert_to_tensor(a) for a in (kernels[renamed], biases[renamed], x)]
    second = run(path, ops.convert_to_tensor(place[indices]), 4, cotangent)(*tensors)
    np.testing.assert_allclose(
        ops.convert_to_numpy(first), ops.convert_to_numpy(second), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("path", PATHS)
def test_structures_integers_and_trailing_axes_pass_through(rng, path):
    """A dict of a float and an int input, an int variable, a dict of outputs of other ranks."""
    e, n, k = 3, 5, 2
    x = rng.normal(size=(n, 2, 2)).astype("float32")
    token = rng.integers(0, 6, size=(n, 2)).astype("int32")
    table = rng.normal(size=(e, 6, 2)).astype("float32")
    shift = np.arange(e).astype("int32")
    indices = rng.integers(0, e + 1, size=(n, k)).astype("int32")

    def function(variables, rows, segment):
        table, shift = variables
        found = ops.take(table, (rows["token"] + shift) % 6, axis=0)
        return {"y": found * rows["x"], "which": rows["token"] + shift}

    def apply(table, x):
        return by(
            path,
            function,
            [table, ops.convert_to_tensor(shift)],
            {"x": x, "token": ops.convert_to_tensor(token)},
            ops.convert_to_tensor(indices),
            e,
            n * k,
        )

    want, which = np.zeros((n, k, 2, 2)), np.zeros((n, k, 2))
    by_table, by_x = np.zeros(table.shape), np.zeros(x.shape)
    for i, j in np.argwhere(indices < e):
        number = indices[i, j]
        which[i, j] = token[i] + shift[number]
        ids = (token[i] + shift[number]) % 6
        want[i, j] = table[number][ids] * x[i]
        by_x[i] += table[number][ids]
        np.add.at(by_table[number], ids, x[i])
    y = apply(ops.convert_to_tensor(table), ops.convert_to_tensor(x))
    np.testing.assert_allclose(ops.convert_to_numpy(y["y"]), want, atol=1e-6)
    np.testing.assert_array_equal(ops.convert_to_numpy(y["which"]), which)
    _, found = value_and_gradients(
        lambda table, x: ops.sum(apply(table, x)["y"]), [table, x], compiled=True
    )
    np.testing.assert_allclose(found[0], by_table, atol=1e-5)
    np.testing.assert_allclose(found[1], by_x, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_half(rng, path, dtype):
    kernels, biases, x, cotangent, indices = draw(rng, 3, 9, 2)

    def total(kernels, biases, x):
        kernels, biases, x = (ops.cast(a, dtype) for a in (kernels, biases, x))
        y = by(
            path,
            expert,
            [kernels, biases],
            x,
            ops.convert_to_tensor(indices),
            3,
            18,
        )
        assert keras.backend.standardize_dtype(y.dtype) == dtype
        return ops.sum(ops.cast(y, "float32") * ops.convert_to_tensor(cotangent))

    out, gradients = reference(kernels, biases, x, indices, cotangent)
    value, found = value_and_gradients(total, [kernels, biases, x], compiled=True)
    np.testing.assert_allclose(value, np.sum(out * cotangent), atol=0.5)
    for one, other in zip(found, gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=0.25)


# Grouped products on CPU multiply all rows with all variables.
@pytest.mark.parametrize("path", [path for path in PATHS if path != "grouped"])
def test_rows_that_chose_no_expert_do_not_leak(rng, path):
    """Not a number in a row without experts, in an expert without rows, or in 1 / 0 at zero."""
    kernels, biases, x, cotangent, indices = draw(rng, 4, 6, 2, "full")
    indices[indices == 2] = 4
    indices[1] = 4
    x[1], kernels[2] = np.nan, np.inf
    cotangent[indices == 4] = 0.0

    def function(variables, rows, segment):
        return expert(variables, rows, segment) / ops.norm(rows, axis=-1, keepdims=True)

    total = run(path, ops.convert_to_tensor(indices), 4, cotangent, function)
    value, found = value_and_gradients(total, [kernels, biases, x], compiled=True)
    assert np.isfinite(value)
    for gradient in found:
        assert np.all(np.isfinite(gradient))
    assert not np.any(found[0][2])
    assert not np.any(found[2][1])


@pytest.mark.parametrize("path", PATHS)
def test_an_expert_may_ask_how_many_rows_it_sees_where_none_is_chosen(path):
    """Of no rows, a reshape could not tell how long they are."""

    def flat(variables, rows, segment):
        return ops.reshape(rows, (ops.shape(rows)[0], -1)) * variables[0]

    x, indices = ops.ones((5, 2, 3)), 2 * ops.ones((5, 1), "int32")
    y = by(path, flat, [ops.ones((2,))], x, indices, 2, 5)
    np.testing.assert_array_equal(ops.convert_to_numpy(y), np.zeros((5, 1, 6)))


@pytest.mark.parametrize("path", PATHS)
def test_experts_without_variables_run(path):
    """Also beside one that no row chose."""
    x = np.arange(6, dtype="float32")
    indices = np.array([0, 2, 2, 0, 2, 0], "int32")[:, None]
    tensors = ops.convert_to_tensor(x), ops.convert_to_tensor(indices)
    y = by(path, lambda variables, rows, segment: rows * rows, [], *tensors, 3, 6)
    np.testing.assert_array_equal(ops.convert_to_numpy(y)[:, 0], x * x)


@pytest.mark.parametrize("path", PATHS)
def test_each_call_has_its_own_segment(path):
    """Rows see one number per call; experts share one only where they share the call."""
    indices = np.repeat(np.arange(3), 40)[:, None].astype("int32")
    seen = by(
        path,
        lambda variables, rows, segment: 0 * rows + ops.cast(segment, "int32"),
        [ops.zeros((3,))],
        ops.zeros((120,), "int32"),
        ops.convert_to_tensor(indices),
        3,
        40,
    )
    numbers = [set(part.tolist()) for part in ops.convert_to_numpy(seen).reshape(3, 40)]
    shared = path == "grouped" or (path != "one by one" and not backend.maps_seeds)
    assert len(set.union(*numbers)) == (1 if shared else sum(len(group) for group in numbers))


@pytest.mark.parametrize("outer", PATHS)
@pytest.mark.parametrize("inner", PATHS)
def test_a_mixture_is_an_expert_of_a_mixture(rng, outer, inner):
    """Two groups of three experts; a row chooses a group, and in it an expert by its sign."""
    n = 8
    kernels = rng.normal(size=(2, 3, D, U)).astype("float32")
    x = rng.normal(size=(n, D)).astype("float32")
    wanted = rng.integers(0, 2, size=(n, 1)).astype("int32")

    def choose(rows):
        return ops.cast(rows[:, :1] > 0, "int32") + ops.cast(rows[:, 1:2] > 0, "int32")

    def group(variables, rows, segment):
        y = by(
            inner,
            lambda v, r, s: ops.tanh(ops.matmul(r, v[0])),
            variables,
            rows,
            choose(rows),
            3,
            rows.shape[0] or n,
        )
        return y[:, 0]

    def total(kernels, x):
        y = by(
            outer,
            group,
            [kernels],
            x,
            ops.convert_to_tensor(wanted),
            2,
            n,
        )
        return ops.sum(y)

    inside = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    chosen = kernels[wanted[:, 0], inside].astype("float64")
    y = np.tanh(np.einsum("nd,ndu->nu", x, chosen))
    by_kernels = np.zeros(kernels.shape)
    np.add.at(by_kernels, (wanted[:, 0], inside), np.einsum("nd,nu->ndu", x, 1 - y**2))
    value, found = value_and_gradients(total, [kernels, x], compiled=True)
    np.testing.assert_allclose(value, y.sum(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[0], by_kernels, atol=1e-5)
    np.testing.assert_allclose(found[1], np.einsum("ndu,nu->nd", chosen, 1 - y**2), atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_shapes_are_known_when_a_model_is_built(path):
    """In a functional model with a symbolic batch, and then on rows of any number."""

    class Sparse(keras.layers.Layer):
        def call(self, x):
            chosen = ops.cast(x[:, :2] > 0, "int32")
            y = by(
                path,
                lambda v, rows, segment: ops.matmul(rows, v[0]),
                [ops.ones((2, D, U))],
                x,
                chosen,
                2,
                10,
            )
            return ops.sum(y, axis=1)

    inputs = keras.Input((D,))
    model = keras.Model(inputs, Sparse()(inputs))
    assert model.output.shape == (None, U)
    x = np.ones((5, D), "float32")
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), 2 * D * np.ones((5, U)))


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only there is n unknown")
@pytest.mark.parametrize("path", PATHS)
def test_the_number_of_rows_may_be_unknown(rng, path):
    import tensorflow as tf

    kernels, biases, x, cotangent, indices = draw(rng, 4, 7, 2)

    @tf.function(input_signature=[tf.TensorSpec([None, D]), tf.TensorSpec([None, 2], "int32")])
    def gradients(x, indices):
        variables = [tf.constant(kernels), tf.constant(biases)]
        with tf.GradientTape() as tape:
            tape.watch((x, variables))
            y = by(
                path,
                expert,
                variables,
                x,
                indices,
                4,
                14,
            )
            value = tf.reduce_sum(y * tf.constant(cotangent)[: tf.shape(x)[0]])
        return tape.gradient(value, (variables[0], variables[1], x))

    for n in (7, 2):
        _, want = reference(kernels, biases, x[:n], indices[:n], cotangent[:n])
        for one, other in zip(gradients(x[:n], indices[:n]), want, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_capacity_keeps_the_heaviest_and_counts_exactly(data):
    e, n, k, c = (data.draw(st.integers(1, 5)) for _ in range(4))
    numbers = st.lists(st.integers(0, e), min_size=n * k, max_size=n * k)
    indices = np.array(data.draw(numbers), "int32").reshape(n, k)
    ties = st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=n * k, max_size=n * k)
    weights = np.array(data.draw(ties), "float32").reshape(n, k)
    kept = ops.convert_to_numpy(
        keep_within_capacity(ops.convert_to_tensor(indices), ops.convert_to_tensor(weights), e, c)
    )
    want = np.zeros((n, k), bool)
    for number in range(e):
        choices = [tuple(choice) for choice in np.argwhere(indices == number)]
        for choice in sorted(choices, key=lambda at: (-weights[at], at))[:c]:
            want[choice] = True
    np.testing.assert_array_equal(kept, want)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((4096, 2, 64, 1.25), 160),
        ((10, 1, 3, 1.0), 4),
        ((2, 1, 64, 1.0), 1),
        ((4, 2, 2, 8.0), 4),
        ((10, 3, 10, 1.1), 4),
        ((100, 1, 10, 1.1), 11),
        ((100, 1, 4, 1.2), 30),
        ((0, 2, 4, 1.0), 0),
        ((5, 1, 4, 1e-9), 1),
    ],
)
def test_capacity_rounds_up_between_one_and_all_rows(arguments, expected):
    assert capacity(*arguments) == expected


ROWS = [0, 1, 2, 7, 25, 50, 100, 999, 4096, 10_007, 102_400, 1_000_003, 2**24 - 1, 2**31 - 1]
FACTORS = [1e-5, 0.01, 1 / 3, 0.5, 0.75, 1.0, 1.01, 1.1, 1.2, 1.25, 4 / 3, 1.7, 3.14159, 8.0, 1e30]


@pytest.mark.parametrize("k", [1, 2, 3, 8])
@pytest.mark.parametrize("e", [1, 3, 4, 7, 8, 10, 64, 100, 1024, 8192])
def test_capacity_is_one_number_for_integers_and_tensors(k, e):
    """The quotient of fractions rounded up, also where n · k · factor is beyond int32."""
    for factor in FACTORS:
        exact = max(Fraction(factor).limit_denominator(10_000), Fraction(1, 10_000)) * k / e
        expected = [min(n, math.ceil(n * exact)) for n in ROWS]
        assert [capacity(n, k, e, factor) for n in ROWS] == expected
        at_run_time = capacity(ops.convert_to_tensor(np.array(ROWS, "int32")), k, e, factor)
        np.testing.assert_array_equal(ops.convert_to_numpy(at_run_time), expected)


@given(
    n=st.integers(0, 2**31 - 1),
    k=st.integers(1, 16),
    e=st.integers(1, 20_000),
    factor=st.floats(1e-6, 1e6),
)
@settings(deadline=None, max_examples=100)
def test_capacity_is_one_number_for_any_factor(n, k, e, factor):
    at_run_time = capacity(ops.convert_to_tensor(np.array(n, "int32")), k, e, factor)
    assert capacity(n, k, e, factor) == int(at_run_time)
    assert min(n, 1) <= capacity(n, k, e, factor) <= n
