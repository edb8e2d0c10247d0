"""Configs of layers without importing a backend that does not run."""

import contextlib
import sys
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def without_other_backends() -> Iterator[None]:
    """Keeps `get_config` from importing TensorFlow while the block runs.

    Keras' serialiser imports TensorFlow, where it is installed, only to ask of each object whether
    it is one of TensorFlow's: 2.5 seconds and 580 MiB. While nothing has imported TensorFlow, none
    is; the answer to "is it available" is set to no for the block. Where Keras keeps the question
    elsewhere, the block does nothing.
    """
    module = sys.modules[keras.saving.serialize_keras_object.__module__]
    lazy = getattr(module, "tf", None)
    if "tensorflow" in sys.modules or getattr(lazy, "_available", True) is not None:
        yield
        return
    lazy._available = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        lazy._available = None  # type: ignore[union-attr]
