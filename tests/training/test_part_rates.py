"""Learning rates per part: by object, as one optimizer, saved and loaded."""

import keras
import numpy as np
import pytest

import plait
from plait.training import PartRates


def mixture():
    experts = [keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]) for _ in "abc"]
    return plait.Mixture(experts)


def data(rng):
    return rng.normal(size=(32, 3)).astype("float32"), rng.normal(size=(32, 2)).astype("float32")


def moved(mix, optimizer, x, y):
    """How far each part moves in one step of gradient descent."""
    mix.compile(optimizer, "mse")
    parts = [*mix.experts, mix.gate]
    before = [part.get_weights() for part in parts]
    mix.fit(x, y, batch_size=32, verbose=0)
    return [
        np.concatenate([(new - old).ravel() for new, old in zip(p.get_weights(), b, strict=True)])
        for p, b in zip(parts, before, strict=True)
    ]


def test_each_part_moves_at_its_own_rate(rng):
    x, y = data(rng)
    mix = mixture()
    start = mix.get_weights()
    plain = moved(mix, keras.optimizers.SGD(0.1), x, y)
    mix.set_weights(start)
    parts = [(mix.experts[0], 0.0), (mix.experts[1], 0.5), (mix.gate, 3.0)]
    found = moved(mix, PartRates(keras.optimizers.SGD(0.1), parts), x, y)
    for factor, expected, steps in zip([0.0, 0.5, 1.0, 3.0], plain, found, strict=True):
        np.testing.assert_allclose(steps, factor * expected, atol=1e-6)


def test_training_goes_on_from_a_file(rng, tmp_path):
    x, y = data(rng)
    mix = mixture()
    optimizer = PartRates(keras.optimizers.Adam(0.01), [(mix.gate, 0.1), (mix.experts[0], 0.0)])
    mix.compile(optimizer, "mse")
    with pytest.raises(ValueError, match="one that is not built"):
        optimizer.get_config()
    fit = {"batch_size": 32, "verbose": 0, "shuffle": False}
    mix.fit(x, y, epochs=3, **fit)
    mix.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.optimizer.inside.factors == optimizer.inside.factors
    for model in (mix, loaded):
        model.optimizer.learning_rate = 0.02
        model.fit(x, y, epochs=3, **fit)
    for ours, theirs in zip(mix.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_gate_alone_keeps_its_rate(rng):
    x, y = data(rng)
    mix = mixture()
    mix.compile(PartRates("sgd", [(mix.gate, 0.0)]), "mse")
    before = mix.gate.get_weights()
    mix.fit_gate(x, y, verbose=0)
    for old, new in zip(before, mix.gate.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_schedule_is_followed(rng):
    x, y = data(rng)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.1, 0.0])
    mix = mixture()
    mix.compile(PartRates(keras.optimizers.SGD(schedule), [(mix.gate, 2.0)]), "mse")
    mix.fit(x, y, epochs=1, batch_size=32, verbose=0)
    before = mix.get_weights()
    mix.fit(x, y, epochs=1, batch_size=32, verbose=0)
    for old, new in zip(before, mix.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"global_clipnorm=1\.0"):
        PartRates(keras.optimizers.Adam(global_clipnorm=1.0))
    with pytest.raises(ValueError, match=r"Received: -1\.0"):
        PartRates("adam", [(keras.layers.Dense(1), -1.0)])
    optimizer = PartRates("sgd", factors=[1.0])
    with pytest.raises(ValueError, match="a model with 2"):
        optimizer.build([keras.Variable(np.zeros(1)), keras.Variable(np.zeros(1))])


@pytest.mark.parametrize("parts", [[("gate", 0.1)], ["gate"], [(keras.layers.Dense(1), "x")]])
def test_a_part_is_a_layer_and_a_number(parts):
    with pytest.raises(TypeError, match=r"a pair of a layer, as an object, and a number.*Use for"):
        plait.training.PartRates("adam", parts)
