"""Fresh experts are drawn by the template's initialisers, each its own values."""

import keras
import numpy as np
import pytest
from keras import layers

import plait
from plait.experts import initialization

INITIALIZERS = [
    keras.initializers.GlorotUniform(),
    keras.initializers.HeNormal(),
    keras.initializers.LecunUniform(),
    keras.initializers.RandomNormal(stddev=0.3),
    keras.initializers.RandomUniform(-0.2, 0.4),
    keras.initializers.TruncatedNormal(mean=0.5, stddev=0.1),
    keras.initializers.GlorotUniform(seed=7),
    keras.initializers.Orthogonal(),
]


@pytest.mark.parametrize("initializer", INITIALIZERS, ids=lambda i: type(i).__name__)
@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_every_expert_has_the_distribution_of_one(initializer, kind):
    """However many experts are drawn at once: mean, spread and largest value of one."""
    if kind == "dense":
        template = keras.Sequential(
            [keras.Input((40,)), layers.Dense(50, kernel_initializer=initializer)]
        )
    else:
        template = keras.Sequential(
            [keras.Input((8, 20)), layers.Conv1D(25, 4, kernel_initializer=initializer)]
        )
    mixture = plait.Mixture(template, "uniform", num_experts=6)
    kernels = [np.asarray(mixture.expert(i).get_weights()[0]) for i in range(6)]
    one = np.asarray(type(initializer).from_config(initializer.get_config())(kernels[0].shape))
    for kernel in kernels:
        assert abs(kernel.mean() - one.mean()) < 0.15 * one.std()
        np.testing.assert_allclose(kernel.std(), one.std(), rtol=0.1)
        np.testing.assert_allclose(np.abs(kernel).max(), np.abs(one).max(), rtol=0.5)
    differ = [np.abs(a - b).max() for a, b in zip(kernels[1:], kernels, strict=False)]
    assert min(differ) > 0.1 * one.std()


def test_experts_of_keras_layers_are_drawn_without_a_copy_for_each(monkeypatch):
    """A thousand copies take longer than compiling the step."""
    stack = [layers.Dense(5), layers.BatchNormalization(), layers.Dropout(0.1), layers.Dense(3)]
    template = keras.Sequential([keras.Input((4,)), *stack])
    made = []
    monkeypatch.setattr(initialization.FreshValues, "_of_copies", lambda self: made.append(self))
    plait.Mixture(template, "uniform", num_experts=3)
    assert made == []
