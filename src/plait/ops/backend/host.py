"""Calls of NumPy functions from tensors, also inside compiled functions."""

import importlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from plait.typing import Tensor

__all__ = ["call_host", "host_calls_compile"]


def host_calls_compile() -> bool:
    """Whether a function that is compiled by XLA may hold such calls."""
    return keras.config.backend() == "jax"


def call_host(
    function: Callable[..., np.ndarray], tensors: Sequence[Tensor], shape: Sequence, dtype: str
) -> Tensor:
    """Returns what a NumPy function gives for the values of tensors; no gradient flows through it.

    JAX calls it by `pure_callback`, TensorFlow by `numpy_function`, PyTorch as it is.

    Args:
        function: Takes arrays, returns an array of the given shape and dtype.
        tensors: Its arguments.
        shape: Shape of the result; an axis that is known at run time only may be `None`.
        dtype: Dtype of the result.

    Example:
    >>> import numpy as np
    >>> from plait.ops.backend.host import call_host
    >>> y = call_host(lambda x: x[:, :1] + 1, [np.ones((3, 2), "float32")], (3, 1), "float32")
    >>> [float(v) for v in y[:, 0]]
    [2.0, 2.0, 2.0]
    """
    tensors = [ops.stop_gradient(ops.convert_to_tensor(tensor)) for tensor in tensors]
    name = keras.config.backend()
    if name == "jax":
        jax = importlib.import_module("jax")
        if not any(isinstance(tensor, jax.core.Tracer) for tensor in tensors):
            return ops.convert_to_tensor(function(*map(np.asarray, tensors)), dtype=dtype)
        result = jax.ShapeDtypeStruct(tuple(shape), dtype)  # sizes may be symbols
        return jax.pure_callback(
            lambda *arrays: function(*map(np.asarray, arrays)), result, *tensors
        )
    if name == "tensorflow":
        tf = importlib.import_module("tensorflow")
        found = tf.numpy_function(function, tensors, tf.as_dtype(dtype))
        found.set_shape([size if isinstance(size, int) else None for size in shape])
        return found
    arrays = [ops.convert_to_numpy(tensor) for tensor in tensors]
    return ops.convert_to_tensor(function(*arrays), dtype=dtype)
