"""Training the gate alone on cached outputs equals training it with frozen experts."""

import keras
import numpy as np
import pytest

import plait


def experts():
    """Three frozen experts, one unlike the others."""
    models = [
        keras.Sequential(
            [keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(3, "softmax")]
        ),
        keras.Sequential(
            [keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(3, "softmax")]
        ),
        keras.Sequential([keras.layers.BatchNormalization(), keras.layers.Dense(3, "softmax")]),
    ]
    for model in models:
        model.build((None, 4))
        model.trainable = False
    return models


def data(rng, size=40):
    return rng.normal(size=(size, 4)).astype("float32"), rng.integers(0, 3, size)


def compiled(models, gate, loss="sparse_categorical_crossentropy"):
    mixture = plait.Mixture(models, gate=gate, router="softmax")
    mixture.build((None, 4))
    mixture.compile(keras.optimizers.SGD(0.5), loss, metrics=["accuracy"])
    return mixture


@pytest.mark.parametrize("memory_limit", [None, 0], ids=["in memory", "on disk"])
def test_equals_training_with_frozen_experts(rng, memory_limit):
    x, y = data(rng)
    weight = rng.uniform(0.5, 2.0, len(x))
    models = experts()
    slow = compiled(models, keras.layers.Dense(3))
    fast = compiled(models, keras.layers.Dense(3))
    fast.gate.set_weights(slow.gate.get_weights())
    arguments = {"epochs": 3, "batch_size": 8, "shuffle": False, "verbose": 0}
    expected = slow.fit(x, y, sample_weight=weight, validation_data=(x[:9], y[:9]), **arguments)
    found = fast.fit_gate(
        x,
        y,
        sample_weight=weight,
        validation_data=(x[:9], y[:9]),
        memory_limit=memory_limit,
        **arguments,
    )
    for ours, theirs in zip(fast.gate.get_weights(), slow.gate.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert set(found.history) == set(expected.history)
    for name, values in expected.history.items():
        np.testing.assert_allclose(found.history[name], values, atol=1e-5, err_msg=name)


def test_experts_stay_as_they_are(rng):
    x, y = data(rng)
    models = experts()
    for model in models:
        model.trainable = True
    mixture = compiled(models, keras.layers.Dense(3))
    before = [weight for model in models for weight in model.get_weights()]
    mixture.fit_gate(x, y, epochs=2, verbose=0)
    after = [weight for model in models for weight in model.get_weights()]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_validation_split_takes_the_last_examples(rng):
    x, y = data(rng)
    models = experts()
    split, given = (compiled(models, keras.layers.Dense(3)) for _ in range(2))
    split.gate.set_weights(given.gate.get_weights())
    first = split.fit_gate(x, y, validation_split=0.25, shuffle=False, verbose=0)
    second = given.fit_gate(
        x[:30], y[:30], validation_data=(x[30:], y[30:]), shuffle=False, verbose=0
    )
    np.testing.assert_allclose(first.history["val_loss"], second.history["val_loss"], rtol=1e-6)


def test_callbacks_stop_it(rng):
    x, y = data(rng)
    mixture = compiled(experts(), "constant")
    stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=10.0)
    history = mixture.fit_gate(x, y, epochs=9, callbacks=[stop], verbose=0)
    assert len(history.history["loss"]) == 2


def test_trains_on_the_mixture_likelihood(rng):
    x, y = data(rng)
    mixture = compiled(experts(), keras.layers.Dense(3), plait.losses.MixtureNLL("categorical"))
    history = mixture.fit_gate(x, y, epochs=5, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_needs_a_compiled_mixture():
    mixture = plait.Mixture([keras.layers.Dense(1)], name="woven")
    with pytest.raises(ValueError, match="'woven', which is not compiled"):
        mixture.fit_gate(np.ones((2, 1)), np.ones((2, 1)))


def test_needs_arrays():
    mixture = compiled(experts(), None)
    with pytest.raises(TypeError, match=r"`x` of fit_gate must be an array.*generator"):
        mixture.fit_gate((row for row in [1]), np.ones((2, 1)))
