"""keras#5095, word for word in today's Keras.

L parallel models, each ending in a K-way softmax, and one more model ending in an L-way softmax:
how do I output their weighted sum? Every spelling gives the numbers of the old recipe.
"""

import keras
import numpy as np
import pytest
from keras import ops
from tests.gradients import value_and_gradients
from tests.recipes import as_numpy

import plait

L, K, D, BATCH = 5, 7, 11, 6


def parts():
    """L experts and a gate, with the same weights at every call: the initialisers have seeds."""
    experts = [
        keras.Sequential(
            [
                keras.Input((D,)),
                keras.layers.Dense(
                    K,
                    activation="softmax",
                    kernel_initializer=keras.initializers.RandomNormal(seed=number),
                    bias_initializer=keras.initializers.RandomNormal(seed=100 + number),
                    kernel_regularizer=keras.regularizers.L2(0.001),
                ),
            ]
        )
        for number in range(L)
    ]
    gate = keras.Sequential(
        [
            keras.Input((D,)),
            keras.layers.Dense(
                L,
                activation="softmax",
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.5, seed=200),
                kernel_regularizer=keras.regularizers.L2(0.001),
            ),
        ]
    )
    return experts, gate


def old_recipe():
    experts, gate = parts()
    x = keras.Input((D,))
    joined = keras.layers.Concatenate()([expert(x) for expert in experts])
    stacked = keras.layers.Reshape((L, K))(joined)
    model = keras.Model(x, keras.layers.Dot(axes=(1, 1))([stacked, gate(x)]))
    return model, lambda: [expert.get_weights() for expert in experts], gate


def layer():
    experts, gate = parts()
    x = keras.Input((D,))
    out = plait.layers.WeightedMerge()([gate(x), *[expert(x) for expert in experts]])
    return keras.Model(x, out), lambda: [expert.get_weights() for expert in experts], gate


def mixture(**options):
    experts, gate = parts()
    mix = plait.Mixture(experts, gate, **options)
    return mix, lambda: [expert.get_weights() for expert in experts], gate


def mixture_in_a_loop():
    return mixture(execution="loop")


def mixture_stacked():
    return mixture(execution="stacked")


def sequential():
    experts, gate = parts()
    mix = plait.Mixture(experts, gate=gate)
    model = keras.Sequential([keras.Input((D,)), mix])
    return model, lambda: [mix.expert(i).get_weights() for i in range(L)], gate


def functional():
    experts, gate = parts()
    mix = plait.Mixture(experts, gate=gate)
    x = keras.Input((D,))
    return keras.Model(x, mix(x)), lambda: [mix.expert(i).get_weights() for i in range(L)], gate


SPELLINGS = [layer, mixture, mixture_in_a_loop, mixture_stacked, sequential, functional]
every_spelling = pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: s.__name__)


@pytest.fixture
def data(rng):
    return rng.normal(size=(BATCH, D)).astype("float32"), np.eye(K, dtype="float32")[
        rng.integers(0, K, BATCH)
    ]


@every_spelling
def test_outputs_equal_the_recipe(spelling, data):
    x, _ = data
    found = spelling()[0].predict(x, verbose=0)
    np.testing.assert_allclose(found, old_recipe()[0].predict(x, verbose=0), atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-6)


@every_spelling
def test_input_gradients_equal_the_recipe(spelling, data):
    x, y = data

    def gradient(model):
        return value_and_gradients(
            lambda x: ops.sum(keras.losses.categorical_crossentropy(y, model(x))), [x]
        )[1][0]

    np.testing.assert_allclose(gradient(spelling()[0]), gradient(old_recipe()[0]), atol=1e-6)


@every_spelling
def test_the_regularisation_loss_is_counted_once(spelling, data):
    x, y = data
    model, weights, gate = spelling()
    kernels = [gate.get_weights()[0], *[kernel for kernel, _ in weights()]]
    expected = 0.001 * sum(float((kernel.astype("float64") ** 2).sum()) for kernel in kernels)
    np.testing.assert_allclose(
        sum(float(as_numpy(loss)) for loss in model.losses), expected, rtol=1e-5
    )
    model.compile("sgd", "categorical_crossentropy")
    loss = model.evaluate(x, y, verbose=0)
    cross_entropy = -np.log((model.predict(x, verbose=0) * y).sum(-1)).mean()
    np.testing.assert_allclose(loss, cross_entropy + expected, rtol=1e-5)


@pytest.fixture(scope="module")
def recipe_after_one_step():
    """Loss and weights of the recipe after one step on `data`, by the seed of the data."""
    results = {}

    def run(x, y):
        key = x.tobytes()
        if key not in results:
            results[key] = one_step(old_recipe, x, y)
        return results[key]

    return run


def one_step(spelling, x, y):
    model, weights, gate = spelling()
    model.compile(keras.optimizers.SGD(1.0), "categorical_crossentropy")
    history = model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)
    return history.history["loss"][0], weights(), gate.get_weights()


@every_spelling
def test_one_step_of_training_gives_equal_weights(spelling, data, recipe_after_one_step):
    """At a learning rate of one, the step is the gradient."""
    x, y = data
    loss, experts, gate = one_step(spelling, x, y)
    expected_loss, expected_experts, expected_gate = recipe_after_one_step(x, y)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for found, expected in zip([*experts, gate], [*expected_experts, expected_gate], strict=True):
        for left, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-6)
    before = [expert.get_weights() for expert in parts()[0]]
    assert all(
        np.abs(kernel - old).max() > 1e-5
        for (kernel, _), (old, _) in zip(experts, before, strict=True)
    )


def test_the_weights_of_the_gate_are_shown(data):
    x, _ = data
    mix, _, gate = mixture()
    shown = mix.gate_weights(x)
    kernel, bias = gate.get_weights()
    scores = np.exp(x.astype("float64") @ kernel + bias)
    np.testing.assert_allclose(shown, scores / scores.sum(-1, keepdims=True), atol=1e-5)
    outputs = mix.expert_outputs(x)
    assert outputs.shape == (BATCH, L, K)
    for number, expert in enumerate(parts()[0]):
        np.testing.assert_allclose(outputs[:, number], as_numpy(expert(x)), atol=1e-6)
