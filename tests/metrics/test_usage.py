"""Metrics of mixing weights against NumPy, over several batches."""

import keras
import numpy as np
import pytest
from keras import ops

from plait import metrics


def entropy(rows, counts):
    logs = np.log(np.where(rows > 0, rows, 1))
    return np.average(-(rows * logs).sum(axis=-1), weights=counts)


# metric, oracle over rows (n, e) that count as given
TABLE = [
    (
        lambda: metrics.ExpertUsage(3),
        lambda rows, counts: dict(
            zip(
                ("usage_0", "usage_1", "usage_2"),
                np.average(rows, axis=0, weights=counts),
                strict=True,
            )
        ),
    ),
    (lambda: metrics.GateEntropy(), entropy),
    (
        lambda: metrics.DeadExperts(3, threshold=0.9),
        lambda rows, counts: (np.average(rows, axis=0, weights=counts) < 0.3).sum(),
    ),
]


@pytest.mark.parametrize(("make", "oracle"), TABLE)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6,), (3, 2), (1, 3, 2)])
def test_metrics_equal_numpy_over_batches(make, oracle, weighted, shape, rng):
    metric = make()
    batches = [rng.dirichlet([2.0, 1.0, 0.5], shape).astype("float32") for _ in range(3)]
    counts = [rng.random(shape).astype("float32") for _ in range(3)]
    for batch, count in zip(batches, counts, strict=True):
        metric.update_state(batch, count if weighted else None)
    rows = np.concatenate([batch.reshape(-1, 3) for batch in batches])
    weights = np.concatenate([count.ravel() for count in counts]) if weighted else np.ones(18)
    found, expected = metric.result(), oracle(rows, weights)
    if isinstance(expected, dict):
        assert {key: float(value) for key, value in found.items()} == pytest.approx(expected)
    else:
        assert float(found) == pytest.approx(expected, rel=1e-5)
    metric.reset_state()
    assert np.allclose([float(value) for value in keras.tree.flatten(metric.result())], 0)
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert again.get_config() == metric.get_config()


def test_weights_of_zero_have_finite_entropy():
    metric = metrics.GateEntropy()
    metric.update_state(ops.zeros((2, 3)))
    assert float(metric.result()) == 0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: metrics.ExpertUsage(0), "`num_experts` of ExpertUsage .* num_experts=0"),
        (lambda: metrics.DeadExperts(2).update_state(np.ones((4, 3))), "Use num_experts=3"),
    ],
)
def test_a_wrong_number_of_experts_is_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
