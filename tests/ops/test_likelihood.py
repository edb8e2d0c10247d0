"""Log-densities against SciPy, and no NaN at any extreme."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from tests.gradients import value_and_gradients

from plait.ops import likelihood

# Name: density, SciPy's, and how to draw the arguments.
DENSITIES = {
    "gaussian": (
        likelihood.gaussian,
        lambda y, mean, log_scale: scipy.stats.norm.logpdf(y, mean, np.exp(log_scale)),
        lambda rng, shape: [rng.normal(size=shape) for _ in range(3)],
    ),
    "poisson": (
        likelihood.poisson,
        lambda y, log_rate: scipy.stats.poisson.logpmf(y, np.exp(log_rate)),
        lambda rng, shape: [rng.poisson(4.0, shape), rng.normal(1.0, size=shape)],
    ),
    "bernoulli": (
        likelihood.bernoulli,
        lambda y, odds: scipy.stats.bernoulli.logpmf(y, scipy.special.expit(odds)),
        lambda rng, shape: [rng.integers(0, 2, shape), rng.normal(size=shape)],
    ),
    "categorical": (
        likelihood.categorical,
        lambda y, logs: scipy.stats.multinomial.logpmf(y, 1, scipy.special.softmax(logs, -1)),
        lambda rng, shape: [
            np.eye(shape[-1])[rng.integers(0, shape[-1], shape[:-1])],
            np.log(rng.dirichlet(np.ones(shape[-1]), shape[:-1])),
        ],
    ),
}


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("shape", [(50,), (7, 3), (2, 3, 4)])
def test_densities_equal_scipys(name, shape, rng):
    density, oracle, draw = DENSITIES[name]
    arrays = [np.asarray(array, "float32") for array in draw(rng, shape)]
    found = ops.convert_to_numpy(density(*arrays))
    expected = oracle(*(array.astype("float64") for array in arrays))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rate", [0.5, 4.0, 20.0, 100.0, 1e3, 1e6])
def test_many_counts_lose_no_precision(rate, rng):
    """Terms of thousands cancel to a few: to 1e-6 of the value, given rates or, to 1e3, logs."""
    rates = (rate * np.exp(0.05 * rng.normal(size=400))).astype("float32")
    counts = rng.poisson(rates).astype("float32")
    ways = [(np.log(rates), rates, rates.astype("float64"))]
    if rate <= 1e3:  # a logarithm of a million, in float32, says less of the rate than that
        ways.append((np.log(rates), None, np.exp(np.log(rates).astype("float64"))))
    for logs, known, exact in ways:
        found = ops.convert_to_numpy(likelihood.poisson(counts, logs, known))
        expected = scipy.stats.poisson.logpmf(counts.astype("float64"), exact)
        assert (np.abs(found - expected) <= 1e-6 * np.maximum(1, np.abs(expected))).all()


def test_counts_far_from_their_rate(rng):
    """The deviance goes over from one formula to another; value and slope do not notice."""
    rates = np.geomspace(1e-12, 1e6, 300).astype("float32")
    for count in (0, 3, 4, 50, 1000):
        value, (slope,) = value_and_gradients(
            lambda r, y=count: ops.sum(likelihood.poisson(float(y), likelihood.safe_log(r), r)),
            [rates],
        )
        exact = rates.astype("float64")
        expected = scipy.stats.poisson.logpmf(count, exact)
        np.testing.assert_allclose(value, expected.sum(), rtol=1e-6)
        np.testing.assert_allclose(slope, count / exact - 1, rtol=1e-4, atol=1e-5)


def test_log_factorials_equal_scipys():
    counts = np.concatenate([np.arange(200), [1e3, 1e4, 1e6]]).astype("float32")
    found = ops.convert_to_numpy(likelihood.log_factorial(counts))
    expected = scipy.special.gammaln(counts.astype("float64") + 1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=3e-6)


EXTREME = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.sampled_from([0.0, 1.0, -1e4, 1e4, 3e38, -3e38, 1e-45, np.inf, -np.inf]),
)


@pytest.mark.parametrize("name", ["gaussian", "poisson", "bernoulli"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_parameters_give_a_finite_value_and_gradient(name, data):
    density, _, _ = DENSITIES[name]
    if name == "gaussian":
        y = data.draw(st.floats(-1e4, 1e4, width=32))
        parameters = [data.draw(EXTREME), data.draw(EXTREME)]
    else:
        y = data.draw(st.sampled_from([0, 1] if name == "bernoulli" else [0, 1, 3, 10_000]))
        parameters = [data.draw(EXTREME)]
    value, gradients = value_and_gradients(
        lambda *p: density(np.float32(y), *p), [np.float32(p) for p in parameters]
    )
    assert np.isfinite(value)
    assert np.isfinite(gradients).all()


def test_mixture_likelihood_and_posterior_equal_the_plain_formula(rng):
    weights = rng.dirichlet(np.ones(3), (4, 5)).astype("float32")
    logs = rng.normal(size=(3, 4, 5)).astype("float32")
    joint = np.moveaxis(weights, -1, 0).astype("float64") * np.exp(logs.astype("float64"))
    found = ops.convert_to_numpy(likelihood.log_likelihood(weights, logs))
    np.testing.assert_allclose(found, np.log(joint.sum(axis=0)), atol=2e-6)
    found = ops.convert_to_numpy(likelihood.posterior(weights, logs))
    np.testing.assert_allclose(found, np.moveaxis(joint / joint.sum(axis=0), 0, -1), atol=1e-6)


@given(
    weights=st.lists(st.sampled_from([0.0, 1.0, 1e-45, 1e-30, 0.5]), min_size=3, max_size=3),
    logs=st.lists(st.floats(-(2.0**99), 80, width=32), min_size=3, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_weights_of_zero_and_one_give_a_finite_value_and_gradient(weights, logs):
    arrays = [np.array([weights], "float32"), np.array(logs, "float32")[:, None]]
    value, gradients = value_and_gradients(
        lambda w, p: ops.sum(likelihood.log_likelihood(w, p)), arrays
    )
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    shares = ops.convert_to_numpy(likelihood.posterior(*arrays))
    assert np.isfinite(shares).all()


def test_an_expert_of_weight_zero_has_no_part_in_the_likelihood():
    weights, logs = np.array([[1.0, 0.0]], "float32"), np.array([[-1e6], [0.0]], "float32")
    assert float(likelihood.log_likelihood(weights, logs)[0]) == -1e6


def test_a_row_of_zero_weights_has_likelihood_one():
    weights, logs = np.zeros((1, 2), "float32"), np.zeros((2, 1), "float32")
    assert float(likelihood.log_likelihood(weights, logs)[0]) == 0
    np.testing.assert_array_equal(ops.convert_to_numpy(likelihood.posterior(weights, logs)), 0)
