"""Fixtures that every test may use."""

import gc

import keras
import numpy as np
import pytest


@pytest.fixture
def rng():
    """A NumPy generator; a test that uses it holds for any seed."""
    return np.random.default_rng(20240229)


@pytest.fixture(autouse=True)
def _seeded():
    """Keras draws the same numbers in a test whatever ran before it."""
    keras.utils.set_random_seed(20240229)


@pytest.fixture(autouse=True, scope="module")
def _programs_go_with_their_module():
    """JAX keeps what it compiled, gigabytes by the end of a run, and slows down."""
    yield
    if keras.config.backend() == "jax":
        import jax

        jax.clear_caches()
        gc.collect()
