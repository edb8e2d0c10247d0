"""`combination="gaussian"`: one number on every path, trained, saved, refused where wrong."""

import keras
import numpy as np
import pytest
from tests.gradients import value_and_gradients
from tests.recipes import as_numpy

import plait
from plait.layers import WeightedMerge
from plait.losses import NLL, ExpertMean, MixtureNLL
from plait.losses.families import Gaussian

PREDICTED = Gaussian(scale="predicted")


def networks(count=3, units=4):
    return [keras.Sequential([keras.Input((5,)), keras.layers.Dense(units)]) for _ in range(count)]


def scale_of(raw):
    return np.logaddexp(0.0, raw) + 1e-6


def pooled(weights, outputs):
    """The formula in NumPy, of weights `(b, e)` and outputs `(b, e, 2u)`; means and scales."""
    mean, raw = np.split(outputs.astype("float64"), 2, axis=-1)
    precision = weights[..., None] / scale_of(raw) ** 2
    total = precision.sum(axis=1)
    return (precision * mean).sum(axis=1) / total, total**-0.5


def assert_pooled(found, weights, outputs):
    mean, scale = pooled(weights, outputs)
    got_mean, got_raw = np.split(as_numpy(found), 2, axis=-1)
    np.testing.assert_allclose(got_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scale_of(got_raw), scale, rtol=1e-4)


@pytest.mark.parametrize("execution", ["loop", "stacked"])
@pytest.mark.parametrize("copy_experts", [False, True])
def test_equals_the_formula(execution, copy_experts, rng):
    mix = plait.Mixture(
        networks(), combination="gaussian", execution=execution, copy_experts=copy_experts
    )
    x = rng.normal(size=(7, 5)).astype("float32")
    assert_pooled(mix.predict(x, verbose=0), mix.gate_weights(x), mix.expert_outputs(x))


def test_chosen_experts_alone_are_pooled(rng):
    experts = networks()
    experts[2].layers[-1].set_weights([np.full((5, 4), np.nan), np.zeros(4)])
    gate = keras.layers.Dense(3, bias_initializer=keras.initializers.Constant([0.0, 0.0, -99.0]))
    mix = plait.Mixture(experts, gate, router=plait.routers.TopK(2), combination="gaussian")
    x = 0.1 * rng.normal(size=(9, 5)).astype("float32")
    weights, outputs = mix.gate_weights(x), mix.expert_outputs(x)
    assert ((weights > 0).sum(axis=-1) == 2).all()
    for found in (mix.predict(x, verbose=0), mix(x)):
        assert_pooled(found, weights[:, :2], outputs[:, :2])
    mix.compile("sgd", NLL(PREDICTED))
    assert np.isfinite(mix.fit(x, x[:, :2], epochs=2, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("router", [None, plait.routers.TopK(2)])
def test_it_trains_and_is_saved(router, rng, tmp_path):
    x = rng.normal(size=(96, 5)).astype("float32")
    y = x[:, :2] + 0.1 * rng.normal(size=(96, 2)).astype("float32")
    mix = plait.Mixture(networks(), router=router, combination="gaussian")
    mix.compile(keras.optimizers.Adam(0.05), NLL(PREDICTED))
    losses = mix.fit(x, y, epochs=8, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 0.5
    mix.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.combination == "gaussian"
    np.testing.assert_allclose(loaded.predict(x, verbose=0), mix.predict(x, verbose=0), atol=1e-6)


def test_a_gate_learns_whose_scale_to_believe(rng):
    """Both say they are sure; the second is wrong. A sum could only move its mean."""
    x = rng.normal(size=(64, 5)).astype("float32")
    experts = networks(2, 2)
    for expert, slope in zip(experts, (1.0, -1.0), strict=True):
        kernel = np.zeros((5, 2))
        kernel[0, 0] = slope
        expert.set_weights([kernel, np.array([0.0, -2.0])])
    mix = plait.Mixture(experts, "constant", combination="gaussian")
    mix.compile(keras.optimizers.Adam(0.2), NLL(PREDICTED))
    losses = mix.fit_gate(x, x[:, :1], epochs=10, batch_size=64, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert mix.gate_weights(x)[0, 0] > 0.8
    np.testing.assert_allclose(
        mix.evaluate(x, x[:, :1], verbose=0),
        float(as_numpy(NLL(PREDICTED)(x[:, :1], mix.predict(x, verbose=0)))),
        rtol=1e-4,
    )


def test_members_of_a_deep_ensemble_may_be_pooled(rng):
    mix = plait.Mixture(networks(), gate="uniform", combination="gaussian")
    mix.compile("adam", ExpertMean(NLL(PREDICTED)))
    x = rng.normal(size=(8, 5)).astype("float32")
    mix.fit(x, x[:, :2], verbose=0)
    assert_pooled(mix.predict(x, verbose=0), mix.gate_weights(x), mix.expert_outputs(x))


def test_a_pool_is_an_expert_of_another(rng):
    """Pooled twice by weights of one is pooled at once."""
    experts, x = networks(3), rng.normal(size=(6, 5)).astype("float32")
    inner = plait.Mixture(experts[:2], gate=[1.0, 1.0], combination="gaussian")
    outer = plait.Mixture([inner, experts[2]], gate=[1.0, 1.0], combination="gaussian")
    outputs = np.stack([as_numpy(expert(x)) for expert in experts], axis=1)
    assert_pooled(outer(x), np.ones((6, 3)), outputs)


def test_a_missing_view_has_no_say_and_no_gradient(rng):
    outputs = [rng.normal(size=(4, 2)).astype("float32") for _ in range(3)]
    outputs[1][1:] = np.nan
    weights = rng.dirichlet(np.ones(3), 4).astype("float32")
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 1], [0, 0, 0]], "float32")
    layer = WeightedMerge(combination="gaussian")

    def loss(weights, *outputs):
        return keras.ops.sum(layer([weights, *outputs], present=mask))

    value, (to_weights, *to_outputs) = value_and_gradients(loss, [weights, *outputs])
    assert np.isfinite(value)
    assert np.isfinite(to_weights).all()
    assert (to_outputs[1][1:] == 0).all()
    assert (to_outputs[0][:3] != 0).any(axis=-1).all()
    found = as_numpy(layer([weights, *outputs], present=mask))
    kept = weights[1:3][:, [0, 2]]
    kept /= kept.sum(axis=-1, keepdims=True)
    assert_pooled(found[1:3], kept, np.stack([outputs[0], outputs[2]], axis=1)[1:3])


def test_views_of_nan_are_left_out(rng):
    """Of two views the one that is there answers, as it would alone."""
    x = [rng.normal(size=(4, 2)).astype("float32"), rng.normal(size=(4, 3)).astype("float32")]
    experts = [keras.Sequential([keras.Input((size,)), keras.layers.Dense(2)]) for size in (2, 3)]
    mix = plait.Mixture(
        experts, "uniform", expert_inputs=[0, 1], present="not_nan", combination="gaussian"
    )
    gone = [x[0], np.full_like(x[1], np.nan)]
    np.testing.assert_allclose(
        mix.predict(gone, verbose=0), as_numpy(experts[0](x[0])), rtol=1e-4, atol=1e-5
    )


def test_what_cannot_be_means_and_scales_is_refused():
    with pytest.raises(ValueError, match=r"outputs of shape \((None|2), 3\)"):
        plait.Mixture(networks(2, 3), combination="gaussian")
    weights, output = np.ones((2, 4, 1), "float32"), np.ones((2, 4), "float32")
    with pytest.raises(ValueError, match=r"weights of shape \(2, 4, 1\) over outputs"):
        WeightedMerge(combination="gaussian")([weights, output])
    with pytest.raises(ValueError, match="log_space=True, combination='gaussian'"):
        WeightedMerge(log_space=True, combination="gaussian")


def test_the_likelihood_of_a_sum_is_refused(rng):
    mix = plait.Mixture(networks(), combination="gaussian")
    with pytest.raises(ValueError, match=r"combination='gaussian'\. Compile it with plait.losses"):
        mix.compile("adam", MixtureNLL(PREDICTED))
    with pytest.raises(ValueError, match="`responsibilities` supposes"):
        mix.responsibilities(rng.normal(size=(2, 5)), rng.normal(size=(2, 2)))
