"""One function that differentiates on whichever backend the tests run."""

import importlib

import keras
import numpy as np

__all__ = ["value_and_gradients"]


def value_and_gradients(function, arrays, *, compiled=False):
    """The value of a scalar function and its gradient to each array.

    Args:
        function: Maps as many tensors as there are arrays to one scalar tensor.
        arrays: NumPy arrays or tensors of a floating dtype, the points to differentiate at.
        compiled: Whether to run under `jax.jit` or `tf.function`. PyTorch ignores it.

    Returns:
        A pair `(value, gradients)`: a NumPy scalar and a list of NumPy arrays, one per array.
        An array that the value does not depend on gets zeros.
    """
    backend = keras.config.backend()
    arrays = [keras.ops.convert_to_tensor(array) for array in arrays]
    value, gradients = globals()[f"_{backend}"](function, arrays, compiled)
    to_numpy = keras.ops.convert_to_numpy
    return to_numpy(value), [np.asarray(to_numpy(gradient)) for gradient in gradients]


def _jax(function, arrays, compiled):
    jax = importlib.import_module("jax")
    step = jax.value_and_grad(
        lambda *tensors: function(*tensors), argnums=tuple(range(len(arrays)))
    )
    return (jax.jit(step) if compiled else step)(*arrays)


def _tensorflow(function, arrays, compiled):
    tf = importlib.import_module("tensorflow")

    def step(*tensors):
        with tf.GradientTape() as tape:
            for tensor in tensors:
                tape.watch(tensor)
            value = function(*tensors)
        gradients = tape.gradient(
            value, list(tensors), unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return value, [tf.convert_to_tensor(gradient) for gradient in gradients]

    return (tf.function(step) if compiled else step)(*arrays)


def _torch(function, arrays, compiled):
    torch = importlib.import_module("torch")
    leaves = [array.detach().clone().requires_grad_(True) for array in arrays]
    value = function(*leaves)
    if not value.requires_grad:
        return value, [torch.zeros_like(leaf) for leaf in leaves]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value, [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
