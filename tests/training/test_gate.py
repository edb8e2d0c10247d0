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
    with pytest.raises(TypeError, match=r"`x` of fit_gate must be an array.*Received: float, int"):
        mixture.fit_gate([[1.0, 2], [3, 4]], np.ones((2, 1)))


def embedder(units, activation=None):
    """A layer on tokens whose output has a mask: token 0 is padding."""
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(9, 4, mask_zero=True, embeddings_initializer="glorot_normal"),
            keras.layers.Dense(units, activation),
        ]
    )


@pytest.mark.parametrize("memory_limit", [None, 0], ids=["in memory", "on disk"])
@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "nll"])
def test_padded_steps_do_not_count(rng, loss, memory_limit):
    """At a learning rate of zero the loss is the mean over the steps that are not padded."""
    tokens = rng.integers(1, 9, (12, 6))
    tokens[:, 2:] = 0
    y = rng.integers(0, 3, tokens.shape)
    models = [embedder(3, "softmax"), embedder(3, "softmax")]
    mixture = plait.Mixture(models, embedder(2, "softmax"))
    loss = plait.losses.MixtureNLL("categorical") if loss == "nll" else loss
    mixture.compile(keras.optimizers.SGD(0.0), loss, weighted_metrics=["accuracy"])
    blend = mixture.predict(tokens, verbose=0).astype("float64")
    surprise = -np.log(np.take_along_axis(blend, y[..., None], -1)[..., 0])
    right = surprise[tokens != 0].mean()
    assert abs(right - surprise.mean()) > 1e-3
    held_out = {"validation_data": (tokens[:5], y[:5]), "memory_limit": memory_limit}
    history = mixture.fit_gate(tokens, y, batch_size=12, verbose=0, **held_out).history
    assert history["loss"][0] == pytest.approx(right, abs=1e-5)
    validated = surprise[:5][tokens[:5] != 0].mean()
    assert history["val_loss"][0] == pytest.approx(validated, abs=1e-5)
    expected = mixture.fit(tokens, y, batch_size=12, verbose=0).history
    for name, values in expected.items():
        assert history[name] == pytest.approx(values, abs=1e-5), name


def test_masked_steps_count_in_no_balance_term(rng):
    """The gate's mask reaches the router in fit_gate as it does in fit."""
    tokens = rng.integers(1, 9, (12, 6))
    tokens[:, 2:] = 0
    found = []
    for padded in (tokens, tokens[:, :2]):
        keras.utils.set_random_seed(1)
        router = plait.routers.Softmax(load_balance=1.0)
        mixture = plait.Mixture(
            [embedder(3), embedder(3)], embedder(2), router=router, name="woven"
        )
        mixture.compile(keras.optimizers.SGD(0.0), "mse")
        y = np.zeros((*padded.shape, 3))
        history = mixture.fit_gate(padded, y, batch_size=12, verbose=0).history
        found.append(history["woven_load_balance"][0])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


class Scares(keras.layers.Layer):
    """Returns NaN for rows whose first feature is negative."""

    def call(self, x):
        return keras.ops.where(x[:, :1] < 0, np.nan, 1.0) * keras.ops.ones_like(x[:, :3])

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 3)


def test_nan_of_an_expert_that_was_not_chosen_has_no_effect(rng):
    """Top-1 by the sign of the first feature: the first expert is chosen where it is finite."""
    x, _ = data(rng)
    gate = keras.layers.Dense(2)
    mixture = plait.Mixture([Scares(), keras.layers.Dense(3)], gate, router="top_k")
    mixture.router.k = 1
    mixture.build((None, 4))
    gate.kernel.assign(np.eye(4, 2) * [9.0, 0.0])
    mixture.compile(keras.optimizers.SGD(0.01), "mse")
    history = mixture.fit_gate(x, np.zeros((40, 3)), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_classes_weigh_as_in_fit(rng):
    x, y = data(rng)
    models = experts()
    slow, fast = (compiled(models, keras.layers.Dense(3)) for _ in range(2))
    fast.gate.set_weights(slow.gate.get_weights())
    weighs = {"class_weight": {0: 1.0, 1: 5.0, 2: 0.2}, "epochs": 2, "verbose": 0, "shuffle": False}
    expected = slow.fit(x, y, **weighs).history["loss"]
    plain = compiled(models, keras.layers.Dense(3))
    np.testing.assert_allclose(fast.fit_gate(x, y, **weighs).history["loss"], expected, rtol=1e-5)
    del weighs["class_weight"]
    plain.gate.set_weights(slow.gate.get_weights())
    assert plain.fit_gate(x, y, **weighs).history["loss"][0] != pytest.approx(expected[0], rel=0.1)


def test_tables_of_pandas_are_arrays(rng):
    pandas = pytest.importorskip("pandas")
    x, y = data(rng)
    models = experts()
    arrays, tables = (compiled(models, keras.layers.Dense(3)) for _ in range(2))
    tables.gate.set_weights(arrays.gate.get_weights())
    known = {"verbose": 0, "shuffle": False, "validation_split": 0.25, "epochs": 2}
    weight = rng.uniform(0.5, 2, len(x))
    expected = arrays.fit_gate(x, y, sample_weight=weight, **known).history
    made = pandas.DataFrame(x), pandas.Series(y)
    found = tables.fit_gate(*made, sample_weight=pandas.Series(weight), **known).history
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")  # as of any model
def test_tensors_of_the_backend_are_arrays(rng):
    x, y = data(rng)
    models = experts()
    ours, theirs = (compiled(models, keras.layers.Dense(3)) for _ in range(2))
    ours.gate.set_weights(theirs.gate.get_weights())
    tensors = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)
    found = ours.fit_gate(*tensors, shuffle=False, verbose=0).history["loss"]
    expected = theirs.fit_gate(x, y, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_checkpoint_is_a_file_of_the_mixture(rng, tmp_path):
    x, y = data(rng)
    mixture = compiled(experts(), keras.layers.Dense(3))
    save = keras.callbacks.ModelCheckpoint
    made = [
        save(str(tmp_path / "whole.keras")),
        save(str(tmp_path / "gate.weights.h5"), save_weights_only=True),
    ]
    mixture.fit_gate(x, y, epochs=2, callbacks=made, verbose=0)
    expected = mixture.predict(x, verbose=0)
    loaded = keras.models.load_model(tmp_path / "whole.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-5)
    other = compiled(experts(), keras.layers.Dense(3))
    other.load_weights(tmp_path / "gate.weights.h5")
    np.testing.assert_allclose(other.predict(x, verbose=0), expected, rtol=1e-5)


class Notes(keras.callbacks.Callback):
    """Notes the gate's weights as they are after each epoch and each batch."""

    def __init__(self):
        super().__init__()
        self.models, self.epochs, self.batches = set(), [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(self.model.gate.get_weights()[0].copy())

    def on_epoch_end(self, epoch, logs=None):
        self.models.add(self.model)
        self.epochs.append(self.model.gate.get_weights()[0].copy())


def test_callbacks_see_the_mixture_as_it_is(rng):
    x, y = data(rng)
    mixture = compiled(experts(), keras.layers.Dense(3))
    notes = Notes()
    history = mixture.fit_gate(x, y, epochs=3, batch_size=20, callbacks=notes, verbose=0)
    assert notes.models == {mixture}
    assert mixture.history is history
    assert len(notes.batches) == 6
    steps = [
        np.abs(after - before).max()
        for before, after in zip(notes.batches[:-1], notes.batches[1:], strict=True)
    ]
    assert min(steps) > 0
    np.testing.assert_array_equal(notes.epochs, notes.batches[1::2])
    np.testing.assert_array_equal(mixture.gate.get_weights()[0], notes.epochs[-1])


def test_the_best_weights_are_restored(rng):
    """No epoch is better by as much as is asked for: the first is the best."""
    x, y = data(rng)
    mixture = compiled(experts(), keras.layers.Dense(3))
    notes = Notes()
    stop = keras.callbacks.EarlyStopping(
        "val_accuracy", mode="max", min_delta=10.0, patience=2, restore_best_weights=True
    )
    known = {"epochs": 9, "validation_data": (x, y), "verbose": 0}
    mixture.fit_gate(x, y, callbacks=[notes, stop], **known)
    assert len(notes.epochs) == 3
    np.testing.assert_array_equal(mixture.gate.get_weights()[0], notes.epochs[0])
    assert np.abs(notes.epochs[0] - notes.epochs[-1]).max() > 0


def test_a_learning_rate_that_a_callback_sets_has_effect(rng):
    """With a rate of zero from the second epoch on the gate stays; the mixture's optimizer too."""
    x, y = data(rng)
    mixture = compiled(experts(), keras.layers.Dense(3))
    notes = Notes()
    rate = keras.callbacks.LearningRateScheduler(lambda epoch, lr: 0.5 if epoch == 0 else 0.0)
    mixture.fit_gate(x, y, epochs=3, callbacks=[rate, notes], verbose=0)
    np.testing.assert_array_equal(notes.epochs[0], notes.epochs[2])
    assert float(keras.ops.convert_to_numpy(mixture.optimizer.learning_rate)) == 0.5
    assert int(keras.ops.convert_to_numpy(mixture.optimizer.iterations.value)) == 0


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute is TensorFlow's")
@pytest.mark.parametrize("inside", [False, True])
def test_works_with_a_mixture_made_under_a_strategy(rng, inside):
    import contextlib

    import tensorflow as tf

    x, y = data(rng)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        mixture = compiled(experts(), keras.layers.Dense(3))
    plain = compiled(experts(), keras.layers.Dense(3))
    plain.set_weights(mixture.get_weights())
    known = {"epochs": 2, "shuffle": False, "verbose": 0, "validation_split": 0.25}
    with strategy.scope() if inside else contextlib.nullcontext():
        found = mixture.fit_gate(x, y, **known).history
    expected = plain.fit_gate(x, y, **known).history
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"validation_data": iter([1])}, r"`validation_data`.*Received: a list_iterator without"),
        ({"validation_data": 1}, r"`validation_data`.*Received: a int"),
        ({"validation_data": (1, 2, 3, 4)}, "Received: a tuple of 4"),
        ({"validation_split": 0.999}, "validation_split=0.999 of 40 rows"),
        ({"callbacks": [keras.callbacks.BackupAndRestore("x")]}, "Received: BackupAndRestore"),
    ],
)
def test_a_wrong_argument_is_named(rng, arguments, match):
    mixture = compiled(experts(), keras.layers.Dense(3))
    with pytest.raises(ValueError, match=match):
        mixture.fit_gate(*data(rng), verbose=0, **arguments)
