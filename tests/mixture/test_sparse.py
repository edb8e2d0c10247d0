"""Sparse means not run: an expert costs nothing for an example that did not choose it."""

import keras
import numpy as np
import pytest
from keras import ops
from tests.gradients import value_and_gradients
from tests.recipes import as_numpy, gradients, mixture_gradients, randomize, recipe, top_1

import plait
from plait.routers import TopK

D, U = 4, 3


def net(rng, *hidden):
    stack = [keras.layers.Dense(units, activation="tanh") for units in hidden]
    return randomize(keras.Sequential([keras.Input((D,)), *stack, keras.layers.Dense(U)]), rng)


def alike(rng, count):
    return [net(rng, 5) for _ in range(count)]


def unlike(rng, count):
    return [net(rng, *[5] * number) for number in range(count)]


def linear_gate(rng, count):
    return randomize(keras.Sequential([keras.Input((D,)), keras.layers.Dense(count)]), rng)


def numpy_mixture(experts, gate, x, k):
    """`Σ w f` over all experts in float64, with weights zero but for the k largest scores."""
    scores = as_numpy(gate(x)).astype("float64")
    order = np.argsort(-scores, axis=-1)
    weights = np.exp(scores)
    np.put_along_axis(weights, order[:, k:], 0.0, axis=-1)
    weights /= weights.sum(-1, keepdims=True)
    outputs = np.stack([as_numpy(expert(x)).astype("float64") for expert in experts], axis=1)
    return np.einsum("be,beu->bu", weights, outputs)


# number of experts, kept ones, examples
CORNERS = [(4, 2, 7), (4, 2, 1), (4, 1, 5), (4, 4, 5), (1, 1, 5), (1, 1, 1), (8, 2, 3), (8, 1, 1)]
EXECUTIONS = ["auto", "loop"]


@pytest.mark.parametrize(("count", "k", "size"), CORNERS)
@pytest.mark.parametrize("kind", [alike, unlike], ids=["alike", "unlike"])
def test_equals_the_sum_over_all_experts(count, k, size, kind, rng):
    experts, gate = kind(rng, count), linear_gate(rng, count)
    x = rng.normal(size=(size, D)).astype("float32")
    mixture = plait.Mixture(experts, gate, router=(top_1() if k == 1 else TopK(k)))
    expected = numpy_mixture(experts, gate, x, k)
    np.testing.assert_allclose(mixture.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("kind", [alike, unlike], ids=["alike", "unlike"])
@pytest.mark.parametrize("factor", [None, 4.0])
def test_all_examples_on_one_expert_are_all_served(execution, kind, factor, rng):
    experts, gate = kind(rng, 4), linear_gate(rng, 4)
    gate.layers[-1].bias.assign([0.0, 0.0, 50.0, 0.0])
    x = rng.normal(size=(9, D)).astype("float32")
    mixture = plait.Mixture(
        experts, gate, router=top_1(capacity_factor=factor), execution=execution
    )
    np.testing.assert_allclose(as_numpy(mixture(x)), as_numpy(experts[2](x)), atol=1e-5)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("kind", [alike, unlike], ids=["alike", "unlike"])
def test_gradients_equal_the_recipe_where_some_experts_stay_empty(execution, kind, rng):
    """Those that nobody chose get a gradient of exactly zero."""
    experts, gate = kind(rng, 5), linear_gate(rng, 5)
    gate.layers[-1].bias.assign([0.0, -50.0, 0.0, 0.0, -50.0])
    x = rng.normal(size=(6, D)).astype("float32")
    variables = [v for model in [*experts, gate] for v in model.trainable_variables]
    upstream = rng.normal(size=(6, U)).astype("float32")
    _, expected, to_x = gradients(
        lambda x: ops.sum(ops.multiply(recipe(experts, gate, x, k=2), upstream)), variables, [x]
    )
    mixture = plait.Mixture(experts, gate, router=TopK(2), execution=execution)
    to_experts, to_gate, to_arrays = mixture_gradients(
        mixture,
        lambda x: ops.sum(ops.multiply(mixture(x, training=True), upstream)),
        [x],
        compiled=True,
    )
    found = [gradient for of_one in to_experts for gradient in of_one] + to_gate + to_arrays
    for left, right in zip(found, [*expected, *to_x], strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    for number in (1, 4):
        assert all((gradient == 0).all() for gradient in to_experts[number])


@keras.saving.register_keras_serializable("test")
class Fussy(keras.layers.Layer):
    """`w · x`, and infinite for rows whose first feature is not the one number it accepts."""

    def __init__(self, accepts, **kwargs):
        super().__init__(**kwargs)
        self.accepts = accepts

    def build(self, input_shape):
        self.number = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.number.assign(float(self.accepts))
        self.w = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        alien = ops.abs(x[..., :1] - self.number)
        return self.w * x / ops.cast(alien < 0.5, x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "accepts": self.accepts}


@keras.saving.register_keras_serializable("test")
class ByFirstFeature(keras.layers.Layer):
    """Scores that choose the expert whose number is the first feature."""

    def __init__(self, count, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def call(self, x):
        return -10.0 * ops.square(x[..., :1] - ops.arange(self.count, dtype="float32"))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.count)


@pytest.mark.parametrize("steps", [(), (3,)], ids=["examples", "steps"])
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("training", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_expert_never_sees_a_row_that_did_not_choose_it(steps, execution, training, rng):
    """An infinity that is computed anywhere poisons the gradient, even when multiplied by zero."""
    experts = [Fussy(number) for number in range(4)]
    chosen = rng.integers(0, 3, (8, *steps))  # nobody chooses the last expert
    x = rng.normal(size=(8, *steps, D)).astype("float32")
    x[..., 0] = chosen
    mixture = plait.Mixture(experts, ByFirstFeature(4), router=top_1(), execution=execution)
    mixture(x)  # builds
    np.testing.assert_allclose(as_numpy(mixture(x, training=training)), x, atol=1e-5)
    _, (gradient,) = value_and_gradients(
        lambda x: ops.sum(mixture(x, training=training)), [x], compiled=True
    )
    np.testing.assert_allclose(gradient, np.ones_like(x), atol=1e-4)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_an_expert_that_was_not_chosen_keeps_its_weights_in_training(execution, rng):
    experts, gate = alike(rng, 3), linear_gate(rng, 3)
    gate.layers[-1].bias.assign([0.0, 0.0, -50.0])
    before = [expert.get_weights() for expert in experts]
    x, y = rng.normal(size=(8, D)).astype("float32"), rng.normal(size=(8, U)).astype("float32")
    mixture = plait.Mixture(experts, gate, router=TopK(2), execution=execution)
    mixture.compile(keras.optimizers.SGD(0.1), "mse")
    mixture.fit(x, y, verbose=0)
    moved = [
        max(np.abs(new - old).max() for new, old in zip(expert.get_weights(), was, strict=True))
        for expert, was in zip(experts, before, strict=True)
    ]
    assert moved[0] > 0
    assert moved[1] > 0
    assert moved[2] == 0


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_steps_are_routed_one_by_one(execution, rng):
    """Weights `(b, t, e)` send each step of a sequence to experts of its own."""
    experts = alike(rng, 4)
    gate = keras.layers.Dense(4)
    x = rng.normal(size=(2, 5, D)).astype("float32")
    mixture = plait.Mixture(experts, gate, router=TopK(2), execution=execution)
    found = as_numpy(mixture(x))
    flat = numpy_mixture(experts, gate, x.reshape(10, D), 2)
    np.testing.assert_allclose(found, flat.reshape(2, 5, U), atol=1e-5)
    assert mixture.compute_output_shape((None, 5, D)) == (None, 5, U)
    assert mixture.gate_weights(x).shape == (2, 5, 4)
    assert ((mixture.gate_weights(x) > 0).sum(-1) == 2).all()


def test_what_overflows_a_capacity_is_dropped_by_priority_and_counted(rng):
    experts, gate = alike(rng, 2), linear_gate(rng, 2)
    gate.layers[-1].bias.assign([50.0, 0.0])
    x = rng.normal(size=(8, D)).astype("float32")
    mixture = plait.Mixture(experts, gate, router=top_1(capacity_factor=1.0, name="router"))
    found = as_numpy(mixture(x))
    kept = (np.abs(found) > 0).any(-1)
    assert kept.sum() == 4  # ⌈1.0 · 8 · 1 / 2⌉
    np.testing.assert_allclose(found[kept], as_numpy(experts[0](x))[kept], atol=1e-5)
    mixture.compile("sgd", "mse")
    history = mixture.fit(x, np.zeros((8, U), "float32"), batch_size=8, verbose=0)
    np.testing.assert_allclose(history.history[f"{mixture.name}_dropped"], [0.5], rtol=1e-5)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_routers_that_may_keep_any_number_equal_the_sum_over_all(name, rng):
    experts, gate = alike(rng, 4), linear_gate(rng, 4)
    x = 3 * rng.normal(size=(9, D)).astype("float32")
    mixture = plait.Mixture(experts, gate, router=name)
    weights = mixture.gate_weights(x)
    assert (weights == 0).any()
    outputs = np.stack([as_numpy(expert(x)) for expert in experts], axis=1)
    expected = np.einsum("be,beu->bu", weights, outputs)
    np.testing.assert_allclose(mixture.predict(x, verbose=0), expected, atol=1e-5)


def test_image_experts_are_chosen_per_image(rng):
    def image_net():
        stack = [keras.layers.Conv2D(2, 3), keras.layers.GlobalAveragePooling2D()]
        return randomize(keras.Sequential([keras.Input((6, 6, 1)), *stack]), rng)

    experts = [image_net() for _ in range(3)]
    gate = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    x = rng.normal(size=(5, 6, 6, 1)).astype("float32")
    mixture = plait.Mixture(experts, gate, router=top_1())
    expected = numpy_mixture(experts, gate, x, 1)
    np.testing.assert_allclose(mixture.predict(x, verbose=0), expected, atol=1e-5)


def test_a_batch_of_any_size_runs_in_one_model(rng):
    experts, gate = alike(rng, 4), linear_gate(rng, 4)
    mixture = plait.Mixture(experts, gate, router=TopK(2))
    for size in (1, 2, 33):
        x = rng.normal(size=(size, D)).astype("float32")
        expected = numpy_mixture(experts, gate, x, 2)
        np.testing.assert_allclose(mixture.predict(x, verbose=0), expected, atol=1e-5)
