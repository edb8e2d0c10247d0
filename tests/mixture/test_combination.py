"""`combination="geometric"`: one number on every path, trained, saved, refused where wrong."""

import keras
import numpy as np
import pytest
from tests.recipes import as_numpy

import plait
from plait.losses import ExpertMean, MixtureNLL


def classifiers(count=4, units=3, features=5, activation="softmax"):
    return [
        keras.Sequential([keras.Input((features,)), keras.layers.Dense(units, activation)])
        for _ in range(count)
    ]


def expected(mix, x):
    """The formula in NumPy, from the mixture's parts."""
    weights = mix.gate_weights(x).astype("float64")
    outputs = mix.expert_outputs(x).astype("float64")
    powers = np.exp(np.einsum("be,beu->bu", weights, np.log(outputs)))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("execution", ["loop", "stacked"])
@pytest.mark.parametrize("copy_experts", [False, True])
def test_equals_the_formula(execution, copy_experts, rng):
    mix = plait.Mixture(
        classifiers(), combination="geometric", execution=execution, copy_experts=copy_experts
    )
    x = rng.normal(size=(7, 5)).astype("float32")
    np.testing.assert_allclose(mix.predict(x, verbose=0), expected(mix, x), atol=1e-5)


def test_chosen_experts_alone_are_pooled(rng):
    mix = plait.Mixture(classifiers(), router=plait.routers.TopK(2), combination="geometric")
    x = rng.normal(size=(9, 5)).astype("float32")
    assert ((mix.gate_weights(x) > 0).sum(axis=-1) == 2).all()
    np.testing.assert_allclose(mix.predict(x, verbose=0), expected(mix, x), atol=1e-5)
    np.testing.assert_allclose(as_numpy(mix(x)), expected(mix, x), atol=1e-5)


def test_an_expert_that_was_not_chosen_has_no_veto(rng):
    experts = classifiers(3)
    broken = experts[2]
    broken.layers[-1].set_weights([np.full((5, 3), np.nan), np.zeros(3)])
    gate = keras.layers.Dense(3, bias_initializer=keras.initializers.Constant([0.0, 0.0, -99.0]))
    mix = plait.Mixture(experts, gate, router=plait.routers.TopK(2), combination="geometric")
    mix.compile("sgd", "sparse_categorical_crossentropy")
    x = 0.01 * rng.normal(size=(8, 5)).astype("float32")
    history = mix.fit(x, rng.integers(0, 3, 8), epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert np.isfinite(mix.predict(x, verbose=0)).all()


@pytest.mark.parametrize("router", [None, plait.routers.TopK(2)])
def test_it_trains_and_is_saved(router, rng, tmp_path):
    x = rng.normal(size=(96, 5)).astype("float32")
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    mix = plait.Mixture(classifiers(), router=router, combination="geometric")
    mix.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    losses = mix.fit(x, y, epochs=6, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    mix.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.combination == "geometric"
    np.testing.assert_allclose(loaded.predict(x, verbose=0), mix.predict(x, verbose=0), atol=1e-6)


def test_the_gate_is_fitted_on_the_pool(rng):
    x = rng.normal(size=(64, 5)).astype("float32")
    mix = plait.Mixture(classifiers(), combination="geometric")
    mix.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    y = np.argmax(mix.expert_outputs(x)[:, 1], axis=-1)
    found = mix.fit_gate(x, y, epochs=4, batch_size=64, verbose=0).history["loss"]
    fresh = -np.log(expected(mix, x)[np.arange(64), y]).mean()
    assert found[-1] < found[0]
    np.testing.assert_allclose(mix.evaluate(x, y, verbose=0), fresh, rtol=1e-4)


def test_one_unit_is_the_probability_of_yes(rng):
    mix = plait.Mixture(classifiers(2, 1, activation="sigmoid"), combination="geometric")
    x = rng.normal(size=(6, 5)).astype("float32")
    weights, p = mix.gate_weights(x), mix.expert_outputs(x)[..., 0]
    logit = np.sum(weights * (np.log(p) - np.log1p(-p)), axis=-1)
    np.testing.assert_allclose(mix.predict(x, verbose=0)[:, 0], 1 / (1 + np.exp(-logit)), atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "units", "what"),
    [(None, 3, "linear layer"), ("tanh", 3, "tanh"), ("sigmoid", 3, "sigmoid of several units")],
)
def test_experts_that_visibly_give_no_distribution_are_refused(activation, units, what):
    with pytest.raises(ValueError, match=f"Expert 0 .*{what}"):
        plait.Mixture(classifiers(2, units, activation=activation), combination="geometric")


def test_outputs_without_classes_are_refused():
    experts = [keras.layers.Lambda(lambda x: x[:, 0], output_shape=()) for _ in "ab"]
    mix = plait.Mixture(experts, combination="geometric")
    with pytest.raises(ValueError, match=r"outputs of shape \((None|2),\)"):
        mix(np.ones((2, 5), "float32"))


def test_an_unknown_combination_is_refused():
    with pytest.raises(ValueError, match="Use 'geometric'"):
        plait.Mixture(classifiers(), combination="geometrical")


def test_the_likelihood_of_a_sum_is_refused(rng):
    mix = plait.Mixture(classifiers(), combination="geometric")
    with pytest.raises(ValueError, match="likelihood of a weighted sum"):
        mix.compile("adam", MixtureNLL("categorical"))
    x = rng.normal(size=(8, 5)).astype("float32")
    with pytest.raises(ValueError, match="`fit_em` supposes"):
        mix.fit_em(x, rng.integers(0, 3, 8), family="categorical")
    mix.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="`responsibilities` supposes"):
        mix.responsibilities(x, rng.integers(0, 3, 8))


def test_independent_members_may_be_pooled(rng):
    """The members of a deep ensemble are trained apart; their pool is what is predicted."""
    mix = plait.Mixture(classifiers(), gate="uniform", combination="geometric")
    mix.compile("adam", ExpertMean("sparse_categorical_crossentropy"))
    x = rng.normal(size=(8, 5)).astype("float32")
    mix.fit(x, rng.integers(0, 3, (8, 1)), verbose=0)
    np.testing.assert_allclose(mix.predict(x, verbose=0), expected(mix, x), atol=1e-5)
