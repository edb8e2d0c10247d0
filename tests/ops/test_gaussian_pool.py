"""The pool of Gaussians: value, gradient and extremes against NumPy float64."""

import numpy as np
import pytest
from keras import ops
from tests.gradients import value_and_gradients
from tests.precision import double
from tests.recipes import as_numpy

from plait.ops import gaussian_pool
from plait.ops.pool import gaussian_pool_slots, gaussian_pool_stacked

# shape of the weights, shape of each output
RANKS = [((3, 4), (3, 2)), ((3, 4), (3, 6)), ((2, 5, 4), (2, 5, 2)), ((2, 4), (2, 3, 4))]
every_rank = pytest.mark.parametrize(("weights_shape", "shape"), RANKS)


def scale_of(raw):
    return np.logaddexp(0.0, raw) + 1e-6


def expected_pool(weights, outputs):
    """The formula in NumPy: precisions add up, means are weighed by them."""
    mean, raw = np.split(outputs, 2, axis=-1)
    weights = np.moveaxis(weights, -1, 0)
    weights = weights.reshape(*weights.shape, *(1,) * (outputs.ndim - weights.ndim))
    precision = weights / scale_of(raw) ** 2
    total = precision.sum(axis=0)
    scale = total**-0.5 - 1e-6
    return np.concatenate(
        [(precision * mean).sum(axis=0) / total, scale + np.log(-np.expm1(-scale))], axis=-1
    )


def drawn(rng, weights_shape, shape):
    weights = rng.uniform(0.05, 1.0, weights_shape)
    return weights, rng.normal(0.0, 2.0, (weights_shape[-1], *shape))


@every_rank
def test_equals_the_formula_in_every_layout(weights_shape, shape, rng):
    weights, outputs = drawn(rng, weights_shape, shape)
    expected = expected_pool(weights, outputs)
    with double():
        for found in (
            gaussian_pool(weights, list(outputs)),
            gaussian_pool_stacked(weights, outputs),
        ):
            np.testing.assert_allclose(as_numpy(found), expected, rtol=1e-9)


def test_slots_are_pooled_without_empty_ones(rng):
    weights, outputs = drawn(rng, (4, 2), (4, 6))
    weights[1, 1] = 0.0
    stacked = np.moveaxis(outputs, 0, 1).copy()
    stacked[1, 1] = 0.0  # an empty slot
    found = gaussian_pool_slots(weights.astype("float32"), stacked.astype("float32"))
    np.testing.assert_allclose(
        as_numpy(found), expected_pool(weights, outputs), rtol=1e-4, atol=1e-5
    )


@every_rank
def test_gradients_equal_differences_in_float64(weights_shape, shape, rng):
    weights, outputs = drawn(rng, weights_shape, shape)
    upstream = rng.normal(size=shape)
    with double():
        _, found = value_and_gradients(
            lambda w, y: ops.sum(ops.multiply(gaussian_pool_stacked(w, y), upstream)),
            [weights, outputs],
        )
    for position, array in enumerate((weights, outputs)):
        for _ in range(5):
            at = tuple(rng.integers(0, size) for size in array.shape)
            step = np.zeros_like(array)
            step[at] = 1e-6
            sides = [[weights, outputs], [weights, outputs]]
            sides[0][position], sides[1][position] = array - step, array + step
            low, high = (np.sum(upstream * expected_pool(*side)) for side in sides)
            np.testing.assert_allclose(
                found[position][at], (high - low) / 2e-6, rtol=1e-5, atol=1e-7
            )


def test_the_whole_weight_on_one_expert_is_that_expert(rng):
    outputs = rng.normal(0.0, 3.0, (3, 5, 4)).astype("float32")
    outputs[1] = 0.0, 0.0, -30.0, 30.0  # and the scales of the others do not matter
    for expert in range(3):
        weights = np.eye(3, dtype="float32")[[expert] * 5]
        found = as_numpy(gaussian_pool_stacked(weights, outputs))
        np.testing.assert_array_equal(found[:, :2], outputs[expert][:, :2])
        np.testing.assert_allclose(scale_of(found[:, 2:]), scale_of(outputs[expert][:, 2:]), 1e-5)


def test_experts_that_agree_stay_as_they_are_where_weights_sum_to_one(rng):
    outputs = np.repeat(rng.normal(size=(1, 4, 6)), 3, axis=0).astype("float32")
    weights = rng.dirichlet(np.ones(3), 4).astype("float32")
    found = as_numpy(gaussian_pool_stacked(weights, outputs))
    np.testing.assert_allclose(found, outputs[0], rtol=1e-4, atol=1e-5)


EXTREMES = {
    "a weight of zero": ([0.0, 1.0], [-30.0, 2.0]),
    "a tiny weight": ([1e-38, 1.0], [-1.0, 2.0]),
    "a sure expert": ([0.5, 0.5], [-200.0, 1e6]),
    "an unsure one of no weight": ([1.0, 0.0], [1e6, -200.0]),
    "all sure": ([1.0, 1.0], [-200.0, -200.0]),
    "no weight at all": ([0.0, 0.0], [1.0, 2.0]),
    "weights of one": ([1.0, 1.0], [0.0, 1.0]),
}


@pytest.mark.parametrize("case", EXTREMES)
def test_extremes_leave_values_and_gradients_finite(case):
    weights, raw = np.array([EXTREMES[case][0]], "float32"), EXTREMES[case][1]
    outputs = np.array([[[1.0, raw[0]]], [[3.0, raw[1]]]], "float32")
    value, gradients = value_and_gradients(
        lambda w, y: ops.sum(gaussian_pool_stacked(w, y)), [weights, outputs]
    )
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    mean, found = as_numpy(gaussian_pool_stacked(weights, outputs))[0].astype("float64")
    if not weights.any():
        assert (mean, found) == (0.0, 0.0)
        return
    wide = weights[0].astype("float64") / scale_of(np.array(raw, "float64")) ** 2
    np.testing.assert_allclose(mean, wide @ [1.0, 3.0] / wide.sum(), rtol=1e-5)
    np.testing.assert_allclose(scale_of(found), max(wide.sum() ** -0.5, 1e-6), rtol=1e-4)


@pytest.mark.parametrize("where", ["weights", "outputs"])
def test_a_number_that_is_none_shows(where):
    parts = {"weights": np.ones((1, 2), "float32"), "outputs": np.ones((2, 1, 2), "float32")}
    parts[where][0, 0] = np.nan
    found = as_numpy(gaussian_pool_stacked(parts["weights"], parts["outputs"]))
    assert np.isnan(found).any()
