import numpy as np
import pytest

from plait.inspection import Reference, best_constant_weights, choose, losses, score, scores


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def classification(rng, b=200, e=3, u=4):
    y = rng.integers(0, u, b)
    logits = rng.normal(size=(b, e, u))
    logits[np.arange(b), :, y] += np.array([0.5, 1.0, 2.0])
    p = np.exp(logits)
    return p / p.sum(-1, keepdims=True), y


def test_constant_weights_of_a_classifier_are_the_optimum(rng):
    """At the optimum no expert's mean responsibility ratio is above one (Cover 1984)."""
    outputs, y = classification(rng)
    w = best_constant_weights(outputs, y, "classification")
    likelihood = outputs[np.arange(len(y)), :, y]
    ratio = (likelihood / (likelihood @ w)[:, None]).mean(axis=0)
    assert w.min() >= 0
    assert abs(w.sum() - 1) < 1e-9
    assert ratio.max() < 1 + 1e-3


def test_constant_weights_of_a_regression_are_the_optimum(rng):
    """No direction towards a corner of the simplex goes downhill."""
    outputs = rng.normal(size=(100, 4, 1))
    y = outputs[:, :, 0] @ np.array([0.7, 0.4, 0.0, -0.2]) + 0.1 * rng.normal(size=100)
    w = best_constant_weights(outputs, y, "regression")
    f = outputs[:, :, 0]
    gradient = f.T @ (f @ w - y) / len(y)
    assert w.min() >= 0
    assert abs(w.sum() - 1) < 1e-9
    assert (gradient - gradient @ w).min() > -1e-6


def test_known_weights_are_found_again(rng):
    f = rng.normal(size=(50, 3, 1))
    truth = np.array([0.2, 0.5, 0.3])
    found = best_constant_weights(f, f[:, :, 0] @ truth, "regression")
    np.testing.assert_allclose(found, truth, atol=1e-6)


def test_the_table_by_hand():
    outputs = np.array([[[0.9, 0.1], [0.6, 0.4]], [[0.8, 0.2], [0.3, 0.7]]])
    y = np.array([0, 1])
    table = scores(outputs[:, 1], outputs, y, "classification", Reference(0, np.array([0.5, 0.5])))
    by_name = {row.name: row for row in table}
    assert list(by_name) == [
        "mixture",
        "best single expert (0)",
        "uniform average",
        "best constant weights",
        "oracle",
    ]
    assert by_name["mixture"].loss == pytest.approx(-(np.log(0.6) + np.log(0.7)) / 2)
    assert by_name["best single expert (0)"].accuracy == 0.5
    assert by_name["uniform average"].loss == pytest.approx(-(np.log(0.75) + np.log(0.45)) / 2)
    assert by_name["oracle"].loss == pytest.approx(-(np.log(0.9) + np.log(0.7)) / 2)


def test_regression_scores_by_hand():
    row = score("m", np.array([[1.0], [2.0], [6.0]]), np.array([1.0, 3.0, 5.0]), "regression")
    assert row.rmse == pytest.approx((2 / 3) ** 0.5)
    assert row.r2 == pytest.approx(1 - (2 / 3) / (8 / 3))
    assert set(row.to_dict()) == {"name", "loss", "rmse", "r2"}


def test_nothing_but_the_oracle_is_chosen_on_the_scored_data(rng):
    """Other targets on the scored rows change no choice."""
    outputs, y = classification(rng)
    reference = choose(outputs[:100], y[:100], "classification")
    table = scores(outputs[100:, 0], outputs[100:], y[100:], "classification", reference)
    other = scores(outputs[100:, 0], outputs[100:], 3 - y[100:], "classification", reference)
    assert [row.name for row in table] == [row.name for row in other]
    assert reference.expert == 2


def test_no_row_beats_the_oracle_of_single_experts(rng):
    outputs, y = classification(rng)
    reference = choose(outputs, y, "classification")
    table = scores(outputs.mean(1), outputs, y, "classification", reference)
    assert all(row.loss >= table[-1].loss for row in table)


def test_a_certain_mistake_stays_finite():
    assert np.isfinite(losses(np.array([[1.0, 0.0]]), np.array([1]), "classification")).all()


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"`task` must be one of .*Received: 'rank'"):
        losses(np.ones((1, 1)), np.ones(1), "rank")
