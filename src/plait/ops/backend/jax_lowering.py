"""One call of a function on all rows, where each row has an expert's variables of its own.

The function is traced once on the rows of all experts, sorted by expert, and its operations are
applied one after the other. A product with a variable becomes one grouped product
(`jax.lax.ragged_dot`), a variable that meets rows in a pointwise operation is gathered by row, and
operations on rows alone apply unchanged. What is not known to act on each row separately raises
`NotLoweredError`. On CPU XLA multiplies every row with every expert's variable, and masks: slow,
and an infinite variable of one expert reaches all rows.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from plait.ops.backend.common import NotLoweredError

__all__ = ["Runs", "lowered"]


class Runs(NamedTuple):
    """Which rows belong to which expert.

    Rows behind the last that counts are given to the expert that has the last one: what they give
    means nothing.

    Attributes:
        num_rows: `r`, an integer.
        loads: int32 `(e,)`, the rows of each expert; they add up to `r`.
        expert: int32 `(r,)`, the expert of each row.
    """

    num_rows: int
    loads: jax.Array
    expert: jax.Array

    @classmethod
    def of(cls, offsets: jax.Array, num_rows: int) -> "Runs":
        """Returns the runs `offsets[l]:offsets[l + 1]`, from int32 `(e + 1,)`."""
        ends = jnp.where(offsets[1:] >= offsets[-1], num_rows, offsets[1:])
        rows = jnp.arange(num_rows, dtype="int32")
        expert = jnp.searchsorted(ends, rows, side="right").astype("int32")
        return cls(num_rows, jnp.diff(ends, prepend=0), jnp.minimum(expert, len(ends) - 1))


class _Rows(NamedTuple):
    """A tensor of one entry for each row, `(r, …)`."""

    value: Any


class _Variable(NamedTuple):
    """A tensor that differs between experts, `(e, …)`; a function sees `(…)`."""

    value: Any


class _Constant(NamedTuple):
    """A tensor that is the same for all rows and experts."""

    value: Any


_Value = _Rows | _Variable | _Constant


def lowered(
    function: Callable[[list[jax.Array], list[jax.Array]], list[jax.Array]],
    variables: list[jax.Array],
    rows: list[jax.Array],
    runs: Runs,
) -> list[jax.Array]:
    """Returns the results of `function` for sorted rows, each with the variables of its expert.

    Args:
        function: Maps `(variables_of_one_expert, rows)` to a list of tensors `(r, …)`, row by row.
        variables: Tensors `(e, …)`.
        rows: Tensors `(r, …)`.
        runs: Which rows are whose.

    Returns:
        List of tensors `(r, …)`.

    Raises:
        NotLoweredError: The function does more than is lowered.
    """
    one = [jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for v in variables]
    closed = jax.make_jaxpr(function)(one, rows)
    sizes = [size for v in variables for size in v.shape[1:]]
    sizes += [size for x in rows for size in x.shape[1:]]
    if runs.num_rows in sizes:
        raise NotLoweredError("an axis that is as long as there are rows")
    given: list[_Value] = [*map(_Variable, variables), *map(_Rows, rows)]
    results = _run(closed.jaxpr, closed.consts, given, runs)
    if not all(isinstance(y, _Rows) and y.value.shape[:1] == (runs.num_rows,) for y in results):
        raise NotLoweredError("an output that is not made of the rows")
    return [y.value for y in results]


def _run(jaxpr: Any, constants: Any, given: list[_Value], runs: Runs) -> list[_Value]:
    """Applies the operations of a jaxpr."""
    if any(runs.num_rows in jnp.shape(constant) for constant in constants):
        raise NotLoweredError("a constant as long as there are rows")
    known = dict(zip(jaxpr.constvars, map(_Constant, constants), strict=True))
    known |= dict(zip(jaxpr.invars, given, strict=True))

    def read(atom: Any) -> _Value:
        return _Constant(atom.val) if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        known |= dict(zip(equation.outvars, _apply(equation, operands, runs), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, operands: list[_Value], runs: Runs) -> list[_Value]:
    """Applies one operation."""
    name, values = equation.primitive.name, [operand.value for operand in operands]
    kinds = tuple(map(type, operands))
    shapes = [atom.aval.shape for atom in equation.invars]
    if equation.effects or not equation.outvars:
        raise NotLoweredError(name)
    shape = equation.outvars[0].aval.shape
    if name in _CALLS:
        inner = equation.params[_CALLS[name]]
        results = _run(inner.jaxpr, inner.consts, operands, runs)
        if name not in _WITH_DERIVATIVES:
            return results
        if _Variable in kinds:
            raise NotLoweredError(f"{name} of variables")
        if _Rows not in kinds:
            return list(map(_Constant, _bind(equation, values)))
        # Every operation inside acts row by row; the call itself knows its derivative.
        return list(map(_Rows, _bind(equation, values)))
    if set(kinds) <= {_Constant}:
        # A constant is the same along an axis as long as there are rows, which may be theirs: what
        # numbers them, draws for them or reorders them differs by row.
        long = any(runs.num_rows in atom.aval.shape for atom in equation.outvars)
        if long and name != "broadcast_in_dim" and name not in _POINTWISE:
            raise NotLoweredError(f"{name} along the rows")
        return list(map(_Constant, _bind(equation, values)))
    if _Rows not in kinds:
        if name == "broadcast_in_dim" and shape[:1] == (runs.num_rows,):
            return [_spread(values[0], equation.params, shape, runs)]
        if runs.num_rows in shape:  # random numbers, say
            raise NotLoweredError(name)
        axes = [0 if kind is _Variable else None for kind in kinds]
        mapped = jax.vmap(lambda *one: _bind(equation, one), in_axes=axes)
        return list(map(_Variable, mapped(*values)))
    if name == "dot_general" and kinds == (_Rows, _Variable):
        x, stack = values
        return [_product(equation.params, x, stack, shape, runs)]
    if name in _POINTWISE:
        by_row = [_by_row(*pair, shape, runs) for pair in zip(operands, shapes, strict=True)]
        return list(map(_Rows, _bind(equation, by_row)))
    if _Variable in kinds or not _KEEPS_ROWS.get(name, _never)(kinds, shape, equation.params):
        raise NotLoweredError(name)
    if shape[:1] != (runs.num_rows,):
        raise NotLoweredError(name)
    return list(map(_Rows, _bind(equation, values)))


def _bind(equation: Any, values: Any) -> list[jax.Array]:
    primitive = equation.primitive
    result = primitive.bind(*values, **primitive.get_bind_params(equation.params))
    return list(result) if primitive.multiple_results else [result]


def _by_row(operand: _Value, own: tuple[int, ...], shape: tuple[int, ...], runs: Runs) -> Any:
    """Returns an operand of a pointwise operation, a variable as that of each row's expert.

    Args:
        operand: The operand.
        own: Its shape in the function.
        shape: The shape of the result.
        runs: Which rows are whose.
    """
    if not isinstance(operand, _Variable):
        return operand.value
    if own and own[0] != 1:
        raise NotLoweredError("a variable of as many axes as the rows")
    by_row = _gathered(operand.value, runs)
    if own:
        return by_row.reshape(runs.num_rows, *own[1:])
    # Of the full shape: a choice or a clamp takes a scalar or that, and no broadcasting.
    return jax.lax.broadcast_in_dim(by_row, shape, (0,))


def _gathered(stack: Any, runs: Runs) -> Any:
    """Returns `stack[runs.expert]`, whose gradient is summed in float32 or better."""
    if jnp.issubdtype(stack.dtype, jnp.floating) and jnp.finfo(stack.dtype).bits < 32:
        return stack.astype("float32")[runs.expert].astype(stack.dtype)
    return stack[runs.expert]


def _spread(stack: Any, params: Any, shape: tuple[int, ...], runs: Runs) -> _Rows:
    """Broadcasts a variable along the rows."""
    axes = params["broadcast_dimensions"]
    if 0 in axes:  # of length 1: no axis of a variable is as long as there are rows
        stack, axes = stack[:, 0], axes[1:]
    return _Rows(jax.lax.broadcast_in_dim(_gathered(stack, runs), shape, (0, *axes)))


def _product(params: Any, x: Any, stack: Any, shape: tuple[int, ...], runs: Runs) -> _Rows:
    """A product of rows with a variable over any axes but the first."""
    (left, right), (batch, _) = params["dimension_numbers"]
    if batch or 0 in left:
        raise NotLoweredError("dot_general")
    steps = [axis for axis in range(1, x.ndim) if axis not in left]
    units = [axis for axis in range(stack.ndim - 1) if axis not in right]
    times = math.prod(x.shape[axis] for axis in steps)
    x = jnp.transpose(x, (0, *steps, *left)).reshape(runs.num_rows * times, -1)
    stack = jnp.transpose(stack, (0, *(axis + 1 for axis in (*right, *units))))
    stack = stack.reshape(len(stack), x.shape[1], -1)
    y = jax.lax.ragged_dot(
        x,
        stack,
        runs.loads * times,
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    return _Rows(y.reshape(shape))


def _never(*_: Any) -> bool:
    return False


def _keeps_first(kinds: Any, shape: Any, params: Any) -> bool:
    """Whatever gives as many rows as it takes, and moves none."""
    return True


def _product_of_rows(kinds: Any, shape: Any, params: Any) -> bool:
    (left, _), (batch, other) = params["dimension_numbers"]
    if kinds == (_Rows, _Constant):
        return not batch and 0 not in left
    return kinds == (_Rows, _Rows) and batch[:1] == other[:1] == (0,)


# The parameter in which an operation that calls a function keeps it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
}
_WITH_DERIVATIVES = {"custom_jvp_call"}
_KEEPS_ROWS: dict[str, Callable[[Any, Any, Any], bool]] = {
    # Row after row in memory: the first axis is as long as before, so no row moves.
    **dict.fromkeys(["reshape", "slice", "squeeze", "expand_dims"], _keeps_first),
    "transpose": lambda kinds, shape, params: params["permutation"][0] == 0,
    "broadcast_in_dim": lambda kinds, shape, params: params["broadcast_dimensions"][:1] == (0,),
    "concatenate": lambda kinds, shape, params: params["dimension"] != 0,
    "split": lambda kinds, shape, params: params["axis"] != 0,
    **dict.fromkeys(
        ["reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin"],
        lambda kinds, shape, params: 0 not in params["axes"],
    ),
    **dict.fromkeys(
        ["cumsum", "cumlogsumexp", "cummax", "cummin", "cumprod"],
        lambda kinds, shape, params: params["axis"] != 0 and not params.get("reverse", False),
    ),
    "dot_general": _product_of_rows,
}
_NAMES = """
abs add add_any and cbrt ceil clamp convert_element_type copy cos div eq erf erf_inv erfc exp exp2
expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg not or pow round
rsqrt select_n sign sin sqrt square stop_gradient sub tan tanh xor
"""
_POINTWISE = frozenset(_NAMES.split())
