"""The seam on PyTorch."""

from contextlib import nullcontext as outside_of_graphs
from itertools import pairwise

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from plait.ops.backend.structure import is_float

__all__ = [
    "forget_gradients",
    "keep_gradient",
    "loops_are_faster",
    "map_choices",
    "outside_of_graphs",
    "take_rows",
    "unstack",
    "vectorize",
]


class _KerasInsideVmap(TorchFunctionMode):
    """Answers two questions that Keras' layers ask of tensors, and that `vmap` refuses.

    - Has the tensor a given memory format? Asked before a convolution, to copy it into the
      channels-last format. The format is only a matter of speed: yes.
    - What integer is it? Asked of a dropout's seed. Experts share the random generator that is
      made of it, and draw different numbers from it: the sum of the experts' seeds.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.is_contiguous and "memory_format" in kwargs:
            return True
        if func is torch.Tensor.__int__:
            holder = _Holder()
            _Peek.apply(args[0], holder)
            values = holder.value.unique()
            return int(values[0] if len(values) == 1 else values.sum())
        return func(*args, **kwargs)


class _Holder:
    """Where `_Peek` leaves what it saw."""

    value: torch.Tensor


class _Peek(torch.autograd.Function):
    """Shows the values of all experts behind the one that a function sees inside `vmap`."""

    @staticmethod
    def forward(tensor, holder):
        holder.value = tensor.detach()
        return tensor.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return None, None

    @staticmethod
    def vmap(info, in_dims, tensor, holder):
        return _Peek.apply(tensor, holder), in_dims[0]


def vectorize(function, tensors):
    """Lists in, lists out: see `plait.ops.backend.vectorized_map`."""
    # Of the attention kernels, only the one made of plain products is batched by `vmap`.
    with _KerasInsideVmap(), sdpa_kernel(SDPBackend.MATH):
        return torch.func.vmap(function, randomness="different")(tensors)


def unstack(tensor):
    """Slices along the first axis; the gradient is one stack, not one scatter a slice.

    Args:
        tensor: Tensor `(e, …)`.

    Returns:
        List of `e` tensors `(…)`.
    """
    return list(torch.unbind(tensor))


def take_rows(tensor, index, inverse):
    """Rows by number, with a gradient that gathers too.

    `out[i] = tensor[index[i]]` and `gradient[j] = Σ_k gradient_out[inverse[j, k]]`. A number
    past the end stands for a row of zeros. A scatter would add row after row.

    Args:
        tensor: Tensor `(m, …)`.
        index: int32 `(i,)` with values in `[0, m]`.
        inverse: int32 `(m, k)` with values in `[0, i]`: where each row went.

    Returns:
        Tensor `(i, …)`.
    """
    if not is_float(tensor):
        return _take(tensor, index)
    return _TakeRows.apply(tensor, index, inverse)


def _take(tensor, index):
    if tensor.shape[0] == 0:
        return tensor.new_zeros((index.shape[0], *tensor.shape[1:]))
    inside = index < tensor.shape[0]
    taken = tensor.index_select(0, torch.where(inside, index, 0))
    return torch.where(inside.reshape((-1,) + (1,) * (tensor.ndim - 1)), taken, 0)


class _TakeRows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tensor, index, inverse):
        return _take(tensor, index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx, gradient):
        (inverse,) = ctx.saved_tensors
        gradients = [_take(gradient, inverse[:, k]) for k in range(inverse.shape[1])]
        return sum(gradients[1:], gradients[0]), None, None


def forget_gradients(variables):
    """Clears what the last step left in the gradients of variables.

    Keras does so for the parameters of a whole model, but knows them by path: of several variables
    with one path, as in two models called "net", it clears one, and the others' would add up.

    Args:
        variables: Keras variables.
    """
    for variable in variables:
        variable.value.grad = None


def keep_gradient(tensor, kept):
    """The tensor itself; where an expert is not kept, its gradient becomes zero.

    Args:
        tensor: Tensor `(e, …)` of a floating dtype.
        kept: bool `(e,)`.

    Returns:
        Tensor `(e, …)`.
    """
    return _KeepGradient.apply(tensor, kept)


class _KeepGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tensor, kept):
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, gradient):
        (kept,) = ctx.saved_tensors
        return torch.where(kept.reshape((-1,) + (1,) * (gradient.ndim - 1)), gradient, 0), None


def loops_are_faster():
    """Whether a loop over experts in use beats one vectorised call on buffers of a capacity."""
    return False


def map_choices(function, variables, leaves, choices):
    """Each expert on the rows that chose it: see `plait.ops.backend.map_choices`.

    A loop over the experts in use. Variables are unbound once, and rows split once: indexing them
    inside the loop would make a gradient the size of all experts, or all rows, at every step.
    """
    order, place, offsets, num_selected = choices
    bounds = offsets.tolist()
    sizes = [b - a for a, b in pairwise(bounds)]
    rest = order.shape[0] - bounds[-1]
    # Where nobody was chosen, one call on no rows gives the outputs their shape.
    used = [number for number, size in enumerate(sizes) if size] or [0]
    back = place.reshape(-1, num_selected)
    split = [
        _Reorder.apply(leaf, order // num_selected, back).split([*sizes, rest]) for leaf in leaves
    ]
    unstacked = [unstack(variable) for variable in variables]
    results = [
        function([slices[i] for slices in unstacked], [rows[i] for rows in split], i) for i in used
    ]
    outputs = []
    for values in zip(*results, strict=True):
        zeros = values[0].new_zeros((rest, *values[0].shape[1:]))
        outputs.append(_Reorder.apply(torch.cat([*values, zeros]), place, order[:, None]))
    return outputs


class _Reorder(torch.autograd.Function):
    """`take_rows` where no number is past the end."""

    @staticmethod
    def forward(tensor, index, inverse):
        return tensor.index_select(0, index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx, gradient):
        (inverse,) = ctx.saved_tensors
        gradients = [gradient.index_select(0, inverse[:, k]) for k in range(inverse.shape[1])]
        return sum(gradients[1:], gradients[0]), None, None
