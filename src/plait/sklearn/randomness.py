"""Random numbers of one estimator, apart from the caller's generators."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seeds Python's and NumPy's global generators for the block, and sets them back after it.

    Keras takes the seed of an initialiser or a dropout that has none of its own from Python's
    `random`; its global seed is neither read nor changed.

    Example:
    >>> import random
    >>> from plait.sklearn.randomness import isolated
    >>> before = random.getstate()
    >>> with isolated(0):
    ...     number = random.random()
    >>> random.getstate() == before, round(number, 4)
    (True, 0.8444)
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
