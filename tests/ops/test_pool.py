"""Logarithmic opinion pools: value, gradient, zeros and extremes against NumPy float64."""

import numpy as np
import pytest
from keras import ops
from tests.gradients import value_and_gradients
from tests.precision import double
from tests.recipes import as_numpy

from plait.ops import log_pool, pool
from plait.ops.merging import combination
from plait.ops.pool import pool_slots, pool_stacked

# shape of the weights, shape of each output, einsum of weights and stacked logarithms
RANKS = [
    ((3, 4), (3, 5), "be,ebu->bu"),
    ((2, 5, 4), (2, 5, 3), "bte,ebtu->btu"),
    ((2, 4), (2, 3, 2), "be,ebtu->btu"),
    ((3, 6, 4), (3, 6), "bue,ebu->bu"),
    ((3, 4), (3, 1), "be,ebu->bu"),
]
every_rank = pytest.mark.parametrize(("weights_shape", "shape", "formula"), RANKS)


def expected_pool(formula, weights, outputs):
    """The formula in NumPy, of positive probabilities."""
    if outputs.shape[-1] == 1:
        logits = np.log(outputs) - np.log1p(-outputs)
        return 1.0 / (1.0 + np.exp(-np.einsum(formula, weights, logits)))
    powers = np.exp(np.einsum(formula, weights, np.log(outputs)))
    return powers / powers.sum(axis=-1, keepdims=True)


def drawn(rng, weights_shape, shape):
    weights = rng.uniform(0.0, 1.0, weights_shape)
    outputs = rng.uniform(0.05, 0.9, (weights_shape[-1], *shape))
    if shape[-1] > 1:
        outputs /= outputs.sum(axis=-1, keepdims=True)
    return weights, outputs


@every_rank
def test_equals_the_formula_in_every_layout(weights_shape, shape, formula, rng):
    weights, outputs = drawn(rng, weights_shape, shape)
    expected = expected_pool(formula, weights, outputs)
    with double():
        found = {
            "list": pool(weights, list(outputs)),
            "stacked": pool_stacked(weights, outputs),
            "logs": ops.exp(log_pool(np.log(weights), list(np.log(outputs)))),
        }
        for name, value in found.items():
            np.testing.assert_allclose(as_numpy(value), expected, rtol=1e-10, err_msg=name)


def test_slots_are_pooled_without_empty_ones(rng):
    weights, outputs = drawn(rng, (4, 2), (4, 3))
    weights[1, 1] = 0.0
    stacked = np.moveaxis(outputs, 0, 1).copy()
    stacked[1, 1] = 0.0  # an empty slot
    found = pool_slots(weights.astype("float32"), stacked.astype("float32"))
    expected = expected_pool("be,ebu->bu", weights, outputs)
    np.testing.assert_allclose(as_numpy(found), expected, atol=1e-6)


@every_rank
def test_gradients_equal_differences_in_float64(weights_shape, shape, formula, rng):
    weights, outputs = drawn(rng, weights_shape, shape)
    upstream = rng.normal(size=shape)

    def loss(weights, outputs):
        return np.sum(upstream * expected_pool(formula, weights, outputs))

    def slope(array, at):
        step = np.zeros_like(array)
        step[at] = 1e-6
        return step

    with double():
        _, found = value_and_gradients(
            lambda w, y: ops.sum(ops.multiply(pool_stacked(w, y), upstream)), [weights, outputs]
        )
    for _ in range(5):
        at = tuple(rng.integers(0, size) for size in weights.shape)
        step = slope(weights, at)
        by_hand = (loss(weights + step, outputs) - loss(weights - step, outputs)) / 2e-6
        np.testing.assert_allclose(found[0][at], by_hand, rtol=1e-5, atol=1e-8)
        at = tuple(rng.integers(0, size) for size in outputs.shape)
        step = slope(outputs, at)
        by_hand = (loss(weights, outputs + step) - loss(weights, outputs - step)) / 2e-6
        np.testing.assert_allclose(found[1][at], by_hand, rtol=1e-5, atol=1e-8)


ZEROS = np.array(
    [
        [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1e-40, 1.0, 0.0]],
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]],
    ],
    "float32",
)


@pytest.mark.parametrize("function", [pool_stacked, lambda w, y: pool(w, [y[0], y[1]])])
def test_zeros_leave_values_and_gradients_finite(function):
    weights = np.array([[0.5, 0.5], [0.7, 0.3], [0.0, 1.0]], "float32")
    value, gradients = value_and_gradients(
        lambda w, y: ops.sum(ops.multiply(function(w, y), np.arange(3, dtype="float32"))),
        [weights, ZEROS],
    )
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    found = as_numpy(function(weights, ZEROS))
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(found[0], [0.5, 0.5, 0.0], atol=1e-6)  # each excludes the other's
    np.testing.assert_allclose(found[2], ZEROS[1, 2], atol=1e-6)  # a weight of zero has no veto


def test_one_unit_at_its_ends_is_finite():
    outputs = np.array([[[0.0], [1.0], [0.5]], [[1.0], [1.0], [0.8]]], "float32")
    weights = np.full((3, 2), 0.5, "float32")
    value, gradients = value_and_gradients(
        lambda w, y: ops.sum(pool_stacked(w, y)), [weights, outputs]
    )
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_allclose(
        as_numpy(pool_stacked(weights, outputs))[:, 0], [0.5, 1.0, 2.0 / 3.0], atol=1e-6
    )


def test_what_the_probabilities_sum_to_does_not_matter(rng):
    weights, outputs = drawn(rng, (3, 2), (3, 4))
    found = as_numpy(pool_stacked(weights, 7.0 * outputs))
    np.testing.assert_allclose(found, as_numpy(pool_stacked(weights, outputs)), atol=1e-6)


def test_negative_numbers_show():
    outputs = np.array([[[-0.1, 1.1]], [[0.5, 0.5]]], "float32")
    assert np.isnan(as_numpy(pool_stacked(np.array([[0.5, 0.5]], "float32"), outputs))).any()


def test_logarithms_may_underflow(rng):
    """exp(−5000) is zero, its logarithm is not."""
    logs = [np.array([[-5000.0, -5001.0]], "float32"), np.array([[0.0, -np.inf]], "float32")]
    found = as_numpy(log_pool(np.array([[0.0, -np.inf]], "float32"), logs))
    np.testing.assert_allclose(
        found, [[-np.log1p(np.exp(-1.0)), -1 - np.log1p(np.exp(-1.0))]], rtol=1e-5
    )


def test_an_unknown_combination_is_an_error():
    with pytest.raises(ValueError, match=r"'harmonic'\. Use"):
        combination("harmonic")
