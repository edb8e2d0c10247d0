"""One vectorised call on PyTorch.

`torch.func.vmap` cannot evaluate `is_contiguous(memory_format=…)`, which Keras' convolutions call
to decide whether to copy a tensor into the channels-last format. The format is only a matter of
speed, so that it is taken to be right.
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


def vectorize(function, tensors):
    """Lists in, lists out: see `plait.ops.backend.vectorized_map`."""
    # Of the attention kernels, only the one made of plain products is batched by `vmap`.
    with _AnyMemoryFormat(), sdpa_kernel(SDPBackend.MATH):
        return torch.func.vmap(function, randomness="different")(tensors)
