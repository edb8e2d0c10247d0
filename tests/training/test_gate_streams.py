"""`fit_gate` on datasets, loaders and generators: read once, into files that are removed."""

import os
import tempfile

import keras
import numpy as np
import pytest
from tests.training.streams import KINDS, NEEDS_STEPS, Sequence, forever

import plait

# Keras warns of `shuffle=True`, the default, whenever `fit` takes a dataset.
pytestmark = pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of temporary files, which is empty again after each test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert os.listdir(tmp_path) == []


def data(rng, size=40):
    return rng.normal(size=(size, 4)).astype("float32"), rng.integers(0, 3, size)


def mixture(like=None):
    experts = [keras.layers.Dense(3, "softmax", trainable=False) for _ in "ab"]
    made = plait.Mixture(experts, keras.layers.Dense(2), router="softmax")
    made.build((None, 4))
    if like is not None:
        made.set_weights(like.get_weights())
    made.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return made


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_fit_with_frozen_experts(kind, weighted, rng):
    """Batch by batch, with validation data of the same kind: 40 rows in batches of 16."""
    arrays = data(rng)
    if weighted:
        arrays = (*arrays, rng.uniform(0.5, 2.0, 40).astype("float32"))
    held_out = data(rng, 24)
    slow = mixture()
    fast = mixture(slow)
    found = []
    for fit in (slow.fit, fast.fit_gate):
        known = {"epochs": 3, "verbose": 0, "validation_data": KINDS[kind](held_out, 16)}
        if kind in NEEDS_STEPS:
            known |= {"steps_per_epoch": 3, "validation_steps": 2}
        found.append(fit(KINDS[kind](arrays, 16), shuffle=False, **known).history)
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, atol=1e-5, err_msg=name)
    for ours, theirs in zip(fast.get_weights(), slow.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_classes_weigh_as_in_fit(rng):
    arrays = data(rng)
    slow = mixture()
    fast = mixture(slow)
    known = {"class_weight": {0: 1.0, 1: 5.0, 2: 0.2}, "epochs": 2, "verbose": 0, "shuffle": False}
    expected = slow.fit(Sequence(arrays, 16), **known).history["loss"]
    found = fast.fit_gate(Sequence(arrays, 16), **known).history["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_each_batch_is_read_once(rng):
    batches = Sequence(data(rng), 16)
    mixture().fit_gate(batches, epochs=4, verbose=0)
    assert batches.reads == 3


def test_a_generator_is_not_read_beyond_its_last_step(rng):
    batches = forever(data(rng), 16)
    first = next(forever(data(rng), 16))[1]
    mixture().fit_gate(batches, steps_per_epoch=3, epochs=2, verbose=0)
    assert len(next(batches)[1]) == len(first)  # the first batch of the next round, not the second


def test_rows_of_every_batch_are_shuffled(rng):
    """Sorted by class and in batches of one class, rows still come mixed; `fit` leaves them so."""
    seen = []

    class Notes(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["loss"])

    x = np.sign(np.arange(-32, 32) + 0.5).astype("float32")[:, None] * np.ones(4, "float32")
    model = plait.Mixture([keras.layers.Dense(1, trainable=False)], "constant")
    model.build((None, 4))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    blend = model.predict(x, verbose=0)
    batches = Sequence((x, blend + np.sqrt(np.arange(64) // 32)[:, None]), 32)
    model.fit_gate(batches, verbose=0, shuffle=False, callbacks=[Notes()])
    ordered, seen[:] = list(seen), []
    np.testing.assert_allclose(ordered, [0.0, 0.5], atol=1e-5)
    model.fit_gate(batches, verbose=0, callbacks=[Notes()])
    assert seen[0] > 0.05


def test_padded_steps_do_not_count(rng):
    """At a learning rate of zero every figure is that of `fit`, on whole batches."""
    tokens = rng.integers(1, 9, (12, 6))
    tokens[:, 2:] = 0
    y = rng.integers(0, 3, tokens.shape)

    def embedder(units, activation=None):
        layers = [
            keras.layers.Embedding(9, 4, mask_zero=True),
            keras.layers.Dense(units, activation),
        ]
        return keras.Sequential([keras.Input((None,), dtype="int32"), *layers])

    made = plait.Mixture([embedder(3, "softmax"), embedder(3, "softmax")], embedder(2, "softmax"))
    made.compile(
        keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"]
    )
    known = {"verbose": 0, "shuffle": False, "validation_data": Sequence((tokens[:5], y[:5]), 6)}
    expected = made.fit(Sequence((tokens, y), 6), **known).history
    found = made.fit_gate(Sequence((tokens, y), 6), **known).history
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-5), name


def test_parts_of_the_input_have_names(rng):
    x = {"left": rng.normal(size=(20, 3)), "right": rng.normal(size=(20, 5))}
    made = plait.Mixture(
        [keras.layers.Dense(1), keras.layers.Dense(1)],
        expert_inputs=["left", "right"],
        gate_inputs="left",
    )
    made.compile("adam", "mse")
    history = made.fit_gate(Sequence((x, np.ones((20, 1))), 8), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_files_are_removed_when_training_fails(rng, folder):
    """While it trains, the rows lie in the folder; the fixture sees that nothing is left."""

    class Fails(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            files = [file for inside in folder.iterdir() for file in inside.iterdir()]
            raise RuntimeError(str(len(files)))

    with pytest.raises(RuntimeError, match=r"^3$"):  # of input, target and outputs
        mixture().fit_gate(Sequence(data(rng), 16), callbacks=[Fails()], verbose=0)


def test_files_are_removed_when_the_data_fail(rng):
    def breaks():
        yield data(rng)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        mixture().fit_gate(breaks(), steps_per_epoch=2, verbose=0)


def of_batches(*batches):
    """Makes the data anew for each test."""
    return lambda: (batch for batch in batches)


ONES = np.ones((4, 4), "float32")


@pytest.mark.parametrize(
    ("make", "arguments", "match"),
    [
        (of_batches(), {}, r"may never end.*generator without steps_per_epoch.*Pass steps_per"),
        (lambda: Sequence((ONES, ONES), 2, endless=True), {}, "Sequence without steps_per_epoch"),
        (of_batches((ONES, ONES)), {"steps_per_epoch": 2}, "=2 batches.*generator of 1 batches"),
        (of_batches((ONES, ONES)), {"steps_per_epoch": 0}, "Received: steps_per_epoch=0"),
        (of_batches(), {"steps_per_epoch": 1}, "must yield rows. Received: a generator of 0"),
        (of_batches((ONES,)), {"steps_per_epoch": 1}, "Received: a tuple of 1"),
        (of_batches(ONES), {"steps_per_epoch": 1}, "Received: a ndarray"),
        (of_batches((ONES, ONES[:3])), {"steps_per_epoch": 1}, "arrays of 3 and 4 rows"),
        (of_batches((ONES.astype(str), ONES)), {"steps_per_epoch": 1}, "Received: dtype <U"),
        (
            of_batches((ONES, ONES), (ONES[:, :3], ONES)),
            {"steps_per_epoch": 2},
            r"agree with the first.*Received: \(3,\) float32.*Pad all batches",
        ),
        (of_batches((ONES, ONES)), {"y": ONES}, "`y` of fit_gate goes with arrays"),
        (of_batches((ONES, ONES)), {"sample_weight": ONES}, "`sample_weight` of fit_gate goes"),
        (of_batches((ONES, ONES)), {"validation_split": 0.5}, "`validation_split`.*of type float"),
        (
            of_batches((ONES, ONES)),
            {"steps_per_epoch": 1, "validation_data": iter([])},
            "reads `validation_data` once.*list_iterator without validation_steps",
        ),
    ],
)
def test_what_cannot_be_read_is_named(make, arguments, match):
    with pytest.raises(ValueError, match=match):
        mixture().fit_gate(make(), verbose=0, **arguments)
