"""The seam on PyTorch."""

import sys
from contextlib import nullcontext as outside_of_graphs
from itertools import chain, pairwise

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from plait.ops.backend.groups import Group, affordable_spare_rows, groups, work_per_row
from plait.ops.backend.structure import is_float, vectorized_map_with

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
      made of it, and draw different numbers from it: the sum of the experts' seeds. Whoever else
      asks is refused, as by `vmap` itself: to what experts compute there is no common answer.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.is_contiguous and "memory_format" in kwargs:
            return True
        if func is torch.Tensor.__int__ and _seeds_a_generator(sys._getframe(1)):
            holder = _Holder()
            _Peek.apply(args[0], holder)
            values = holder.value.unique()
            return int(values[0] if len(values) == 1 else values.sum())
        return func(*args, **kwargs)


def _seeds_a_generator(frame):
    """Whether the code that asks, behind other modes, goes on to seed a random generator."""
    while frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    return "manual_seed" in frame.f_code.co_names


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
    return True  # experts of like load together, with fewer spare rows


def map_choices(function, variables, leaves, choices, vectorized):
    """Each expert on the rows that chose it: see `plait.ops.backend.map_choices`.

    A loop over groups of neighbouring experts, each one vectorised call on as many rows per expert
    as the largest load of the group; spare places repeat an expert's last row. Variables are split
    once: indexing them in the loop would make a gradient the size of all experts at every step.
    """
    order, place, offsets, num_selected = choices
    bounds = offsets.tolist()
    loads = [b - a for a, b in pairwise(bounds)]
    work = work_per_row([v.shape[1:] for v in variables], [leaf.shape[1:] for leaf in leaves])
    found = groups(loads, affordable_spare_rows(work) if vectorized else -1)
    # Where nobody was chosen, one call gives the outputs their shape. It sees one row: of no rows,
    # a reshape cannot say how long they are.
    found = found or [Group(0, 1, min(1, len(order)))]
    source, slot = _layout(found, bounds, order)
    chosen = slot[place]
    rows = [
        _Gather.apply(leaf, source // num_selected, chosen.reshape(-1, num_selected))
        for leaf in leaves
    ]
    sizes = [group.num_rows for group in found]
    rows = [leaf.split([*sizes, len(source) - sum(sizes)]) for leaf in rows]
    parts = _parts(found, len(loads))
    split = [variable.split(parts) for variable in variables]
    results = [
        _run_group(
            function,
            [pieces[2 * number + 1] for pieces in split],
            [pieces[number] for pieces in rows],
            group,
            loads,
        )
        for number, group in enumerate(found)
    ]
    outputs = []
    for values in zip(*results, strict=True):
        zero = values[0].new_zeros((len(source) - sum(sizes), *values[0].shape[1:]))
        outputs.append(_Collect.apply(torch.cat([*values, zero]), chosen))
    return outputs


def _layout(found, bounds, order):
    """Where the rows of the groups come from, and where they stand.

    Returns:
        A pair: int `(r,)`, the choice that each row of the groups belongs to, and int `(n * k,)`,
        the row at which the choice at each place stands. Where some choices are of nobody, one
        more row stands for them behind the groups'.
    """
    members = [(expert, group.size) for group in found for expert in range(*group[:2])]
    table = [
        (bounds[expert], bounds[expert + 1] - bounds[expert], size) for expert, size in members
    ]
    first, load, width = torch.tensor(table, device=order.device).T
    member = torch.repeat_interleave(width)
    step = torch.arange(len(member), device=order.device) - (torch.cumsum(width, 0) - width)[member]
    load = load[member]
    source = order[first[member] + torch.minimum(step, load - 1).clamp(min=0)]
    slot = torch.nonzero(step < load)[:, 0]
    nobody = len(order) - bounds[-1]
    if nobody:
        source = torch.cat([source, order[:1]])
        slot = torch.cat([slot, slot.new_full((nobody,), len(member))])
    return source, slot


def _parts(found, num_experts):
    """Numbers of experts before, in, and between the groups, and behind the last."""
    edges = [0, *chain.from_iterable((g.start, g.end) for g in found), num_experts]
    return [b - a for a, b in pairwise(edges)]


def _run_group(function, variables, rows, group, loads):
    """The outputs `(r, …)` of one group."""
    if not all(loads[group.start : group.end]):
        # An expert without rows runs on another's, and must not learn from what it makes of them.
        used = torch.tensor(loads[group.start : group.end], device=rows[0].device) > 0
        variables = [keep_gradient(v, used) if is_float(v) else v for v in variables]
    if group.num_experts == 1:
        return function([variable[0] for variable in variables], rows, group.start)
    shape = group.num_experts, group.size
    fed = [leaf.reshape(*shape, *leaf.shape[1:]) for leaf in rows]
    experts = torch.arange(group.start, group.end, dtype=torch.int32, device=rows[0].device)
    mapped = variables, fed, experts
    values = vectorized_map_with(vectorize, lambda one, _: function(*one), mapped, None)
    return [value.flatten(0, 1) for value in values]


class _Gather(torch.autograd.Function):
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


class _Collect(torch.autograd.Function):
    """Rows by number, each taken once: the gradient is copied, not added, to where it belongs."""

    @staticmethod
    def forward(tensor, index):
        return tensor.index_select(0, index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, gradient):
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).index_copy_(0, index, gradient), None
