"""The M-steps: at the solution no gradient is left, and the start is never better."""

import numpy as np
import pytest

from plait.training import regression


@pytest.fixture
def problem(rng):
    design = regression.with_intercept(rng.normal(size=(80, 2)))
    return design, rng.random(80), design @ rng.normal(size=(3, 2))


def test_least_squares_leaves_residuals_orthogonal_to_the_features(problem, rng):
    design, weights, eta = problem
    y = eta + rng.normal(size=eta.shape)
    found = regression.least_squares(design, y, weights)
    np.testing.assert_allclose(design.T @ (weights[:, None] * (y - design @ found)), 0, atol=1e-9)


def test_poisson_regression_has_no_gradient_left(problem, rng):
    design, weights, eta = problem
    y = rng.poisson(np.exp(0.5 * eta))
    found = regression.poisson(design, y, weights, np.zeros((3, 2)))
    rates = np.exp(design @ found)
    np.testing.assert_allclose(design.T @ (weights[:, None] * (y - rates)), 0, atol=1e-6)


def test_logistic_regression_has_no_gradient_left(problem, rng):
    design, weights, eta = problem
    y = (rng.random(eta.shape) < 1 / (1 + np.exp(-eta))).astype(float)
    found = regression.logistic(design, y, weights, np.zeros((3, 2)))
    p = 1 / (1 + np.exp(-design @ found))
    np.testing.assert_allclose(design.T @ (weights[:, None] * (y - p)), 0, atol=1e-6)


def test_softmax_regression_has_no_gradient_left(problem, rng):
    design, weights, _ = problem
    target = rng.dirichlet(np.ones(4), 80)
    found = regression.softmax(design, target, weights, np.zeros((3, 4)))
    p = np.exp(regression.log_softmax(design @ found))
    np.testing.assert_allclose(design.T @ (weights[:, None] * (target - p)), 0, atol=1e-6)


def test_softmax_regression_of_many_features_climbs_under_the_fixed_bound(rng):
    design = regression.with_intercept(rng.normal(size=(300, 60)))
    target = rng.dirichlet(np.ones(8), 300)
    weights = np.ones(300)
    found = regression.softmax(design, target, weights, np.zeros((61, 8)), max_iterations=500)
    p = np.exp(regression.log_softmax(design @ found))
    np.testing.assert_allclose(design.T @ (target - p), 0, atol=1e-3)


def test_separable_data_do_not_overflow(rng):
    design = regression.with_intercept(np.linspace(-1, 1, 20)[:, None])
    y = (design[:, :1] > 0).astype(float)
    found = regression.logistic(design, y, np.ones(20), np.zeros((2, 1)))
    assert np.isfinite(found).all()
    found = regression.softmax(design, np.hstack([y, 1 - y]), np.ones(20), np.zeros((2, 2)))
    assert np.isfinite(found).all()


def test_a_good_start_is_never_left_for_a_worse_point(problem, rng):
    design, weights, _ = problem
    y = rng.poisson(2.0, size=(80, 1))
    best = regression.poisson(design, y, weights, np.zeros((3, 1)))
    again = regression.poisson(design, y, weights, best)
    np.testing.assert_allclose(again, best, atol=1e-6)
