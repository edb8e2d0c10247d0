"""The rules that turn scores into weights, each held to a NumPy oracle in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops
from tests.gradients import value_and_gradients

from plait.ops import routing


def numpy_softmax(s, axis=-1):
    powers = np.exp(s - s.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def numpy_top_k(s, k):
    """Softmax over the k largest of each row, one row after another."""
    out = np.zeros_like(s)
    for row in np.ndindex(s.shape[:-1]):
        kept = np.argsort(-s[row], kind="stable")[:k]
        out[row][kept] = numpy_softmax(s[row][kept])
    return out


def numpy_threshold(s, power):
    """The weights `max(s − τ, 0)^power` whose sum is one, with τ found by bisection."""
    low = s.max(axis=-1, keepdims=True) - 1.0
    high = s.max(axis=-1, keepdims=True)
    for _ in range(100):
        middle = (low + high) / 2
        over = (np.maximum(s - middle, 0) ** power).sum(axis=-1, keepdims=True) >= 1
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    return np.maximum(s - low, 0) ** power


RULES = {
    "softmax": (routing.softmax, numpy_softmax),
    "softmax-cold": (lambda s: routing.softmax(s, 0.5), lambda s: numpy_softmax(2 * s)),
    "top-1": (lambda s: routing.top_k(s, 1).weights, lambda s: numpy_top_k(s, 1)),
    "top-2": (lambda s: routing.top_k(s, 2).weights, lambda s: numpy_top_k(s, 2)),
    "top-all": (lambda s: routing.top_k(s, 5).weights, numpy_softmax),
    "top-2-plain": (
        lambda s: routing.top_k(s, 2, renormalize=False).weights,
        lambda s: numpy_softmax(s) * (numpy_top_k(s, 2) > 0),
    ),
    "sparsemax": (routing.sparsemax, lambda s: numpy_threshold(s, 1)),
    "entmax15": (routing.entmax15, lambda s: numpy_threshold(s / 2, 2)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 2, 5)])
def test_weights_equal_the_oracle_at_every_rank(rule, shape, rng):
    function, oracle = RULES[rule]
    scores = 2 * rng.normal(size=shape)
    weights = ops.convert_to_numpy(function(scores.astype("float32")))
    np.testing.assert_allclose(weights, oracle(scores), atol=2e-6)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_equal_finite_differences_of_the_oracle(rule, rng):
    function, oracle = RULES[rule]
    scores, cotangent = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    _, (gradient,) = value_and_gradients(
        lambda s: ops.sum(ops.multiply(function(s), cotangent.astype("float32"))),
        [scores.astype("float32")],
    )
    step = 1e-6
    for row, expert in np.ndindex(scores.shape):
        moved = np.zeros_like(scores)
        moved[row, expert] = step
        difference = ((oracle(scores + moved) - oracle(scores - moved)) * cotangent).sum()
        assert gradient[row, expert] == pytest.approx(difference / (2 * step), abs=2e-4)


EXTREMES = hnp.arrays(
    "float32",
    (2, 5),
    elements=st.one_of(
        st.floats(width=32, allow_nan=False),
        st.sampled_from([float(np.float32(x)) for x in (0.0, -0.0, 3e38, -3e38, 1e-45)]),
    ),
)


@given(scores=EXTREMES)
@settings(max_examples=40, deadline=None)
def test_any_scores_give_finite_weights_that_sum_to_one_and_a_finite_gradient(scores):
    for name, (function, _) in RULES.items():
        if name == "top-2-plain":
            continue
        value, (gradient,) = value_and_gradients(
            lambda s, function=function: ops.sum(ops.square(function(s))), [scores]
        )
        weights = ops.convert_to_numpy(function(scores))
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5, err_msg=name)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all(), name


@given(seed=st.integers(0, 2**31), permutation=st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_permuting_the_experts_permutes_their_weights(seed, permutation):
    scores = np.random.default_rng(seed).normal(size=(3, 5)).astype("float32")
    for function, _ in RULES.values():
        weights = ops.convert_to_numpy(function(scores))
        moved = ops.convert_to_numpy(function(scores[:, permutation]))
        np.testing.assert_allclose(moved, weights[:, permutation], atol=1e-6)


def test_rules_compute_in_float32_whatever_the_scores(rng):
    scores = rng.normal(size=(4, 5)).astype("float16")
    for function, oracle in RULES.values():
        weights = function(scores)
        assert "float32" in str(weights.dtype)
        np.testing.assert_allclose(
            ops.convert_to_numpy(weights), oracle(scores.astype("float64")), atol=2e-6
        )


def test_top_k_names_the_kept_experts_largest_first(rng):
    scores = rng.normal(size=(2, 3, 6)).astype("float32")
    found = routing.top_k(scores, 3)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(found.indices), np.argsort(-scores, axis=-1)[..., :3]
    )
    assert "int32" in str(found.indices.dtype)


def test_a_selection_bias_moves_the_choice_and_not_the_weights():
    scores = np.log(np.array([[4.0, 2.0, 1.0]], "float32"))
    found = routing.top_k(scores, 2, bias=np.array([0.0, -5.0, 0.0], "float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(found.weights), [[0.8, 0, 0.2]], atol=1e-6)


def numpy_within_capacity(weights, indices, capacity, mask):
    """Largest weight first, ties by earlier row, one choice after another."""
    e = weights.shape[-1]
    weights, indices = weights.copy(), indices.copy()
    overflowed = np.zeros(indices.shape, bool)
    for expert in range(e):
        rows = [
            (-weights[i, expert], i)
            for i in range(len(weights))
            if expert in indices[i] and mask[i]
        ]
        kept = [i for _, i in sorted(rows)[:capacity]]
        for i in range(len(weights)):
            if expert in indices[i] and i not in kept:
                overflowed[i] |= (indices[i] == expert) & mask[i]
                indices[i][indices[i] == expert] = e
                weights[i, expert] = 0
    return weights, indices, overflowed


@given(seed=st.integers(0, 2**31), capacity=st.integers(1, 6), masked=st.booleans())
@settings(max_examples=30, deadline=None)
def test_capacity_drops_the_smallest_weights_and_only_those(seed, capacity, masked):
    rng = np.random.default_rng(seed)
    # Few distinct scores: ties are common.
    scores = rng.integers(0, 3, size=(8, 4)).astype("float32")
    mask = rng.random(8) < 0.7 if masked else np.ones(8, bool)
    before = routing.top_k(scores, 2)
    after, overflowed = routing.within_capacity(before, capacity, mask if masked else None)
    weights, indices = map(ops.convert_to_numpy, before)
    expected = numpy_within_capacity(weights, indices, capacity, mask)
    for found, wanted in zip((*after, overflowed), expected, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(found), wanted)


@given(seed=st.integers(0, 2**31), capacity=st.integers(1, 6), masked=st.booleans())
@settings(max_examples=30, deadline=None)
def test_experts_pick_their_likeliest_rows(seed, capacity, masked):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, size=(2, 3, 4)).astype("float32")
    mask = rng.random((2, 3)) < 0.7 if masked else np.ones((2, 3), bool)
    probabilities = numpy_softmax(scores).astype("float32")
    weights, indices = map(
        ops.convert_to_numpy,
        routing.expert_choice(probabilities, capacity, mask if masked else None),
    )
    flat, expected = probabilities.reshape(6, 4), np.zeros((6, 4), "float32")
    for expert in range(4):
        order = np.argsort(-np.where(mask.ravel(), flat[:, expert], -1), kind="stable")
        for i in order[:capacity]:
            expected[i, expert] = flat[i, expert] * mask.ravel()[i]
    np.testing.assert_allclose(weights.reshape(6, 4), expected, atol=1e-7)
    picked = np.where(expected > 0, np.arange(4), 4)
    np.testing.assert_array_equal(indices.reshape(6, 4), picked)


def test_straight_through_is_one_hot_with_the_gradient_of_the_probabilities(rng):
    probabilities = numpy_softmax(rng.normal(size=(4, 3))).astype("float32")
    cotangent = rng.normal(size=(4, 3)).astype("float32")
    value, (gradient,) = value_and_gradients(
        lambda p: ops.sum(ops.multiply(routing.straight_through(p).weights, cotangent)),
        [probabilities],
    )
    hard = np.eye(3)[probabilities.argmax(axis=-1)]
    assert value == pytest.approx((hard * cotangent).sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, cotangent, atol=1e-6)


def test_a_single_expert_has_weight_one_and_no_gradient():
    for function in (routing.softmax, lambda s: routing.top_k(s, 1).weights, routing.sparsemax):
        value, (gradient,) = value_and_gradients(
            lambda s, function=function: ops.sum(function(s)), [np.array([[-3.0]], "float32")]
        )
        assert (float(value), float(gradient[0, 0])) == (1, 0)


def test_probabilities_of_zero_have_finite_logits():
    weights = routing.softmax(routing.log_probabilities(np.array([[0.0, 0.25, 0.75]], "float32")))
    np.testing.assert_allclose(ops.convert_to_numpy(weights), [[0, 0.25, 0.75]], atol=1e-6)
