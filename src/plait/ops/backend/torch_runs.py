"""Which sorted rows belong to which expert on PyTorch, and operations with their variables."""

from itertools import pairwise

import torch
from torch.nn import functional

from plait.ops.backend.common import NotLoweredError

__all__ = ["GroupedRuns", "Runs", "add", "affine", "product", "spread"]


class Runs:
    """Which rows belong to which expert, known to the host: a kernel for each expert in use.

    Args:
        bounds: Integers; the rows of expert `l` are `bounds[l]:bounds[l + 1]`.
        device: Where the rows are.

    Attributes:
        num_rows: `r`.
        num_experts: `e`.
        used: Triples of an expert, its first row and the row after its last; only those with rows.
    """

    def __init__(self, bounds, device):
        self.num_rows = bounds[-1]
        self.num_experts = len(bounds) - 1
        self.used = [(i, a, b) for i, (a, b) in enumerate(pairwise(bounds)) if a < b]
        self._loads = [b - a for a, b in pairwise(bounds)]
        self._device = device
        self._expert = None

    def expert(self):
        """Returns int64 `(r,)`, the expert of each row."""
        if self._expert is None:
            loads = torch.tensor(self._loads, device=self._device)
            self._expert = torch.repeat_interleave(loads)
        return self._expert

    def product(self, x, w, b=None):
        """Returns `y[i] = x[i] @ w[expert of i]`: `(r, t, d)` and `(e, d, u)` to `(r, t, u)`.

        With `b`, `(e, u)`, it is added in the same pass.
        """
        y = x.new_empty((*x.shape[:-1], w.shape[-1]))
        if b is None:
            self._write(torch.mm, y, x, w)
        else:
            self._write(_addmm, y, x, w, b)
        return y

    def outer(self, x, g):
        """Returns `w[l] = Σ_i x[i]ᵀ g[i]` over the rows of expert `l`."""
        full = len(self.used) == self.num_experts
        shape = self.num_experts, x.shape[-1], g.shape[-1]
        w = x.new_empty(shape) if full else x.new_zeros(shape)
        slices = w.unbind()
        for expert, a, b in self.used:
            torch.mm(x[a:b].flatten(0, -2).T, g[a:b].flatten(0, -2), out=slices[expert])
        return w

    def add(self, x, b):
        """Returns `y[i] = x[i] + b[expert of i]`: `(r, …, u)` and `(e, u)` to `(r, …, u)`."""
        y = torch.empty_like(x)
        self._write(torch.add, y, x, b)
        return y

    def sum_rows(self, x):
        """Returns `p[l] = Σ_i x[i]` over the rows of expert `l`: `(r, …)` to `(e, …)`."""
        p = x.new_zeros((self.num_experts, *x.shape[1:]))
        slices = p.unbind()
        for expert, a, b in self.used:
            torch.sum(x[a:b], 0, out=slices[expert])
        return p

    def _write(self, function, y, x, *variables):
        """Writes `function(x, *variables)` to `y`, run by run."""
        flat = (y.flatten(1, -2), x.flatten(1, -2)) if y.ndim > 2 else (y, x)
        times = flat[0].shape[1] if y.ndim > 2 else 1
        y, x = (tensor.reshape(-1, tensor.shape[-1]) for tensor in flat)
        most = 4 * len(self.used) > self.num_experts
        stacks = [variable.unbind() if most else variable for variable in variables]
        for expert, a, b in self.used:
            own = [stack[expert] for stack in stacks]
            function(x[a * times : b * times], *own, out=y[a * times : b * times])


def _addmm(x, w, b, out):
    torch.addmm(b, x, w, out=out)


class GroupedRuns:
    """Which rows belong to which expert, known to the device alone: one grouped kernel for all.

    The host never waits for the loads. Rows behind the last that counts are given to the expert
    that has the last one: what they give means nothing.

    Args:
        offsets: int32 `(e + 1,)`; the rows of expert `l` are `offsets[l]:offsets[l + 1]`.
        num_rows: `r`.

    Attributes:
        num_rows: `r`.
        num_experts: `e`.
    """

    def __init__(self, offsets, num_rows):
        self.num_rows = num_rows
        self.num_experts = len(offsets) - 1
        self._ends = torch.where(offsets[1:] >= offsets[-1], num_rows, offsets[1:])
        self._expert = None

    def expert(self):
        """Returns int64 `(r,)`, the expert of each row."""
        if self._expert is None:
            rows = torch.arange(self.num_rows, device=self._ends.device)
            self._expert = torch.searchsorted(self._ends.long(), rows, right=True)
        return self._expert

    def product(self, x, w, b=None):
        """See `Runs.product`."""
        flat = x.flatten(0, -2)
        y = self._grouped(flat, w, flat.shape[0]).unflatten(0, x.shape[:-1])
        return y if b is None else self.add(y, b)

    def outer(self, x, g):
        """See `Runs.outer`."""
        x, g = x.flatten(0, -2), g.flatten(0, -2)
        return self._grouped(x.T, g, x.shape[0])

    def add(self, x, b):
        """See `Runs.add`."""
        b = b.index_select(0, self.expert())
        return x + b.reshape(-1, *(1,) * (x.ndim - 2), b.shape[-1])

    def sum_rows(self, x):
        """See `Runs.sum_rows`."""
        p = x.new_zeros((self.num_experts, *x.shape[1:]))
        return p.index_add(0, self.expert(), x)

    def _grouped(self, x, w, num_rows):
        ends = (self._ends * (num_rows // max(self.num_rows, 1))).int()
        try:
            return functional.grouped_mm(x, w, offs=ends)
        except (RuntimeError, ValueError) as error:  # a dtype or strides that it does not take
            raise NotLoweredError(str(error)) from error


def _apply(function, *args):
    """Returns the result of an autograd function, called directly where no gradient is needed."""
    wanted = torch.is_grad_enabled() and any(
        isinstance(a, torch.Tensor) and a.requires_grad for a in args
    )
    return function.apply(*args) if wanted else function.forward(*args)


class _Product(torch.autograd.Function):
    """`y[i] = x[i] @ w[expert of i]`: `(r, t, d)` and `(e, d, u)` to `(r, t, u)`."""

    @staticmethod
    def forward(x, w, runs):
        return runs.product(x, w)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, ctx.runs = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_x = _apply(_Product, gradient, w.mT, ctx.runs) if ctx.needs_input_grad[0] else None
        to_w = _apply(_Outer, x, gradient, ctx.runs) if ctx.needs_input_grad[1] else None
        return to_x, to_w, None


class _Affine(torch.autograd.Function):
    """`y[i] = x[i] @ w[expert of i] + b[expert of i]`, with `b` of shape `(e, u)`."""

    @staticmethod
    def forward(x, w, b, runs):
        return runs.product(x, w, b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, _, ctx.runs = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        gradient = gradient.contiguous()
        wanted = ctx.needs_input_grad
        axes = tuple(range(1, gradient.ndim - 1))
        rows = gradient.sum(axes) if axes else gradient
        return (
            _apply(_Product, gradient, w.mT, ctx.runs) if wanted[0] else None,
            _apply(_Outer, x, gradient, ctx.runs) if wanted[1] else None,
            _apply(_SumRows, rows, ctx.runs) if wanted[2] else None,
            None,
        )


class _Outer(torch.autograd.Function):
    """`w[l] = Σ_i x[i]ᵀ g[i]` over the rows of expert `l`: `(r, t, d)` and `(r, t, u)`."""

    @staticmethod
    def forward(x, g, runs):
        return runs.outer(x, g)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, g, ctx.runs = inputs
        ctx.save_for_backward(x, g)

    @staticmethod
    def backward(ctx, gradient):
        x, g = ctx.saved_tensors
        return (
            _apply(_Product, g, gradient.mT, ctx.runs),
            _apply(_Product, x, gradient, ctx.runs),
            None,
        )


class _Add(torch.autograd.Function):
    """`y[i] = x[i] + b[expert of i]`: `(r, …, u)` and `(e, u)` to `(r, …, u)`."""

    @staticmethod
    def forward(x, b, runs):
        return runs.add(x, b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.runs, ctx.axes = inputs[2], tuple(range(1, inputs[0].ndim - 1))

    @staticmethod
    def backward(ctx, gradient):
        rows = gradient.sum(ctx.axes) if ctx.axes else gradient
        return gradient, _apply(_SumRows, rows, ctx.runs), None


class _Spread(torch.autograd.Function):
    """`y[i] = p[expert of i]`: `(e, …)` to `(r, …)`."""

    @staticmethod
    def forward(p, runs):
        return p.index_select(0, runs.expert())

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.runs = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        return _apply(_SumRows, gradient, ctx.runs), None


class _SumRows(torch.autograd.Function):
    """`p[l] = Σ_i x[i]` over the rows of expert `l`: `(r, …)` to `(e, …)`."""

    @staticmethod
    def forward(x, runs):
        return runs.sum_rows(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.runs = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        return _apply(_Spread, gradient, ctx.runs), None


def product(x, w, runs):
    """Returns `y[i] = x[i] @ w[expert of i]`: `(r, t, d)` and `(e, d, u)` to `(r, t, u)`."""
    return _apply(_Product, x, w, runs)


def affine(x, w, b, runs):
    """Returns `product(x, w, runs)` and a bias `(e, u)`, in one pass."""
    return _apply(_Affine, x, w, b, runs)


def add(x, b, runs):
    """Returns `y[i] = x[i] + b[expert of i]`: `(r, …, u)` and `(e, u)` to `(r, …, u)`."""
    return _apply(_Add, x, b, runs)


def spread(p, runs):
    """Returns `y[i] = p[expert of i]`: `(e, …)` to `(r, …)`."""
    return _apply(_Spread, p, runs)
