"""One file, safe to load: with another execution, on another backend, with the same numbers."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from tests.experts.templates import Subclassed
from tests.recipes import as_numpy, randomize

import plait

layers = keras.layers
D, U = 4, 3


def deep(name=None):
    stack = [layers.Dense(5, activation="tanh", name="dense"), layers.Dense(U, name="dense_1")]
    return keras.Sequential([keras.Input((D,)), *stack], name=name)


def normed():
    stack = [layers.Dense(5), layers.BatchNormalization(), layers.Dropout(0.2), layers.Dense(U)]
    return keras.Sequential([keras.Input((D,)), *stack])


def functional():
    x = keras.Input((D,))
    return keras.Model(x, layers.Dense(U)(layers.Concatenate()([x, layers.Dense(2)(x)])))


def gate_net(count):
    return keras.Sequential([keras.Input((D,)), layers.Dense(count)])


MIXTURES = {
    "alike": lambda e: plait.Mixture(
        [deep("net"), deep("net")], gate_net(2), router="softmax", execution=e
    ),
    "unlike": lambda e: plait.Mixture(
        [deep(), functional(), normed(), layers.Dense(U), deep(), normed()],
        gate_net(6),
        router="softmax",
        execution=e,
    ),
    "template": lambda e: plait.Mixture(
        normed(), gate_net(4), num_experts=4, router="softmax", execution=e
    ),
    "bare template": lambda e: plait.Mixture(layers.Dense(U), num_experts=3, execution=e),
    "sparse": lambda e: plait.Mixture(
        deep(),
        gate_net(4),
        num_experts=4,
        router=plait.routers.TopK(2, noise=0.1, bias_update_rate=0.01),
        execution=e,
    ),
    "subclassed": lambda e: plait.Mixture([Subclassed(U), Subclassed(U)], "constant", execution=e),
    "nested": lambda e: plait.Mixture(
        [plait.Mixture([deep(), deep()], "constant"), deep()], "uniform", execution=e
    ),
}
LOOPS = [("alike", "loop"), ("template", "loop")]
every_mixture = pytest.mark.parametrize("kind", MIXTURES)


def trained(kind, rng, execution="auto"):
    mixture = MIXTURES[kind](execution)
    x = rng.normal(size=(16, D)).astype("float32")
    mixture.compile("adam", "mse")
    mixture.fit(x, rng.normal(size=(16, U)).astype("float32"), verbose=0)
    return mixture, x


def state_of(mixture):
    return [mixture.expert(i).get_weights() for i in range(mixture.num_experts)]


def assert_same_state(left, right):
    for ours, theirs in zip(state_of(left), state_of(right), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("kind", "execution"), [*((kind, "auto") for kind in MIXTURES), *LOOPS], ids=str
)
def test_a_file_loads_in_safe_mode_with_the_same_numbers_and_trains_on(
    kind, execution, rng, tmp_path
):
    mixture, x = trained(kind, rng, execution)
    mixture.save(tmp_path / "mixture.keras")
    loaded = keras.saving.load_model(tmp_path / "mixture.keras", safe_mode=True)
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), mixture.predict(x, verbose=0), atol=1e-6
    )
    assert_same_state(mixture, loaded)
    for ours, theirs in zip(mixture.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(as_numpy(ours.value), as_numpy(theirs.value))
    y = np.ones((16, U), "float32")
    for model in (mixture, loaded):
        model.fit(x, y, shuffle=False, verbose=0)
    if kind not in ("unlike", "template", "sparse"):  # these draw: dropout, noise
        np.testing.assert_allclose(
            loaded.predict(x, verbose=0), mixture.predict(x, verbose=0), atol=1e-5
        )


@every_mixture
@pytest.mark.parametrize(("first", "second"), [("auto", "loop"), ("loop", "auto")])
def test_weights_saved_with_one_execution_load_with_another(kind, first, second, rng, tmp_path):
    mixture, x = MIXTURES[kind](first), rng.normal(size=(16, D)).astype("float32")
    mixture(x)
    mixture.save_weights(tmp_path / "mixture.weights.h5")
    other = MIXTURES[kind](second)
    other(x)
    assert np.abs(as_numpy(other(x)) - as_numpy(mixture(x))).max() > 1e-4
    other.load_weights(tmp_path / "mixture.weights.h5")
    np.testing.assert_allclose(as_numpy(other(x)), as_numpy(mixture(x)), atol=1e-5)
    assert_same_state(mixture, other)


def test_a_file_of_another_architecture_is_refused(rng, tmp_path):
    mixture, _ = trained("alike", rng)
    mixture.save_weights(tmp_path / "mixture.weights.h5")
    other = plait.Mixture(
        [keras.Sequential([keras.Input((D,)), layers.Dense(6), layers.Dense(U)]) for _ in "ab"],
        gate_net(2),
        router="softmax",
    )
    with pytest.raises(ValueError, match=r"expert 0 .*\[4, 6\].*expert 0 \('net'\) has \[\[4, 5\]"):
        other.load_weights(tmp_path / "mixture.weights.h5")


def test_a_mixture_inside_a_model_is_saved_with_it(rng, tmp_path):
    x = keras.Input((D,))
    model = keras.Model(x, layers.Dense(2)(MIXTURES["unlike"]("auto")(x)))
    data = rng.normal(size=(5, D)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(
        loaded.predict(data, verbose=0), model.predict(data, verbose=0), atol=1e-6
    )


@pytest.mark.parametrize("execution", ["auto", "loop"])
def test_statistics_of_normalization_are_kept(execution, rng, tmp_path):
    x = (5 + 3 * rng.normal(size=(16, D))).astype("float32")

    def net(shift):
        normalization = layers.Normalization()
        normalization.adapt(x + shift)
        return keras.Sequential([keras.Input((D,)), normalization, layers.Dense(U)])

    experts = [net(0.0), net(3.0), deep()]
    expected = sum(as_numpy(expert(x)) for expert in experts) / 3
    mixture = plait.Mixture(experts, "uniform", execution=execution)
    np.testing.assert_allclose(mixture.predict(x, verbose=0), expected, atol=1e-5)
    mixture.save(tmp_path / "mixture.keras")
    loaded = keras.saving.load_model(tmp_path / "mixture.keras", safe_mode=True)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TextVectorization is TensorFlow's"
)
@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="strings are tensors on TensorFlow alone"
)
def test_vocabularies_are_kept(tmp_path):
    texts = np.array([["a b c"], ["b c"], ["c"]])

    def net(vocabulary):
        vectorize = layers.TextVectorization(
            output_sequence_length=4, vocabulary=vocabulary, standardize=None
        )
        return keras.Sequential(
            [
                keras.Input((1,), dtype="string"),
                vectorize,
                layers.Embedding(6, 2),
                layers.Flatten(),
                layers.Dense(U),
            ]
        )

    experts = [net(["a", "b", "c"]), net(["c", "b"])]
    x = keras.ops.convert_to_tensor(texts)
    expected = sum(as_numpy(expert(x)) for expert in experts) / 2
    mixture = plait.Mixture(experts, "uniform")
    np.testing.assert_allclose(as_numpy(mixture(x)), expected, atol=1e-5)
    mixture.save(tmp_path / "mixture.keras")
    loaded = keras.saving.load_model(tmp_path / "mixture.keras", safe_mode=True)
    np.testing.assert_allclose(as_numpy(loaded(x)), expected, atol=1e-5)


@pytest.mark.parametrize("execution", ["auto", "loop"])
def test_a_layer_that_experts_share_is_trained_once_and_its_values_are_kept(
    execution, rng, tmp_path
):
    trunk = layers.Dense(5, activation="tanh", name="trunk")

    def net():
        x = keras.Input((D,))
        return keras.Model(x, layers.Dense(U)(trunk(x)))

    experts, x = [net(), net()], rng.normal(size=(16, D)).astype("float32")
    mixture = plait.Mixture(experts, "uniform", execution=execution)
    assert sum(int(np.prod(v.shape)) for v in mixture.trainable_variables) == 25 + 2 * 18
    mixture.compile("adam", "mse")
    mixture.fit(x, np.ones((16, U), "float32"), verbose=0)
    expected = sum(as_numpy(expert(x)) for expert in experts) / 2
    np.testing.assert_allclose(mixture.predict(x, verbose=0), expected, atol=1e-5)
    mixture.save(tmp_path / "mixture.keras")
    # Keras' config of a functional model does not say what it shares with another: each expert
    # gets the layer's values, as a layer of its own, which no saved optimizer state fits.
    loaded = keras.saving.load_model(tmp_path / "mixture.keras", safe_mode=True, compile=False)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-5)


READ = """
import sys, numpy as np, keras, plait
folder = sys.argv[1]
x = np.load(folder + "/x.npy")
for name in sys.argv[2:]:
    model = keras.saving.load_model(f"{folder}/{name}.keras", safe_mode=True)
    np.save(f"{folder}/{name}_{keras.config.backend()}.npy", model.predict(x, verbose=0))
"""


@pytest.mark.skipif(keras.config.backend() != "jax", reason="once: JAX writes, the others read")
@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_a_file_written_on_one_backend_gives_the_same_numbers_on_another(backend, rng, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    kinds = [kind for kind in MIXTURES if kind != "subclassed"]  # its class lives in the tests
    x = rng.normal(size=(16, D)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    expected = {}
    for kind in kinds:
        mixture = MIXTURES[kind]("auto")
        mixture(x)
        for i in range(mixture.num_experts):
            randomize(mixture.expert(i), rng)
        mixture.compile("adam", "mse")
        expected[kind] = mixture.predict(x, verbose=0)
        mixture.save(tmp_path / f"{kind}.keras")
    environment = {**os.environ, "KERAS_BACKEND": backend}
    subprocess.run([sys.executable, "-c", READ, str(tmp_path), *kinds], env=environment, check=True)
    for kind in kinds:
        found = np.load(tmp_path / f"{kind}_{backend}.npy")
        np.testing.assert_allclose(found, expected[kind], atol=1e-5)
