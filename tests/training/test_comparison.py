"""The one-standard-error rule: differences are paired, groups count as one."""

import numpy as np
import pytest

from plait.training.comparison import compare, simplest

ORDER = ("network", "average")


def test_rows_that_are_hard_for_all_do_not_hide_a_difference(rng):
    """The error is of the paired difference: that of the mean loss would be 20 times as large."""
    hard = rng.exponential(10.0, 200)
    held = compare({"network": hard + 0.2 + rng.normal(0, 0.5, 200), "average": hard})
    assert held["network"].error < 0.1 < hard.std() / np.sqrt(200)
    assert simplest(held, ORDER) == "average"


def test_rows_of_one_group_count_as_one_where_groups_differ():
    groups = np.repeat(np.arange(4), 50)
    gap = np.repeat([0.9, -0.5, 0.6, -0.2], 50)
    each = {"network": 1.0 + gap, "average": np.ones(200)}
    by_rows, by_groups = compare(each), compare(each, groups)
    means = np.array([0.9, -0.5, 0.6, -0.2])
    np.testing.assert_allclose(by_groups["network"].error, means.std(ddof=1) / 2)
    assert simplest(by_rows, ORDER) == "average"
    assert simplest(by_groups, ORDER) == "network"


@pytest.mark.parametrize(("lead", "chosen"), [(0.9, "network"), (1.1, "average")])
def test_up_to_one_standard_error_the_simpler_is_chosen(rng, lead, chosen):
    """By hand: the error is the deviation of the differences, over the root of their number."""
    off = rng.normal(size=50)
    off -= off.mean()
    error = off.std(ddof=1) / np.sqrt(50)
    held = compare({"average": np.ones(50), "network": 1.0 + off + lead * error})
    np.testing.assert_allclose(held["network"], [1.0 + lead * error, lead * error, error])
    assert simplest(held, ORDER) == chosen
