"""One call of a function on all rows, where each row has an expert's variables of its own.

Most experts are sequences of products with variables, additions and pointwise functions. Such a
function is called once on the rows of all experts, sorted by expert: a product with a variable
becomes one product for each run of rows, in one pass with the bias that is added to it, and
pointwise functions apply unchanged. The function is called with tensors of two subclasses: rows,
and variables that represent those of each row's expert. An operation that is not known to act on
each row separately raises `NotLoweredError`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from plait.ops.backend.common import NotLoweredError
from plait.ops.backend.torch_runs import GroupedRuns, Runs, add, affine, product, spread

__all__ = ["lowered"]


def lowered(function, variables, rows, runs):
    """Returns the results of `function` for sorted rows, each with the variables of its expert.

    Args:
        function: Maps `(variables_of_one_expert, rows)` to a list of tensors `(r, …)`, row by row.
        variables: Tensors `(e, …)`.
        rows: Tensors `(r, …)`.
        runs: `Runs` or `GroupedRuns`: which rows are whose.

    Returns:
        List of tensors `(r, …)`.

    Raises:
        NotLoweredError: The function does more than is lowered.
    """
    own = [_Variable.of(variable, runs) for variable in variables]
    results = function(own, [_rows(tensor) for tensor in rows])
    results = [y.made() if type(y) is _Pending else y for y in results]
    if not all(type(y) is _Rows and y.shape[0] == runs.num_rows for y in results):
        raise NotLoweredError("an output that is not made of the rows")
    return [y.as_subclass(torch.Tensor) for y in results]


def _rows(tensor):
    return tensor.as_subclass(_Rows)


class _Lowered(torch.Tensor):
    """A tensor that is an argument or a result inside a lowered function."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.__name__.strip("_")
        with torch._C.DisableTorchFunctionSubclass():
            if name in _QUESTIONS:
                answer = func(*args, **kwargs)
                if isinstance(answer, torch.Tensor):  # for example `x.T`
                    raise NotLoweredError(name)
                return answer
            # A product is computed late, and a function that is not lowered runs again: operands
            # must stay as they are.
            in_place = name != func.__name__ and not func.__name__.startswith("_")
            if in_place or kwargs.get("inplace") or kwargs.get("out") is not None:
                raise NotLoweredError(func.__name__)
            if _Pending in types:
                if name == "to" and _is_there(*args, **kwargs):
                    return args[0]
                if name not in ("add", "radd") or not _is_affine(*args, **kwargs):
                    args, kwargs = tree_map_only(_Pending, _Pending.made, (args, kwargs))
            own = [a for a in args if isinstance(a, _Variable)]
            if any(isinstance(a, _Variable) for a in kwargs.values()):
                raise NotLoweredError(name)
            if own and name in _WITH_VARIABLES:
                result = _WITH_VARIABLES[name](own[0].runs, *args, **kwargs)
            elif own and name in _POINTWISE:
                result = _pointwise(func, args, kwargs, own)
            elif not own and name in _RULES:
                result = _RULES[name](func, *args, **kwargs)
            elif not own and name in _POINTWISE:
                result = _same_rows(func(*args, **kwargs), [*args, *kwargs.values()])
            else:
                raise NotLoweredError(name)
            if not isinstance(result, torch.Tensor):
                return type(result)(map(_rows, result))
            return result if isinstance(result, _Lowered) else _rows(result)


class _Rows(_Lowered):
    """The rows of all experts, `(r, …)`."""


class _Pending(_Rows):
    """A product that is not computed before it is read: what adds to it does both in one pass.

    Attributes:
        operands: Rows, a stack of variables and the runs.
        value: The product, once it is known.
    """

    operands: tuple[Any, ...]
    value: _Rows | None

    @classmethod
    def of(cls, x, w, runs):
        """Returns the product `(r, …, u)` of rows `(r, …, d)` and a stack `(e, d, u)`."""
        one = torch.empty((), dtype=x.dtype, device=x.device)
        pending = one.expand(*x.shape[:-1], w.shape[-1]).as_subclass(cls)
        pending.operands, pending.value = (x, w, runs), None
        return pending

    def made(self):
        """Returns the product."""
        if self.value is None:
            self.value = _rows(product(*self.operands))
        return self.value


class _Variable(_Lowered):
    """Has the shape of one expert's variable, and represents that of each row's expert.

    Attributes:
        stack: Tensor `(e, …)`.
        runs: Which rows belong to which expert.
    """

    stack: torch.Tensor
    runs: Runs | GroupedRuns

    @classmethod
    def of(cls, stack, runs):
        one = torch.empty((), dtype=stack.dtype, device=stack.device)
        variable = one.expand(stack.shape[1:]).as_subclass(cls)
        variable.stack, variable.runs = stack, runs
        return variable


def _same_rows(result, operands):
    """Returns the result of a pointwise function, if its rank is that of the rows it was given."""
    ranks = [x.ndim for x in operands if isinstance(x, torch.Tensor)]
    rows = [x for x in operands if isinstance(x, _Rows)]
    if not rows or max(ranks) > rows[0].ndim or result.shape[0] != rows[0].shape[0]:
        raise NotLoweredError("rows broadcast to more axes")
    return result


def _pointwise(func, args, kwargs, own):
    """A pointwise function of variables alone, or of rows and variables."""
    runs = own[0].runs
    tensors = [a for a in args if isinstance(a, torch.Tensor) and a.ndim]
    if any(isinstance(a, _Rows) for a in args):
        rank = max(a.ndim for a in args if isinstance(a, _Rows))
        args = [_spread(a, rank) if isinstance(a, _Variable) else a for a in args]
        return _same_rows(func(*args, **kwargs), args)
    if any(a.ndim != own[0].ndim for a in tensors):
        raise NotLoweredError("variables of different ranks")
    stacks = [a.stack if isinstance(a, _Variable) else a for a in args]
    return _Variable.of(func(*stacks, **kwargs), runs)


def _spread(variable, rank):
    """Returns a variable `(…)` repeated by row, `(r, 1, …)`, that broadcasts to `rank` axes."""
    stack = variable.stack
    if stack.ndim == rank + 1 and stack.shape[1] == 1:
        stack = stack.squeeze(1)
    if stack.ndim > rank:
        raise NotLoweredError("a variable of more axes than the rows")
    stack = stack.reshape(-1, *(1,) * (rank - stack.ndim), *stack.shape[1:])
    return spread(stack, variable.runs)


def _product(runs, x, w, **options):
    if not (isinstance(x, _Rows) and isinstance(w, _Variable) and w.ndim == 2 and x.ndim > 1):
        raise NotLoweredError("matmul")
    if options:
        raise NotLoweredError("matmul with options")
    return _Pending.of(_plain(x), w.stack, runs)


def _is_there(x, *args, **kwargs):
    """Whether `x.to(…)` is `x`: it has that dtype, and is on that device."""
    for asked in (*args, *kwargs.values()):
        if isinstance(asked, torch.dtype):
            same = asked == x.dtype
        else:
            same = isinstance(asked, (str, torch.device)) and torch.device(asked) == x.device
        if not same:
            return False
    return True


def _is_affine(*operands, **options):
    """Whether a product that is not computed yet is added to a bias."""
    if len(operands) != 2:
        return False
    bias, pending = sorted(operands, key=lambda operand: type(operand) is _Pending)
    return (
        type(pending) is _Pending
        and isinstance(bias, _Variable)
        and pending.value is None
        and bias.shape == pending.shape[-1:]
        and bias.dtype == pending.dtype
        and not options
    )


def _add(runs, x, b, **options):
    rows, variable = (b, x) if isinstance(x, _Variable) else (x, b)
    if type(rows) is _Pending:
        x, w, _ = rows.operands
        return affine(x, w, variable.stack, runs)
    bias = type(rows) is _Rows and rows.ndim > 1 and variable.ndim == 1
    if bias and rows.shape[-1] == variable.shape[0] and not options:
        return add(_plain(rows), variable.stack, runs)
    return _pointwise(torch.add, (x, b), options, [variable])


def _einsum(runs, equation, *operands):
    """A product over the last axes of the rows, as in `abc,cd->abd`."""
    if len(operands) != 2 or not isinstance(equation, str) or "->" not in equation:
        raise NotLoweredError("einsum")
    x, w = operands
    given, out = equation.replace(" ", "").split("->")
    left, right = given.split(",")
    kept = [letter for letter in left if letter not in right]
    summed, new = left[len(kept) :], out[len(kept) :]
    if not (kept and [*left] == [*kept, *summed] and right == summed + new and "." not in left):
        raise NotLoweredError("einsum")
    if not (isinstance(x, _Rows) and isinstance(w, _Variable) and out == "".join(kept) + new):
        raise NotLoweredError("einsum")
    if not (summed and new):
        raise NotLoweredError("einsum")
    rows = _plain(x).flatten(len(kept)) if len(summed) > 1 else _plain(x)
    stack = w.stack.flatten(1, len(summed)) if len(summed) > 1 else w.stack
    stack = stack.flatten(2) if len(new) > 1 else stack
    if len(new) == 1:
        return _Pending.of(rows, stack, runs)
    return product(rows, stack, runs).unflatten(-1, w.shape[len(summed) :])


def _plain(rows):
    return rows.as_subclass(torch.Tensor).contiguous()


def _reshape_variable(runs, variable, *shape):
    wanted = list(shape[0]) if isinstance(shape[0], (tuple, list)) else list(shape)
    stack = variable.stack.reshape(runs.num_experts, *wanted)
    return _Variable.of(stack, runs)


def _to(runs, variable, *args, **kwargs):
    dtypes = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)]
    if not dtypes or dtypes[0] == variable.dtype:
        return variable
    return _Variable.of(variable.stack.to(dtypes[0]), runs)


def _over_axes(func, x, *args, **kwargs):
    """A function over axes of rows, none of them the first."""
    given = kwargs.get("dim", kwargs.get("axis", args[0] if args else None))
    axes = list(given) if isinstance(given, (tuple, list)) else [given]
    if not axes or any(not isinstance(axis, int) or axis % x.ndim == 0 for axis in axes):
        raise NotLoweredError(func.__name__)
    return func(x, *args, **kwargs)


def _split(func, x, size, dim=0):
    if dim % x.ndim == 0:
        raise NotLoweredError(func.__name__)
    return func(x, size, dim=dim)


def _concatenate(func, tensors, dim=0):
    if not all(type(x) is _Rows for x in tensors) or dim % tensors[0].ndim == 0:
        raise NotLoweredError("cat")
    return func(tensors, dim)


def _reshape(func, x, *args, **kwargs):
    result = func(x, *args, **kwargs)
    if result.ndim == 0 or result.shape[0] != x.shape[0]:
        raise NotLoweredError(func.__name__)
    return result


# Queries of a tensor's shape, dtype and device, not of its values.
_QUESTIONS = frozenset(
    ["get", "dim", "ndimension", "size", "is_floating_point", "is_complex", "element_size", "len"]
)
_WITH_VARIABLES: dict[str, Callable[..., torch.Tensor]] = {
    **dict.fromkeys(["matmul", "mm"], _product),
    **dict.fromkeys(["add", "radd"], _add),
    "einsum": _einsum,
    **dict.fromkeys(["reshape", "view"], _reshape_variable),
    "to": _to,
}
_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ["mean", "sum", "var", "amax", "amin", "softmax", "log_softmax", "logsumexp"], _over_axes
    ),
    **dict.fromkeys(["split", "chunk"], _split),
    **dict.fromkeys(["cat", "concat", "concatenate"], _concatenate),
    **dict.fromkeys(["reshape", "view", "flatten"], _reshape),
}
_NAMES = """
abs add celu clamp clone contiguous cos detach div divide dropout elu eq erf exp expm1 full_like ge
gelu gt hardsigmoid hardswish hardtanh le leaky_relu log log1p logical_and logical_not logical_or
logsigmoid lt maximum minimum mul multiply ne neg negative ones_like pow radd reciprocal relu relu6
rmul rpow rsqrt rsub rtruediv selu sigmoid sign silu sin softplus sqrt square sub subtract tanh
tanhshrink to true_divide truediv where zeros_like
"""
_POINTWISE = frozenset(_NAMES.split())
