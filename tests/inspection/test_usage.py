import numpy as np

from plait.inspection import expert_confusion, usage, weights_along, weights_per_class, worst

WEIGHTS = np.array([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]])


def test_usage_by_hand():
    use = usage(WEIGHTS)
    np.testing.assert_allclose(use.share, [0.4375, 0.5625])
    np.testing.assert_allclose(use.first, [0.5, 0.5])  # a tie goes to the first
    half = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / np.log(2)
    np.testing.assert_allclose(use.entropy, [0, 1, half, 0], atol=1e-12)


def test_experts_in_use_count_from_one_to_all():
    assert np.isclose(usage(np.array([[0.0, 1.0, 0.0]])).effective, 1)
    assert np.isclose(usage(np.eye(3)).effective, 3)


def test_one_expert_has_no_entropy():
    assert usage(np.ones((2, 1))).entropy.tolist() == [0, 0]


def test_weights_per_class_by_hand():
    found = weights_per_class(WEIGHTS, np.array([0, 0, 2, 2]), 3)
    np.testing.assert_allclose(found, [[0.75, 0.25], [np.nan, np.nan], [0.125, 0.875]])


def test_weights_along_a_target_have_equally_many_examples_in_each_bin():
    along = weights_along(WEIGHTS, np.array([1.0, 2.0, 3.0, 400.0]), bins=2)
    np.testing.assert_allclose(along.edges, [1.0, 2.5, 400.0])
    np.testing.assert_allclose(along.weights, [[0.75, 0.25], [0.125, 0.875]])


def test_a_target_with_few_values_gives_fewer_bins():
    assert weights_along(WEIGHTS, np.array([1.0, 1.0, 1.0, 2.0]), bins=12).weights.shape[1] == 2
    np.testing.assert_allclose(weights_along(WEIGHTS, np.ones(4)).weights, [[0.4375, 0.5625]])


def test_confusion_of_experts_and_classes_by_hand():
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    outputs = np.stack([p, p, p, p])  # expert 0 always says class 0, expert 1 class 1
    found = expert_confusion(WEIGHTS, outputs, np.array([0, 1, 1, 1]))
    assert found.counts.tolist() == [[1, 1], [0, 2]]
    assert found.accuracy.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_the_worst_come_first():
    assert worst(np.array([1.0, 5.0, 3.0, 5.0]), 3).tolist() == [1, 3, 2]
