"""Functions of arrays and scikit-learn models as experts."""

import keras
import numpy as np
import pytest
from tests.recipes import as_numpy

import plait
from plait.experts import Frozen


@keras.saving.register_keras_serializable("test")
def halves(x):
    return np.stack([0.5 + 0 * x[:, 0], 0.5 + 0 * x[:, 0]], axis=-1)


def by_sign(x):
    p = 0.1 + 0.8 * (x[:, 0] > 0)
    return np.stack([1 - p, p], axis=-1)


def data(rng, rows=64):
    x = rng.normal(size=(rows, 3)).astype("float32")
    return x, (x[:, 0] > 0).astype(int)


def test_runs_on_the_rows_that_chose_it(rng):
    calls = []

    def first(x):
        calls.append(len(x))
        return x[:, :1]

    x = rng.normal(size=(200, 5)).astype("float32")
    mix = plait.Mixture([Frozen(first, 1), keras.layers.Dense(1)], router=plait.routers.TopK(1))
    mix(x)
    calls.clear()
    found = as_numpy(mix(x))
    weights, outputs = mix.gate_weights(x), mix.expert_outputs(x)
    assert 0 < calls[0] < 200
    np.testing.assert_allclose(found, np.einsum("be,beu->bu", weights, outputs), atol=1e-5)


def test_it_is_called_eagerly_and_in_compiled_steps(rng):
    x, y = data(rng)
    mix = plait.Mixture(
        [Frozen(by_sign, 2), Frozen(halves, 2)], gate=keras.layers.Dense(2, "softmax")
    )
    weights = as_numpy(mix.gate(x))
    expected = weights[:, :1] * by_sign(x) + weights[:, 1:] * halves(x)
    np.testing.assert_allclose(as_numpy(mix(x)), expected, atol=1e-6)
    np.testing.assert_allclose(mix.predict(x, batch_size=24, verbose=0), expected, atol=1e-6)
    mix.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    losses = mix.fit(x, y, epochs=4, batch_size=24, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    losses = mix.fit_gate(x, y, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert mix.gate_weights(x)[:, 0].mean() > 0.6
    np.testing.assert_allclose(mix.expert_outputs(x)[:, 0], by_sign(x), atol=1e-6)


def test_beside_a_keras_expert_that_learns(rng):
    x, y = data(rng)
    expert = keras.layers.Dense(2, "softmax")
    mix = plait.Mixture([Frozen(halves, 2), expert], gate="uniform")
    mix.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    losses = mix.fit(x, y, epochs=6, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 0.05


def test_a_structure_arrives_as_it_is(rng):
    x = {"a": rng.normal(size=(5, 2)).astype("float32"), "b": np.arange(5)}
    expert = Frozen(lambda part: part["a"][:, :1] + part["b"][:, None], 1)
    np.testing.assert_allclose(as_numpy(expert(x)), x["a"][:, :1] + x["b"][:, None], rtol=1e-6)


def test_a_registered_function_is_saved_by_name(rng, tmp_path):
    x, _ = data(rng, 8)
    mix = plait.Mixture([Frozen(halves, 2), keras.layers.Dense(2, "softmax")])
    expected = mix.predict(x, verbose=0)
    mix.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)


def test_another_function_cannot_be_saved_but_the_gate_can(rng, tmp_path):
    x, _ = data(rng, 8)

    def mixture():
        return plait.Mixture([Frozen(by_sign, 2, name="sign"), Frozen(halves, 2, name="half")])

    mix = mixture()
    expected = mix.predict(x, verbose=0)
    with pytest.raises(ValueError, match="cannot hold the function of the frozen expert 'sign'"):
        mix.save(tmp_path / "m.keras")
    mix.save_weights(tmp_path / "gate.weights.h5")
    other = mixture()
    other(x)
    other.load_weights(tmp_path / "gate.weights.h5")
    np.testing.assert_allclose(other.predict(x, verbose=0), expected, atol=1e-6)


def test_models_of_scikit_learn(rng, tmp_path):
    linear_model = pytest.importorskip("sklearn.linear_model")
    tree = pytest.importorskip("sklearn.tree")
    x, y = data(rng)
    models = [linear_model.LogisticRegression().fit(x, y), tree.DecisionTreeClassifier(max_depth=2)]
    models[1].fit(x, y)
    mix = plait.Mixture([Frozen(model) for model in models])
    found = mix.expert_outputs(x)
    for position, model in enumerate(models):
        np.testing.assert_allclose(found[:, position], model.predict_proba(x), atol=1e-6)
    regressor = Frozen(linear_model.LinearRegression().fit(x, y))
    np.testing.assert_allclose(
        as_numpy(regressor(x))[:, 0], regressor.predict.predict(x), atol=1e-5
    )
    pytest.importorskip("skops.io")
    expected = mix.predict(x, verbose=0)
    mix.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"Frozen\.trust\('sklearn\.tree\._tree\.Tree'\)"):
        keras.saving.load_model(tmp_path / "m.keras")
    Frozen.trust("sklearn.tree._tree.Tree")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)


def test_without_skops_a_model_of_scikit_learn_is_not_saved(rng, tmp_path, monkeypatch):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = data(rng)
    mix = plait.Mixture([Frozen(linear_model.LogisticRegression().fit(x, y))])
    mix(x)
    monkeypatch.setitem(__import__("sys").modules, "skops.io", None)
    with pytest.raises(ValueError, match="skops, which is not installed"):
        mix.save(tmp_path / "m.keras")


def test_a_class_that_was_not_seen_has_probability_zero(rng):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = data(rng)
    model = linear_model.LogisticRegression().fit(x, 2 * y)
    found = as_numpy(Frozen(model, classes=[0, 1, 2])(x))
    np.testing.assert_allclose(found[:, [0, 2]], model.predict_proba(x), atol=1e-6)
    assert (found[:, 1] == 0).all()
    with pytest.raises(ValueError, match="a model that knows"):
        Frozen(model, classes=[0, 1]).call(x)


def test_what_it_is_made_of_is_checked(rng):
    with pytest.raises(TypeError, match="'abc' of type str"):
        Frozen("abc")
    with pytest.raises(ValueError, match="output_shape=None for function"):
        Frozen(by_sign)
    with pytest.raises(ValueError, match=r"must return shape \(4, 3\)"):
        as_numpy(Frozen(lambda x: x[:, :2], 3).call(np.ones((4, 3), "float32")))
    svm = pytest.importorskip("sklearn.svm")
    x, y = data(rng)
    with pytest.raises(ValueError, match="LinearSVC, which has no predict_proba"):
        Frozen(svm.LinearSVC().fit(x, y))
