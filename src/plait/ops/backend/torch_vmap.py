"""One vectorised call on PyTorch.

`torch.func.vmap` cannot evaluate `is_contiguous(memory_format=…)`, which Keras' convolutions call
to decide whether to copy a tensor into the channels-last format. The format is only a matter of
speed, so that it is taken to be right, from the first function on that asks for it: the mode that
answers is passed by every operation.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["vectorize"]


class _AnyMemoryFormat(TorchFunctionMode):
    """Takes every tensor's memory format to be the wanted one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.is_contiguous and "memory_format" in kwargs:
            return True
        return func(*args, **kwargs)


_asked = False


def vectorize(function, tensors):
    """Lists in, lists out: see `plait.ops.backend.vectorized_map`."""
    global _asked
    if not _asked:
        try:
            return _vectorize(function, tensors)
        except RuntimeError as error:
            if "is_contiguous" not in str(error):
                raise
        _asked = True
    with _AnyMemoryFormat():
        return _vectorize(function, tensors)


def _vectorize(function, tensors):
    # Of the attention kernels, only the one made of plain products is batched by `vmap`.
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.vmap(function, randomness="different")(tensors)
