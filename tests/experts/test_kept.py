"""Eager calls keep compiled functions, which see every later change of the experts."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import layers, ops

import plait
from plait.experts import kept

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
COMPILES = keras.config.backend() in ("jax", "tensorflow")


def list_of_experts(rate=0.0):
    """Three small experts that draw, where the rate is not zero."""
    return [
        keras.Sequential([keras.Input((4,)), layers.Dense(5, "relu"), layers.Dropout(rate)])
        for _ in range(3)
    ]


def mixture(experts, sparse):
    """A mixture that runs stacked or dispatched."""
    router = plait.routers.TopK(2) if sparse else "softmax"
    return plait.Mixture(experts, layers.Dense(3), router=router, execution="stacked")


def formula(mix, activation=lambda x: np.maximum(x, 0)):
    """The output in NumPy."""
    weights = np.asarray(mix.gate_weights(X), "float64")
    total = np.zeros((len(X), 5))
    for number, expert in enumerate(mix.experts):
        kernel, bias = (np.asarray(w, "float64") for w in expert.get_weights()[:2])
        total += weights[:, [number]] * activation(X @ kernel + bias)
    return total


def output(mix, training=False):
    """An eager call's output as an array."""
    return ops.convert_to_numpy(mix(ops.convert_to_tensor(X), training=training))


@pytest.mark.parametrize("sparse", [False, True])
def test_weights_set_between_two_eager_calls_count(sparse):
    mix = mixture(list_of_experts(), sparse)
    np.testing.assert_allclose(output(mix), formula(mix), atol=1e-5)
    for expert in mix.experts:
        expert.set_weights([2 * w + 1 if w.ndim else w for w in expert.get_weights()])
    np.testing.assert_allclose(output(mix), formula(mix), atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_an_attribute_set_between_two_eager_calls_counts(sparse):
    """A layer that is given another activation computes with it."""
    mix = mixture(list_of_experts(), sparse)
    np.testing.assert_allclose(output(mix), formula(mix), atol=1e-5)
    for expert in mix.experts:
        expert.layers[0].activation = keras.activations.linear
    np.testing.assert_allclose(output(mix), formula(mix, np.positive), atol=1e-5)


def test_every_eager_training_call_draws_anew():
    mix = plait.Mixture(
        list_of_experts(0.5)[0], layers.Dense(3), num_experts=3, router=plait.routers.TopK(2)
    )
    first, second = output(mix, True), output(mix, True)
    assert np.abs(first - second).max() > 1e-3


def test_batch_statistics_move_in_eager_calls():
    expert = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.BatchNormalization()])
    gate = layers.Dense(3, activation="softmax")
    mix = plait.Mixture(expert, gate, num_experts=3, execution="stacked")
    moving = [v for v in mix.non_trainable_variables if "moving_mean" in v.path]
    seen = [ops.convert_to_numpy(v.value) for v in moving]
    for _ in range(2):
        output(mix, True)
        now = [ops.convert_to_numpy(v.value) for v in moving]
        assert all(np.abs(a - b).max() > 1e-6 for a, b in zip(seen, now, strict=True))
        seen = now


def test_the_functions_kept_are_bounded_and_used_again(monkeypatch):
    monkeypatch.setattr(kept, "LIMIT", 2)
    mix = mixture(list_of_experts(), True)
    calls = mix.state.bank._kept
    for rows in (1, 2, 3, 3, 2):
        mix(ops.convert_to_tensor(X[:rows]))
        assert len(calls._compiled) <= 2
    assert len(calls._compiled) == (2 if COMPILES else 0)


def test_the_functions_kept_go_with_the_mixture():
    mix = mixture(list_of_experts(), True)
    output(mix)
    gone = weakref.ref(mix.state.bank)
    keras.utils.clear_session(free_memory=False)
    del mix
    gc.collect()
    assert gone() is None
