"""The backend functions on PyTorch."""

import weakref
from contextlib import nullcontext as outside_of_graphs
from itertools import chain, pairwise

import torch

from plait.ops.backend.batches import affordable_padding, batches, work_per_row
from plait.ops.backend.common import (
    GROUPED_PRODUCTS,
    NotLoweredError,
    is_float,
    numbered,
    vectorized_map_with,
)
from plait.ops.backend.torch_lowering import lowered
from plait.ops.backend.torch_runs import GroupedRuns, Runs
from plait.ops.backend.torch_vmap import vectorize

__all__ = [
    "SHAPE_ERRORS",
    "calls_are_eager",
    "clear_gradients",
    "compiled",
    "draws_like_loops",
    "keep_gradient",
    "loops_are_faster",
    "map_choices",
    "maps_seeds",
    "on_devices",
    "outside_of_graphs",
    "refuses",
    "stacking_pays",
    "take_rows",
    "unstack",
    "vectorize",
]


# Dropout converts its seed to a Python integer, which `vmap` allows where experts share the seed.
maps_seeds = False
SHAPE_ERRORS = (TypeError, ValueError, IndexError, RuntimeError)


draws_like_loops = False
# One program for several devices is compiled by JAX alone.
on_devices = None


def stacking_pays(num_values, num_experts):
    """Whether a call that stacks the values of all experts beats one call per expert.

    Args:
        num_values: How many numbers the variables of one expert hold.
        num_experts: How many experts there are.
    """
    # A vectorised call costs what three calls of Keras layers cost; copying large experts into one
    # tensor costs more than it saves.
    return num_experts > 3 and num_values < 100_000


def refuses(error):
    """Whether an exception says that `vectorize` cannot batch a function."""
    known = isinstance(error, (RuntimeError, NotImplementedError))
    return known and any(word in str(error) for word in ("vmap", "atching rule"))


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
    past the end gives a row of zeros. A scatter would add row after row.

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


# Nothing is compiled: eager calls run as they are.
compiled = None


def calls_are_eager(tensors):
    """Whether a call with these tensors runs at once: always."""
    del tensors
    return True


def clear_gradients(groups, outputs):
    """Clears gradients that Keras leaves from the last step, once the backward pass is at outputs.

    Keras clears PyTorch gradients by path, between the forward and the backward pass: of several
    variables with one path, as in two models called "net", it clears one. Where one of them has no
    gradient, the others' are cleared here. While gradients are accumulated over several backward
    passes, all of them have one.

    Args:
        groups: Lists of trainable Keras variables that share a path.
        outputs: Tensors computed from them: the first that the backward pass reaches clears.
    """
    outputs = [output for output in outputs if output.requires_grad]
    if not groups or not outputs:
        return
    waiting = [True]

    def clear(gradient):
        # Once: gradients of this pass may have arrived when it reaches the next output.
        if not waiting:
            return
        waiting.clear()
        for group in groups:
            parameters = [variable.value for variable in group if variable.trainable]
            if any(parameter.grad is None for parameter in parameters):
                for parameter in parameters:
                    parameter.grad = None

    for output in outputs:
        output.register_hook(clear)


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


def map_choices(groups, leaves, choices):
    """Each expert on the rows that chose it: see `plait.ops.backend.map_choices`.

    Rows are sorted by expert. A group's function runs once on all its rows where it is lowered.
    Otherwise it runs in batches of neighbouring experts, each one vectorised call.
    """
    order, place, offsets, num_selected, _ = choices
    place = place.long()
    back = place.reshape(-1, num_selected)
    rows = [_Gather.apply(leaf, order // num_selected, back) for leaf in leaves]
    if GROUPED_PRODUCTS and len(groups) == 1:
        outputs = _run_grouped(groups[0], rows, offsets)
        if outputs is not None:
            return [_Collect.apply(y, place) for y in outputs]
    bounds = offsets.tolist()
    ranges = list(zip(groups, numbered(groups), strict=True))
    sizes = [bounds[last] - bounds[first] for _, (first, last) in ranges]
    parts = zip(*(leaf.split([*sizes, len(order) - bounds[-1]]) for leaf in rows), strict=True)
    results: list[list] = []
    idle: list[torch.Tensor] = []
    for (group, (first, last)), part in zip(ranges, parts, strict=False):
        if bounds[first] < bounds[last]:
            own = [bound - bounds[first] for bound in bounds[first : last + 1]]
            results.append(_run_group(group, part, own, first))
        else:
            idle += filter(is_float, group.variables)
    if not results:
        # Where no expert was chosen, one call on a row gives the outputs their shape.
        idle += filter(is_float, rows)
        with torch.no_grad():
            values = [variable[0] for variable in groups[0].variables]
            outputs = groups[0].function(values, [leaf[:1] for leaf in rows], 0)
        results.append([y[:0] for y in outputs])
    merged = []
    for column in zip(*results, strict=True):
        empty = column[0].new_zeros((len(order) - bounds[-1], *column[0].shape[1:]))
        merged.append(_Collect.apply(torch.cat([*column, empty]), place))
    return [_WithZeroGradients.apply(merged[0], *idle), *merged[1:]] if idle else merged


def _run_grouped(group, rows, offsets):
    """The outputs `(m, …)` of the only group by grouped products, or `None` if not lowered.

    Args:
        group: The group.
        rows: Tensors `(m, …)`, sorted by expert.
        offsets: int32 `(e + 1,)`.
    """
    num_rows = rows[0].shape[0]
    if not group.vectorized or group.called in _not_lowered or num_rows == 0:
        return None
    runs = GroupedRuns(offsets, num_rows)
    try:
        outputs = lowered(lambda own, fed: group.function(own, fed, 0), group.variables, rows, runs)
    except NotLoweredError:
        return None
    counts = torch.arange(num_rows, device=offsets.device) < offsets[-1]
    return [torch.where(counts.reshape(-1, *(1,) * (y.ndim - 1)), y, 0) for y in outputs]


def _run_group(group, rows, bounds, first):
    """The outputs `(r, …)` of a group whose first expert has number `first`.

    Args:
        group: The group.
        rows: Tensors `(r, …)`, sorted by expert.
        bounds: Integers; the rows of its expert `l` are `bounds[l]:bounds[l + 1]`.
        first: An integer.
    """
    if group.vectorized and group.num_experts > 1 and group.called not in _not_lowered:
        try:
            runs = Runs(bounds, rows[0].device)
            return lowered(
                lambda own, fed: group.function(own, fed, first), group.variables, rows, runs
            )
        except NotLoweredError:
            if group.called is not None:
                _not_lowered.add(group.called)
    return _in_batches(group, rows, bounds, first)


# What groups call that was found not to be lowered.
_not_lowered: weakref.WeakSet = weakref.WeakSet()


def _in_batches(group, rows, bounds, first):
    """As `_run_group`, in batches of neighbouring experts, each on as many rows as the busiest.

    Padding repeats an expert's last row. Variables are split once: indexing them in the loop would
    make a gradient the size of all experts at every step.
    """
    loads = [b - a for a, b in pairwise(bounds)]
    found = _batches(group, rows, loads)
    source, slot = _layout(found, bounds, rows[0].device)
    padded = len(source) > bounds[-1]
    if padded:
        rows = [_Gather.apply(leaf, source, slot[:, None]) for leaf in rows]
    fed = zip(*(leaf.split([batch.num_rows for batch in found]) for leaf in rows), strict=True)
    parts = _parts(found, group.num_experts)
    pieces = list(zip(*(variable.split(parts) for variable in group.variables), strict=True))
    results = [
        _run_batch(
            group.function, pieces[2 * i + 1] if pieces else [], next(fed), batch, loads, first
        )
        for i, batch in enumerate(found)
    ]
    outputs = [torch.cat(values) for values in zip(*results, strict=True)]
    return [_Collect.apply(y, slot) for y in outputs] if padded else outputs


def _batches(group, leaves, loads):
    """The batches of one group's experts."""
    work = work_per_row([v.shape[1:] for v in group.variables], [leaf.shape[1:] for leaf in leaves])
    return batches(loads, affordable_padding(work) if group.vectorized else -1)


def _layout(found, bounds, device):
    """Where the rows of the batches come from, and where they go.

    Returns:
        A pair: int `(p,)`, the sorted row that each row of the batches is, and int `(r,)`, the row
        of the batches that holds each sorted row.
    """
    table = [
        (bounds[expert], bounds[expert + 1] - bounds[expert], batch.size)
        for batch in found
        for expert in range(batch.start, batch.end)
    ]
    first, load, width = torch.tensor(table, device=device).T
    member = torch.repeat_interleave(width)
    step = torch.arange(len(member), device=device) - (torch.cumsum(width, 0) - width)[member]
    load = load[member]
    source = first[member] + torch.minimum(step, load - 1).clamp(min=0)
    return source.clamp(max=bounds[-1] - 1), torch.nonzero(step < load)[:, 0]


def _parts(found, num_experts):
    """Numbers of experts before, in, and between the batches, and behind the last."""
    edges = [0, *chain.from_iterable((b.start, b.end) for b in found), num_experts]
    return [b - a for a, b in pairwise(edges)]


def _run_batch(function, variables, rows, batch, loads, first):
    """The outputs `(r, …)` of one batch of a group whose first expert has number `first`."""
    loads = loads[batch.start : batch.end]
    if not all(loads):
        # An expert without rows runs on padding; its gradient is set to zero.
        used = torch.tensor(loads, device=rows[0].device) > 0
        variables = [keep_gradient(v, used) if is_float(v) else v for v in variables]
    segment = first + batch.start
    if batch.num_experts == 1:
        return function([variable[0] for variable in variables], list(rows), segment)
    shape = batch.num_experts, batch.size
    fed = [leaf.reshape(*shape, *leaf.shape[1:]) for leaf in rows]
    numbers = torch.arange(batch.num_experts, device=rows[0].device)
    values = vectorized_map_with(
        vectorize,
        lambda one, _: function(one[0], one[1], segment),
        (list(variables), fed, numbers),
        None,
    )
    return [value.flatten(0, 1) for value in values]


class _WithZeroGradients(torch.autograd.Function):
    """Returns its first argument; the others get a gradient of zero in place of none.

    Keras warns of variables without a gradient, as those of an expert would be that no row chose.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor, *variables):
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, gradient):
        return gradient, *(torch.zeros_like(variable) for variable in ctx.saved_tensors)


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
