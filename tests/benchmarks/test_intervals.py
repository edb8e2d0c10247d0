"""Intervals of a difference, over seeds and test rows."""

import numpy as np
import pytest
from benchmarks.quality.intervals import gaps, measures


def test_a_difference_of_noise_is_told_from_one_of_substance(rng):
    hard = rng.uniform(size=400)
    noise = rng.normal(scale=0.1, size=(3, 5, 400))
    errors = {
        "a": hard + noise[0],
        "as good": hard + noise[1],
        "worse": hard + 0.05 + noise[2],
    }
    found = gaps(errors, "a", False, None)
    assert found["as good"].low < 0 < found["as good"].high
    assert found["worse"].low < found["worse"].value < found["worse"].high < 0


def test_rows_of_one_group_are_drawn_together(rng):
    groups = np.repeat(np.arange(8), 50)
    errors = {"a": np.zeros((2, 400)), "b": np.ones((2, 1)) * rng.normal(size=8)[groups]}
    alone, together = (gaps(errors, "a", False, g)["b"] for g in (None, groups))
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_the_root_is_taken_of_each_seeds_mean():
    errors = np.array([[4.0, 4.0], [1.0, 1.0]])
    assert measures(errors, True).tolist() == [2.0, 1.0]
    found = gaps({"a": errors, "b": errors * 4}, "a", True, None)["b"]
    assert found.value == pytest.approx(-1.5)
