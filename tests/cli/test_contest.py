"""The choice among candidates, and the trainings it rests on."""

import numpy as np
import pytest

from plait.cli import candidates
from plait.cli.data import folds_of
from plait.encoding import Column, Schema

SCHEMA = Schema((Column("a"), Column("b")), "y", "classification", ("u", "v", "w"))


def test_folds_keep_groups_whole_and_many_rows_need_one():
    groups = np.repeat(np.arange(8), 9)
    folds = folds_of(np.zeros(72, int), groups, 0)
    assert len({(g, f) for g, f in zip(groups, folds, strict=True)}) == 8 == folds.max() + 1
    many = folds_of(np.arange(25_000) % 2, None, 0)
    assert set(many) == {-1, 0}
    assert (many == 0).mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("name", "gate"),
    [
        ("network", "mlp"),
        ("average", "mlp"),
        ("mixture", "mlp"),
        pytest.param("mixture", "linear", marks=pytest.mark.slow),
        pytest.param("mixture", "constant", marks=pytest.mark.slow),
    ],
)
def test_a_copy_learns_from_its_own_rows_alone_and_stands_alone(rng, name, gate):
    plan = candidates.plan_for(SCHEMA, 2, 4, gate, 2, 40)
    x, y = rng.normal(size=(40, 2)), rng.integers(0, 3, 40)
    weight = np.ones((40, 2), "float32")
    weight[:20, 0] = 0.0

    def trained(labels):
        return candidates.Trained(name, plan, x, labels, weight, 0, [])

    first, second = trained(y), trained(np.r_[(y[:20] + 1) % 3, y[20:]])
    one, other = first.predict(x), second.predict(x)
    np.testing.assert_allclose(one[0], other[0], atol=1e-6)
    assert np.abs(one[1] - other[1]).max() > 1e-3
    for i in range(2):
        alone = first.copy(i).predict(x, verbose=0)
        np.testing.assert_allclose(alone, one[i], atol=1e-5)
