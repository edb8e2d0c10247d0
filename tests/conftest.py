"""Fixtures that every test may use."""

import numpy as np
import pytest


@pytest.fixture
def rng():
    """A NumPy generator; a test that uses it holds for any seed."""
    return np.random.default_rng(20240229)
