"""The seam: Keras layers called for all experts at once, and gradients that gather."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from tests.gradients import value_and_gradients

from plait.ops import backend

E = 3
# name: (layer, shape of one expert's input, arguments of the call)
LAYERS = {
    "dense": (lambda: layers.Dense(4, activation="relu"), (5, 3), {}),
    "conv1d": (lambda: layers.Conv1D(4, 3, padding="same"), (2, 8, 3), {}),
    "conv1d strided": (lambda: layers.Conv1D(4, 3, strides=2, padding="same"), (2, 8, 3), {}),
    "conv1d causal": (lambda: layers.Conv1D(4, 3, padding="causal"), (2, 8, 3), {}),
    "conv2d": (lambda: layers.Conv2D(4, 3), (2, 8, 8, 3), {}),
    "conv2d same": (lambda: layers.Conv2D(4, 3, padding="same"), (2, 8, 8, 3), {}),
    "conv2d strided": (lambda: layers.Conv2D(4, 2, strides=2, padding="same"), (2, 7, 7, 3), {}),
    "conv2d dilated": (lambda: layers.Conv2D(4, 3, dilation_rate=2), (2, 8, 8, 3), {}),
    "conv2d groups": (lambda: layers.Conv2D(4, 3, groups=2), (2, 8, 8, 4), {}),
    "conv2d transpose": (
        lambda: layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
        (2, 4, 4, 3),
        {},
    ),
    "conv3d": (lambda: layers.Conv3D(2, 2), (2, 4, 4, 4, 2), {}),
    "depthwise": (lambda: layers.DepthwiseConv2D(3), (2, 8, 8, 3), {}),
    "depthwise 1d": (lambda: layers.DepthwiseConv1D(3), (2, 8, 3), {}),
    "separable": (lambda: layers.SeparableConv2D(4, 3), (2, 8, 8, 3), {}),
    "max pooling": (lambda: layers.MaxPooling2D(2), (2, 8, 8, 3), {}),
    "max pooling same": (lambda: layers.MaxPooling2D(2, padding="same"), (2, 7, 7, 3), {}),
    "max pooling 1d": (lambda: layers.MaxPooling1D(2), (2, 8, 3), {}),
    "average pooling": (lambda: layers.AveragePooling2D(2), (2, 8, 8, 3), {}),
    "average pooling same": (
        lambda: layers.AveragePooling2D(2, padding="same"),
        (2, 7, 7, 3),
        {},
    ),
    "average pooling 1d": (lambda: layers.AveragePooling1D(2), (2, 8, 3), {}),
    "global pooling": (lambda: layers.GlobalAveragePooling2D(), (2, 8, 8, 3), {}),
    "batch norm": (lambda: layers.BatchNormalization(), (6, 3), {}),
    "batch norm, training": (lambda: layers.BatchNormalization(), (6, 3), {"training": True}),
    "batch norm 2d, training": (
        lambda: layers.BatchNormalization(),
        (2, 4, 4, 3),
        {"training": True},
    ),
    "layer norm": (lambda: layers.LayerNormalization(), (5, 3), {}),
    "group norm": (lambda: layers.GroupNormalization(2), (2, 4, 4, 4), {}),
    "dropout": (lambda: layers.Dropout(0.5, seed=7), (5, 3), {}),
    "gru": (lambda: layers.GRU(4), (2, 5, 3), {}),
    "gru, sequences": (lambda: layers.GRU(4, return_sequences=True), (2, 5, 3), {}),
    "lstm": (lambda: layers.LSTM(4), (2, 5, 3), {}),
    "lstm, training": (
        lambda: layers.LSTM(4),
        (2, 5, 3),
        {"training": True},
    ),
    "bidirectional": (lambda: layers.Bidirectional(layers.GRU(4)), (2, 5, 3), {}),
    "simple rnn": (lambda: layers.SimpleRNN(4), (2, 5, 3), {}),
    "attention": (lambda: SelfAttention(), (2, 5, 4), {}),
    "attention, training": (lambda: SelfAttention(), (2, 5, 4), {"training": True}),
    "embedding": (lambda: layers.Embedding(7, 4), (2, 5), {}),
    "upsampling": (lambda: layers.UpSampling2D(2), (2, 4, 4, 3), {}),
}


class SelfAttention(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 3)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x, training=False):
        return self.attention(x, x, training=training)


def stack_of(layer, rng):
    """Random values for E copies of a layer's variables."""

    def values(variable):
        shape, dtype = (E, *variable.shape), keras.backend.standardize_dtype(variable.dtype)
        if "float" not in dtype:
            return rng.integers(0, 1000, shape).astype(dtype)
        low = 0.5 if "variance" in variable.path else -0.5
        return rng.uniform(low, low + 1, shape).astype(dtype)

    return tuple(
        [values(v) for v in each]
        for each in (layer.trainable_variables, layer.non_trainable_variables)
    )


VARIANTS = ("strided", "causal", "same", "dilated", "1d")
EACH_LAYER = [
    pytest.param(name, marks=[pytest.mark.slow] * any(word in name for word in VARIANTS))
    for name in LAYERS
]


@pytest.mark.parametrize("name", EACH_LAYER)
def test_a_layer_called_for_all_experts_equals_one_call_each(name):
    """Outputs, updated state, and gradients to variables and inputs."""
    rng = np.random.default_rng()
    make, shape, arguments = LAYERS[name]
    layer = make()
    layer.build(shape)
    trainable, state = stack_of(layer, rng)
    state = [ops.convert_to_tensor(value) for value in state]
    if name == "embedding":
        x = rng.integers(0, 7, (E, *shape)).astype("int32")
    else:
        x = rng.normal(size=(E, *shape)).astype("float32")

    def call(variables, shared):
        trainable, state, x = variables
        y, state = layer.stateless_call(trainable, state, x, **arguments)
        return y, state

    def together(trainable, x):
        return backend.vectorized_map(call, (trainable, state, x))

    def one_by_one(trainable, x):
        calls = [
            call(([t[i] for t in trainable], [s[i] for s in state], x[i]), None) for i in range(E)
        ]
        states = [ops.stack(values) for values in zip(*(state for _, state in calls), strict=True)]
        return ops.stack([y for y, _ in calls]), states

    tensors = [ops.convert_to_tensor(value) for value in trainable]
    (y, new), (want, old) = (f(tensors, ops.convert_to_tensor(x)) for f in (together, one_by_one))
    for one, other in zip([y, *new], [want, *old], strict=True):
        one, other = (ops.convert_to_numpy(ops.stop_gradient(t)) for t in (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

    def loss(run):
        def total(*arrays):
            ids = name == "embedding"
            given, fed = (arrays, ops.convert_to_tensor(x)) if ids else (arrays[:-1], arrays[-1])
            return ops.sum(ops.sin(run(list(given), fed)[0]))

        return total

    arrays = trainable if name == "embedding" else [*trainable, x]
    for compiled in (False, True):
        found = value_and_gradients(loss(together), arrays, compiled=compiled)[1]
        expected = value_and_gradients(loss(one_by_one), arrays)[1]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("rate", [0.25, 0.75])
def test_dropout_differs_between_experts(seed, rate):
    """Seeded or not, with gradients; the same seeds give the same numbers if there is a seed."""
    layer = layers.Dropout(rate, seed=seed)
    layer.build((200,))
    (state,) = layer.non_trainable_variables
    dtype = keras.backend.standardize_dtype(state.dtype)
    seeds = ops.convert_to_tensor(np.array([[i, 0] for i in range(E)], dtype))

    def call(state, x):
        return layer.stateless_call([], state, x, training=True)[0]

    def drop(x):
        if backend.maps_seeds:
            return backend.vectorized_map(call, [seeds], x)
        # One seed for all, from which a vectorised call draws differently for each expert.
        return backend.vectorized_map(lambda _, x: call([seeds[1]], x), [seeds], x)

    x = np.ones((200,), "float32")
    y = ops.convert_to_numpy(drop(ops.convert_to_tensor(x)))
    assert set(np.unique(y)) == {0.0, np.float32(1 / (1 - rate))}
    assert not np.array_equal(y[0], y[1])
    assert not np.array_equal(y[1], y[2])
    if seed is not None:
        again = ops.convert_to_numpy(drop(ops.convert_to_tensor(x)))
        np.testing.assert_array_equal(y, again)
        _, (gradient,) = value_and_gradients(lambda x: ops.sum(drop(x)), [x])
        np.testing.assert_allclose(gradient, y.sum(axis=0), rtol=1e-6)


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="there experts share one generator of their seeds"
)
def test_seeded_dropout_equals_one_call_each():
    layer = layers.Dropout(0.5, seed=7)
    layer.build((50,))
    dtype = keras.backend.standardize_dtype(layer.non_trainable_variables[0].dtype)
    seeds = ops.convert_to_tensor(np.array([[i, 0] for i in range(E)], dtype))

    def drop(state, x):
        return layer.stateless_call([], state, x, training=True)[0]

    y = backend.vectorized_map(drop, [seeds], ops.ones((50,)))
    want = [drop([seeds[i]], ops.ones((50,))) for i in range(E)]
    np.testing.assert_array_equal(
        ops.convert_to_numpy(y), [ops.convert_to_numpy(value) for value in want]
    )


def test_an_integer_that_an_expert_computes_is_not_that_of_another():
    """What differs between experts decides nothing for all of them: backends refuse to say."""
    numbers = ops.convert_to_tensor(np.array([1, 2, 3], "int32"))
    with pytest.raises(Exception, match=r"(?i)item\(\)|concret|int"):
        backend.vectorized_map(lambda number, x: x * int(number), numbers, ops.ones((4,)))


def test_structures_go_in_and_come_out():
    mapped = {"a": [ops.ones((E, 2))], "b": (ops.arange(E),)}
    y = backend.vectorized_map(
        lambda mapped, shared: {"sum": mapped["a"][0] + shared, "rest": (mapped["b"][0], None)},
        mapped,
        ops.ones((2,)),
    )
    assert tuple(y["sum"].shape) == (E, 2)
    assert ops.convert_to_numpy(y["rest"][0]).tolist() == [0, 1, 2]
    assert y["rest"][1] is None


def test_what_does_not_depend_on_the_expert_comes_once_per_expert():
    constant, shared, number = backend.vectorized_map(
        lambda mapped, shared: (ops.ones((2,)), shared * 2, 3.0),
        [ops.zeros((E, 4))],
        ops.ones((5,)),
    )
    assert tuple(constant.shape) == (E, 2)
    assert tuple(shared.shape) == (E, 5)
    assert tuple(number.shape) == (E,)


def test_vectorized_calls_nest():
    x = ops.reshape(ops.arange(12.0), (2, 3, 2))
    y = backend.vectorized_map(
        lambda row, _: backend.vectorized_map(lambda v, _: ops.sum(v[0]), [row[0]]), [x]
    )
    np.testing.assert_allclose(ops.convert_to_numpy(y), [[1, 5, 9], [13, 17, 21]])


def test_unstack_gives_slices_and_stacks_gradients():
    x = np.random.default_rng().normal(size=(4, 2, 3)).astype("float32")
    slices = backend.unstack(ops.convert_to_tensor(x))
    assert len(slices) == 4
    np.testing.assert_array_equal(ops.convert_to_numpy(slices[2]), x[2])

    def total(x):
        slices = backend.unstack(x)
        return ops.sum(slices[0] * slices[2])  # slices 1 and 3 get zeros

    _, (gradient,) = value_and_gradients(total, [x], compiled=True)
    np.testing.assert_allclose(gradient, np.stack([x[2], 0 * x[1], x[0], 0 * x[3]]))


def test_taken_rows_send_their_gradients_back():
    """Row 1 twice, row 0 not at all, and a row of zeros for a number past the end."""
    x = np.arange(6.0, dtype="float32").reshape(3, 2)
    index = ops.convert_to_tensor(np.array([1, 3, 2, 1], "int32"))
    inverse = ops.convert_to_tensor(np.array([[4, 4], [0, 3], [2, 4]], "int32"))
    weight = np.array([[1.0], [10.0], [100.0], [1000.0]], "float32")

    def total(x):
        return ops.sum(backend.take_rows(x, index, inverse) * ops.convert_to_tensor(weight))

    y = backend.take_rows(ops.convert_to_tensor(x), index, inverse)
    want = np.concatenate([x, np.zeros((1, 2))])[[1, 3, 2, 1]]
    np.testing.assert_array_equal(ops.convert_to_numpy(y), want)
    _, (gradient,) = value_and_gradients(total, [x], compiled=True)
    np.testing.assert_array_equal(gradient, np.repeat([[0.0], [1001.0], [100.0]], 2, axis=1))
