"""The rules that turn scores into weights, each held to a NumPy oracle in float64."""

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops
from tests.gradients import value_and_gradients
from tests.ops.constants import constants_of

from plait.ops import log_sum_exp, routing, z_loss


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


LOWEST = np.finfo("float32").min
EXTREMES = hnp.arrays(
    "float32",
    (2, 5),
    elements=st.one_of(
        st.floats(width=32, allow_nan=False),
        st.sampled_from([float(np.float32(x)) for x in (0.0, -0.0, 3e38, -3e38, 1e-45)]),
        st.sampled_from([-np.inf, np.inf, LOWEST, np.nextafter(LOWEST, np.float32(0))]),
    ),
)


@given(scores=EXTREMES)
@example(scores=np.full((2, 5), -np.inf, "float32"))
@example(scores=np.full((2, 5), LOWEST))
@settings(max_examples=60, deadline=None)
def test_any_scores_give_weights_that_sum_to_one_over_the_experts_not_excluded(scores):
    """Excluded ones have weight zero and gradient zero; a row of only these has a sum of zero."""
    out = scores <= LOWEST
    for name, (function, _) in RULES.items():
        value, (gradient,) = value_and_gradients(
            lambda s, function=function: ops.sum(ops.square(function(s))), [scores]
        )
        weights = ops.convert_to_numpy(function(scores))
        assert (weights >= 0).all()
        if name != "top-2-plain":
            expected = np.where(out.all(axis=-1), 0, 1)
            np.testing.assert_allclose(weights.sum(axis=-1), expected, atol=1e-5, err_msg=name)
        assert (weights[out] == 0).all(), name
        assert np.isfinite(value)
        assert np.isfinite(gradient).all(), name
        assert (gradient[out] == 0).all(), name


@pytest.mark.parametrize("rule", RULES)
def test_the_rules_for_excluded_and_nan_scores_hold_in_double_precision(rule, rng):
    # JAX has no float64 unless told so.
    dtype = "float32" if keras.config.backend() == "jax" else "float64"
    scores = rng.normal(size=(4, 5)).astype(dtype)
    scores[0, [1, 3]] = -np.inf, np.finfo(dtype).min
    scores[1], scores[2, 3] = -np.inf, np.nan
    function, oracle = RULES[rule]
    weights = ops.convert_to_numpy(function(scores))
    assert weights.dtype == dtype
    assert (weights[0, [1, 3]] == 0).all()
    assert (weights[1] == 0).all()
    assert np.isnan(weights[2]).all()
    np.testing.assert_allclose(weights[3:], oracle(scores[3:]), atol=1e-6)


def spoiled(rng, shape=(6, 5)):
    """Scores of which rows 1 and 4 hold a NaN, row 4 beside an excluded and an infinite one."""
    scores = rng.normal(size=shape).astype("float32")
    scores[1, 2] = scores[4, 0] = np.nan
    scores[4, 1:3] = -np.inf, np.inf
    return scores, np.array([False, True, False, False, True, False])


@pytest.mark.parametrize("rule", RULES)
def test_a_nan_spoils_the_weights_of_its_row_and_of_no_other(rule, rng):
    scores, bad = spoiled(rng)
    function, _ = RULES[rule]
    weights = ops.convert_to_numpy(function(scores))
    assert np.isnan(weights[bad]).all()
    np.testing.assert_allclose(
        weights[~bad], ops.convert_to_numpy(function(scores[~bad])), atol=1e-6
    )
    cotangent = rng.normal(size=scores.shape).astype("float32")
    gradient, alone = (
        value_and_gradients(lambda s, c=c: ops.sum(ops.multiply(function(s), c)), [s])[1][0]
        for s, c in ((scores, cotangent), (scores[~bad], cotangent[~bad]))
    )
    np.testing.assert_allclose(gradient[~bad], alone, atol=1e-6)


def test_a_row_with_nan_names_valid_experts_under_top_k(rng):
    scores, bad = spoiled(rng)
    indices = ops.convert_to_numpy(routing.top_k(scores, 3).indices)[bad]
    assert all(len(set(row)) == 3 for row in indices)
    assert ((indices >= 0) & (indices < 5)).all()


def test_rows_with_nan_take_the_room_that_others_leave(rng):
    """Four rows want expert 0, which takes two: the first two, both with NaN, do not get in."""
    scores = np.array([[np.nan, 0], [np.nan, 0], [2, 0], [1, 0]], "float32")
    found, overflowed = routing.within_capacity(routing.top_k(scores, 1), 2)
    np.testing.assert_array_equal(ops.convert_to_numpy(overflowed)[:, 0], [1, 1, 0, 0])
    weights = ops.convert_to_numpy(found.weights)
    assert np.isnan(weights[:2]).all()
    np.testing.assert_array_equal(weights[2:], [[1, 0], [1, 0]])


def test_rows_with_nan_take_no_room_where_experts_choose(rng):
    scores, bad = spoiled(rng)
    weights, indices = map(ops.convert_to_numpy, routing.expert_choice(routing.softmax(scores), 2))
    alone = routing.expert_choice(routing.softmax(scores[~bad]), 2)
    assert np.isnan(weights[bad]).all()
    np.testing.assert_allclose(weights[~bad], ops.convert_to_numpy(alone.weights), atol=1e-6)
    np.testing.assert_array_equal(indices[~bad], ops.convert_to_numpy(alone.indices))
    assert (indices[bad] == 5).all()


def test_nan_in_a_masked_row_is_not_seen_where_a_capacity_drops_it(rng):
    scores, bad = spoiled(rng)
    limited, _ = routing.within_capacity(routing.top_k(scores, 2), 9, ~bad)
    picked = routing.expert_choice(routing.softmax(scores), 2, ~bad)
    for found in (limited, picked):
        assert (ops.convert_to_numpy(found.weights)[bad] == 0).all()
        assert (ops.convert_to_numpy(found.indices)[bad] == 5).all()


def test_nan_spoils_a_straight_through_row(rng):
    scores, bad = spoiled(rng)
    weights = ops.convert_to_numpy(routing.straight_through(routing.softmax(scores)).weights)
    np.testing.assert_array_equal(np.isnan(weights).all(axis=-1), bad)
    np.testing.assert_array_equal(np.isnan(weights).any(axis=-1), bad)


@given(seed=st.integers(0, 2**31), k=st.integers(1, 5), biased=st.booleans(), plain=st.booleans())
@settings(max_examples=40, deadline=None)
def test_top_k_fills_slots_with_the_largest_of_those_not_excluded(seed, k, biased, plain):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(4, 5)).astype("float32")
    scores[rng.random((4, 5)) < 0.5] = -np.inf
    bias = 3 * rng.normal(size=5).astype("float32") if biased else np.zeros(5, "float32")
    weights, indices = map(
        ops.convert_to_numpy, routing.top_k(scores, k, bias if biased else None, not plain)
    )
    for row in range(4):
        allowed = [i for i in np.argsort(-(scores[row] + bias)) if np.isfinite(scores[row, i])]
        expected = (allowed + 5 * [5])[:k]
        np.testing.assert_array_equal(indices[row], expected)
        assert set(np.flatnonzero(weights[row])) == set(expected) - {5}


def test_experts_pick_no_row_that_excludes_them():
    """Expert 1 takes three rows, of which only one does not exclude it."""
    scores = np.array([[0, -np.inf], [0, 0], [0, -np.inf], [-np.inf, -np.inf]], "float32")
    weights, indices = map(ops.convert_to_numpy, routing.expert_choice(routing.softmax(scores), 4))
    np.testing.assert_array_equal(weights, [[1, 0], [0.5, 0.5], [1, 0], [0, 0]])
    np.testing.assert_array_equal(indices, [[0, 2], [0, 1], [0, 2], [2, 2]])


def test_straight_through_leaves_the_slot_of_a_row_of_zeros_empty():
    scores = np.array([[-np.inf, -np.inf, -np.inf], [-np.inf, 1, -np.inf]], "float32")
    value, (gradient,) = value_and_gradients(
        lambda s: ops.sum(routing.straight_through(routing.softmax(s)).weights), [scores]
    )
    found = routing.straight_through(routing.softmax(scores))
    np.testing.assert_array_equal(ops.convert_to_numpy(found.indices), [[3], [1]])
    np.testing.assert_array_equal(ops.convert_to_numpy(found.weights), [[0, 0, 0], [0, 1, 0]])
    assert float(value) == 1
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


def test_a_temperature_leaves_excluded_experts_excluded():
    scores = np.array([[0.0, -np.inf, LOWEST]], "float32")
    for temperature in (1e-3, 1e3):
        weights = routing.softmax(scores, temperature)
        np.testing.assert_array_equal(ops.convert_to_numpy(weights), [[1, 0, 0]])


IN_GRAPHS = {
    **{name: function for name, (function, _) in RULES.items()},
    "expert choice": lambda s: routing.expert_choice(routing.softmax(s), 2).weights,
    "straight through": lambda s: routing.straight_through(routing.softmax(s)).weights,
    "log probabilities": routing.log_probabilities,
    "log sum exp": lambda s: log_sum_exp(s, -1),
    "z-loss": z_loss,
}


@pytest.mark.parametrize("name", IN_GRAPHS)
def test_no_constant_in_the_graph_is_infinite(name, rng):
    """An infinite constant turns into NaN where a model is exported to ONNX."""
    constants = constants_of(IN_GRAPHS[name], rng.normal(size=(6, 5)).astype("float32"))
    assert constants
    assert all(np.isfinite(number.astype("float64")).all() for number in constants)


def test_an_infinite_constant_would_be_found(rng):
    constants = constants_of(
        lambda s: ops.where(s > 0, s, ops.full_like(s, -float("inf"))), rng.normal(size=(6, 5))
    )
    assert any(np.isinf(number.astype("float64")).any() for number in constants)


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


def test_a_probability_of_zero_excludes_its_expert_with_finite_logits_and_gradient():
    probabilities = np.array([[0.0, 0.25, 0.75], [0.0, 1e-37, 1.0]], "float32")
    logits = routing.log_probabilities(probabilities)
    assert np.isfinite(ops.convert_to_numpy(logits)).all()
    np.testing.assert_array_equal(
        ops.convert_to_numpy(routing.excluded(logits)), [[1, 0, 0], [1, 0, 0]]
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(routing.softmax(logits)), [[0, 0.25, 0.75], [0, 0, 1]], atol=1e-6
    )
    _, (gradient,) = value_and_gradients(
        lambda p: ops.sum(ops.square(routing.softmax(routing.log_probabilities(p)))),
        [probabilities],
    )
    assert np.isfinite(gradient).all()


def test_a_probability_of_nan_stays_one():
    logits = ops.convert_to_numpy(routing.log_probabilities(np.array([np.nan, 0.5], "float32")))
    np.testing.assert_array_equal(np.isnan(logits), [True, False])
