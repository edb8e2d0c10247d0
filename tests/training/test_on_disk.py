"""Arrays in files give the rows that arrays in memory give."""

import numpy as np
import pytest

from plait.training import on_disk


@pytest.fixture
def pair(rng, tmp_path):
    array = rng.normal(size=(3000, 3)).astype("float32")
    found = on_disk.OnDisk(str(tmp_path), "float32", (0, 3))
    found.append(array[:1000])
    found.append(array[1000:])
    return array, found


def test_rows_in_any_order_are_those_of_the_array(rng, pair):
    array, found = pair
    many = rng.permutation(np.arange(3000, dtype="uint32"))
    assert len(many) > on_disk._SCATTERED
    for rows in (many, many[:7], many < 1500, slice(5, 2000), slice(None), many[:0]):
        np.testing.assert_array_equal(found[rows], array[rows])


def test_the_file_goes_with_the_array(tmp_path):
    found = on_disk.OnDisk(str(tmp_path), "float32", (4, 3))
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [48]
    del found
    assert not list(tmp_path.iterdir())
