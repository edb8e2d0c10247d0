"""The M-steps: at the solution no gradient is left, and the start is never better."""

import numpy as np
import pytest

from plait.losses import families
from plait.training import regression
from plait.training.linear_families import linear_family

LINKS = {
    "poisson": np.exp,
    "bernoulli": lambda eta: 1 / (1 + np.exp(-eta)),
    "categorical": lambda eta: np.exp(eta) / np.exp(eta).sum(axis=-2, keepdims=True),
}


@pytest.fixture
def problem(rng):
    """A design matrix, weights of two runs and three experts, and linear predictors."""
    design = regression.with_intercept(rng.normal(size=(80, 2)))
    return design, rng.random((2, 3, 80)), rng.normal(size=(4, 3)) @ design.T


def draw(family, eta, rng):
    return {
        "poisson": lambda: rng.poisson(np.exp(0.5 * eta.T)),
        "bernoulli": lambda: (rng.random(eta.T.shape) < LINKS["bernoulli"](eta.T)).astype(float),
        "categorical": lambda: rng.dirichlet(np.ones(len(eta)), eta.shape[1]),
    }[family]()


def fit(family, design, y, weights, start=None, steps=50):
    """Returns the coefficients of all runs and experts, and what the family says of them."""
    form = linear_family(families.get(family), weights.shape[1])
    target = form.target(y, y.shape[1])
    if start is None:
        start = np.zeros((*weights.shape[:2], y.shape[1], design.shape[1]))
    everyone = slice(None)
    form.restart(len(weights))
    fitted = form.evaluate(start @ design.T, target, everyone)
    return form.fit(design, target, weights, start, fitted, everyone, steps)


def gradient(family, design, y, weights, coefficients):
    residual = y.T - LINKS[family](coefficients @ design.T)
    return (weights[..., None, :] * residual) @ design


def test_least_squares_leaves_residuals_orthogonal_to_the_features(problem, rng):
    design, weights, eta = problem
    y = eta + rng.normal(size=eta.shape)
    found = regression.least_squares(design, y, weights)
    assert found.shape == (2, 3, 4, 3)
    left = (weights[..., None, :] * (y - found @ design.T)) @ design
    np.testing.assert_allclose(left, 0, atol=1e-9)


@pytest.mark.parametrize("singular", ["column", "rows"])
def test_least_squares_of_a_singular_problem_is_the_smallest_solution(singular, rng):
    """Beside a regular one: a column that is twice another one, or fewer rows than columns."""
    design = regression.with_intercept(rng.normal(size=(20, 2)))
    if singular == "column":
        design[:, 1] = 2 * design[:, 0]
    weights = np.stack([np.arange(20) < 2, np.ones(20)]).astype("float64")
    y = rng.normal(size=(1, 20))
    found = regression.least_squares(design, y, weights)
    for weight, each in zip(weights, found, strict=True):
        expected = np.linalg.lstsq(design * weight[:, None], y[0] * weight, rcond=None)[0]
        np.testing.assert_allclose(each[0], expected, atol=1e-9)


@pytest.mark.parametrize("family", LINKS)
def test_a_regression_has_no_gradient_left(family, problem, rng):
    design, weights, eta = problem
    y = draw(family, eta, rng)
    found, fitted = fit(family, design, y, weights)
    np.testing.assert_allclose(gradient(family, design, y, weights, found), 0, atol=1e-6)
    np.testing.assert_allclose(fitted.means, LINKS[family](found @ design.T), rtol=1e-9)


def test_softmax_regression_of_many_features_climbs_under_the_fixed_bound(rng):
    design = regression.with_intercept(rng.normal(size=(300, 60)))
    y, weights = rng.dirichlet(np.ones(8), 300), np.ones((1, 1, 300))
    found, _ = fit("categorical", design, y, weights, steps=500)
    left = gradient("categorical", design, y, weights, found)
    np.testing.assert_allclose(left, 0, atol=1e-3)


@pytest.mark.parametrize("family", ["bernoulli", "categorical"])
def test_separable_data_do_not_overflow(family):
    design = regression.with_intercept(np.linspace(-1, 1, 20)[:, None])
    y = (design[:, :1] > 0).astype(float)
    y = np.hstack([y, 1 - y, np.zeros((20, 1))]) if family == "categorical" else y
    found, fitted = fit(family, design, y, np.ones((1, 1, 20)))
    assert np.isfinite(found).all()
    assert fitted.densities.sum() > -1e-3


@pytest.mark.parametrize("family", LINKS)
def test_no_step_leaves_a_start_for_a_worse_point(family, problem, rng):
    """From far away, where Newton steps overshoot, and from the best point."""
    design, weights, eta = problem
    y = draw(family, eta, rng)
    point = 3 * rng.normal(size=(2, 3, 4, 3))
    heights = []
    for _ in range(60):
        point, fitted = fit(family, design, y, weights, point, steps=1)
        heights.append((weights * fitted.densities).sum(axis=-1))
    rises = np.diff(heights, axis=0)
    assert (rises >= -1e-11 * np.abs(heights[1:])).all()
    again, _ = fit(family, design, y, weights, point, steps=1)
    np.testing.assert_allclose(again @ design.T, point @ design.T, atol=1e-6)


def test_an_expert_of_no_weight_stays_as_it_is(problem, rng):
    design, weights, eta = problem
    weights[1, 2] = 0.0
    for family in ("gaussian", *LINKS):
        y = eta.T if family == "gaussian" else draw(family, eta, rng)
        start = rng.normal(size=(2, 3, 4, 3))
        found, _ = fit(family, design, y, weights, start, steps=1)
        moved = np.abs(found - start).max(axis=(2, 3)) > 0
        np.testing.assert_array_equal(moved, [[True] * 3, [True, True, False]])
