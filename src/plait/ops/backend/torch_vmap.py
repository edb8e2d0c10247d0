"""One vectorised call on PyTorch.

`torch.func.vmap` refuses one question that Keras' layers ask of tensors: has the tensor a given
memory format? It is asked before a convolution, to copy the tensor into the channels-last format.
The format is only a matter of speed, so the answer here is yes.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["vectorize"]


class _AnyMemoryFormat(TorchFunctionMode):
    """Answers yes where a tensor is asked for its memory format."""

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
