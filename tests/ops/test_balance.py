"""The balance terms, each against the plain formula in NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from tests.gradients import value_and_gradients

from plait.ops import balance
from plait.ops.routing import Routing, softmax, top_k


@pytest.fixture(params=[False, True], ids=["whole", "masked"])
def mask(request, rng):
    if not request.param:
        return None
    mask = rng.random((4, 6)) < 0.6
    mask[0, 0] = True
    return mask


@pytest.fixture
def logits(rng):
    return rng.normal(size=(4, 6, 3)).astype("float32")


def counted(array, mask):
    """The rows that count, in float64."""
    rows = np.asarray(ops.convert_to_numpy(array), "float64").reshape(-1, array.shape[-1])
    return rows if mask is None else rows[mask.ravel()]


def test_load_is_the_share_of_choices(logits, mask):
    routing = top_k(logits, 2)
    found = ops.convert_to_numpy(balance.expert_load(routing, mask))
    choices = counted(routing.indices, mask).ravel().astype(int)
    np.testing.assert_allclose(found, np.bincount(choices, minlength=3) / len(choices), atol=1e-6)


def test_load_is_the_mean_weight_where_every_expert_counts(logits, mask):
    weights = softmax(logits)
    found = ops.convert_to_numpy(balance.expert_load(Routing(weights), mask))
    np.testing.assert_allclose(found, counted(weights, mask).mean(axis=0), atol=1e-6)


def test_load_balance_equals_the_formula(logits, mask):
    routing = top_k(logits, 1)
    load = balance.expert_load(routing, mask)
    found = balance.load_balance(softmax(logits), load, mask)
    mean = counted(softmax(logits), mask).mean(axis=0)
    expected = 3 * (ops.convert_to_numpy(load) * mean).sum()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_load_balance_of_an_even_load_is_one():
    even = np.full((6, 3), 1 / 3, "float32")
    found = balance.load_balance(even, np.full(3, 1 / 3, "float32"))
    assert float(found) == pytest.approx(1)


def test_importance_equals_the_formula(logits, mask):
    weights = softmax(logits)
    total = counted(weights, mask).sum(axis=0)
    expected = total.var() / total.mean() ** 2
    assert float(balance.importance(weights, mask)) == pytest.approx(expected, rel=1e-4)


def test_z_loss_equals_the_formula(logits, mask):
    sizes = np.log(np.exp(counted(logits, mask)).sum(axis=-1))
    expected = (sizes**2).mean()
    assert float(balance.z_loss(logits, mask)) == pytest.approx(expected, rel=1e-5)


def test_terms_are_finite_where_nothing_counts(logits):
    nothing = np.zeros((4, 6), bool)
    routing = top_k(logits, 1)
    load = balance.expert_load(routing, nothing)
    assert float(ops.sum(load)) == 0
    assert float(balance.load_balance(softmax(logits), load, nothing)) == 0
    assert float(balance.importance(routing.weights, nothing)) == 0
    assert float(balance.z_loss(logits, nothing)) == 0
    np.testing.assert_array_equal(
        ops.convert_to_numpy(balance.moved_bias(np.ones(3, "float32"), load, 0.1)), np.ones(3)
    )


def test_load_balance_pushes_down_the_busy_expert():
    logits = np.array([[1.0, 0.0], [2.0, 0.0]], "float32")

    def term(s):
        return balance.load_balance(softmax(s), balance.expert_load(top_k(s, 1)))

    _, (gradient,) = value_and_gradients(term, [logits])
    assert (gradient[:, 0] > 0).all()
    assert (gradient[:, 1] < 0).all()


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_permuting_the_experts_changes_no_term(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(5, 4)).astype("float32")
    moved = logits[:, rng.permutation(4)]
    for term in (
        lambda s: balance.load_balance(softmax(s), balance.expert_load(top_k(s, 2))),
        lambda s: balance.importance(softmax(s)),
        balance.z_loss,
    ):
        assert float(term(logits)) == pytest.approx(float(term(moved)), rel=1e-4)


def test_terms_stay_finite_where_scores_exclude_experts(logits, mask):
    """In value and gradient, with rows that exclude some and one that excludes every expert."""
    logits = logits.copy()
    logits[0, :3, 1] = logits[1, 2] = -np.inf
    rows = counted(logits, mask)
    sums = np.exp(rows).sum(axis=-1)
    expected = np.where(sums > 0, np.log(np.where(sums > 0, sums, 1)) ** 2, 0).mean()
    assert float(balance.z_loss(logits, mask)) == pytest.approx(expected, rel=1e-5)
    for term in (
        lambda s: balance.z_loss(s, mask),
        lambda s: balance.load_balance(softmax(s), balance.expert_load(top_k(s, 2), mask), mask),
        lambda s: balance.importance(top_k(s, 2).weights, mask),
    ):
        value, (gradient,) = value_and_gradients(term, [logits])
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert (gradient[np.isinf(logits)] == 0).all()


def test_empty_slots_are_no_load():
    scores = np.array([[0.0, -np.inf, -np.inf], [0.0, 1.0, -np.inf]], "float32")
    load = balance.expert_load(top_k(scores, 2))
    np.testing.assert_allclose(ops.convert_to_numpy(load), [2 / 3, 1 / 3, 0], atol=1e-6)
