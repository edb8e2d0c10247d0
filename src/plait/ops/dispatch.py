"""Dispatch: each expert runs only on the rows that chose it.

The choices are int32 indices `(n, k)` in `[0, e]`; index `e`, one past the last expert, marks an
empty slot, on which no expert runs.
"""

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from keras import ops, tree

from plait.ops import backend
from plait.ops.devices import Merge, spread, within_expert
from plait.ops.tracing import runs_every_expert
from plait.typing import Count, Nested, Tensor

__all__ = ["apply_experts", "apply_groups", "capacity", "keep_within_capacity"]


def apply_experts(
    function: Callable[[list[Tensor], Nested, Count], Nested],
    variables: Sequence[Tensor],
    inputs: Nested,
    indices: Tensor,
    *,
    num_experts: int,
    capacity: int | None = None,
    vectorized: bool = True,
) -> Nested:
    """Runs each expert on the rows that chose it, and on no others.

    `out[i, j] = f_l(inputs[i])` with `l = indices[i, j]`, and zeros where `l = e`. See
    `apply_groups` for experts of several architectures.

    Args:
        function: Maps `(variables_of_one_expert, rows, segment)` to a tensor `(r, …)` or a
            structure of them, row by row. `rows` has the structure of `inputs`, with `r` rows in
            place of `n`; `segment` is an integer that differs between the calls of one
            `apply_experts`, from which seeds can be derived.
        variables: List of tensors `(e, …)`, the experts' variables stacked. Those of an integer
            dtype have no gradient.
        inputs: Structure of tensors `(n, …)`. Those of an integer dtype have no gradient.
        indices: int32 `(n, k)`, the experts that each row chose, in `[0, e]`. The value `e` marks
            an empty slot, which is not run: its output is zeros, its gradient zero.
        num_experts: `e`, an integer.
        capacity: `None` for any load: a loop over the experts in use. An integer `c` where the
            caller made sure that no expert was chosen more than `c` times (see
            `keep_within_capacity`): one vectorised call on buffers `(e, c, …)`, where the backend
            is faster at that. What a choice beyond it gives is not defined.
        vectorized: Whether one call of `function` may run several experts.

    Returns:
        What `function` returns, each leaf `(n, k, …)`.

    Example:
    ```python
    >>> import keras
    >>> from plait.ops.dispatch import apply_experts
    >>> scales = [keras.ops.convert_to_tensor([1.0, 10.0, 100.0])]
    >>> x = keras.ops.convert_to_tensor([[1.0], [2.0]])
    >>> chosen = keras.ops.convert_to_tensor([[0, 2], [1, 3]], dtype="int32")
    >>> y = apply_experts(lambda w, rows, segment: w[0] * rows, scales, x, chosen, num_experts=3)
    >>> [[float(v) for v in row] for row in y[:, :, 0]]
    [[1.0, 100.0], [20.0, 0.0]]

    ```
    """
    group = backend.Group(function, list(variables), num_experts, vectorized, called=function)
    return apply_groups([group], inputs, indices, capacity)


def apply_groups(
    groups: Sequence[backend.Group],
    inputs: Nested,
    indices: Tensor,
    capacity: int | None = None,
    devices: backend.Devices | None = None,
    merge: Merge | None = None,
) -> Nested:
    """As `apply_experts`, where experts are of several architectures.

    Rows are sorted by expert, so that each expert's rows lie side by side; gathers bring them
    there and back, and the gradient runs the same way. What a function differentiates must come
    to it as an argument.

    Args:
        groups: List of `plait.ops.backend.Group`. Experts are numbered through the groups in order.
            Their functions return one structure, of one shape.
        inputs: As for `apply_experts`.
        indices: As for `apply_experts`.
        capacity: As for `apply_experts`.
        devices: The devices over which rows and experts are spread, or `None`.
        merge: What each device makes of its rows' outputs, or `None`. Only with `devices`.

    Returns:
        As for `apply_experts`; with `merge`, what it returns.
    """
    flats = [backend.Flat(group.function) for group in groups]

    def on_leaves(flat):
        return within_expert(
            lambda variables, rows, segment: flat(
                list(variables), tree.pack_sequence_as(inputs, rows), segment
            )
        )

    groups = [
        group._replace(
            function=on_leaves(flat),
            variables=list(map(ops.convert_to_tensor, group.variables)),
        )
        for flat, group in zip(flats, groups, strict=True)
    ]
    leaves = list(map(ops.convert_to_tensor, tree.flatten(inputs)))
    indices = ops.cast(indices, "int32")

    def unflatten(outputs: list[Tensor]) -> Nested:
        return next(flat for flat in flats if flat.structure is not None).unflatten(outputs)

    if devices is None:
        return unflatten(_run(groups, leaves, indices, capacity))
    if merge is None:
        return unflatten(spread(_run, groups, leaves, indices, devices))
    merged = backend.Flat(
        lambda weights, indices, outputs: merge.function(weights, indices, unflatten(outputs))
    )
    return merged.unflatten(
        spread(_run, groups, leaves, indices, devices, merge._replace(function=merged))
    )


def _run(
    groups: Sequence[backend.Group],
    leaves: list[Tensor],
    indices: Tensor,
    capacity: Count | None,
    shards: int = 1,
) -> list[Tensor]:
    """Returns the outputs `(n, k, …)`; `shards` is that of `plait.ops.backend.Choices`."""
    num_experts = sum(group.num_experts for group in groups)
    choices = _sort(indices, num_experts)._replace(shards=shards)
    vectorized = all(group.vectorized for group in groups)
    loops = capacity is None or not vectorized or backend.loops_are_faster()
    if loops and backend.loads_are_known():
        outputs = backend.map_choices(groups, leaves, choices)
    else:
        capacity = math.prod(ops.shape(indices)) if capacity is None else capacity
        outputs = _run_in_buffers(groups, leaves, indices, choices, capacity)
    num_rows, num_selected = ops.shape(indices)
    return [ops.reshape(y, (num_rows, num_selected, *ops.shape(y)[1:])) for y in outputs]


def _run_in_buffers(
    groups: Sequence[backend.Group],
    leaves: list[Tensor],
    indices: Tensor,
    choices: backend.Choices,
    capacity: Count,
) -> list[Tensor]:
    """Returns what one vectorised call a group makes of buffers of `c` rows: `(n * k, …)`."""
    order, place, offsets, num_selected, _ = choices
    num_experts, num_choices = offsets.shape[0] - 1, ops.shape(order)[0]
    num_slots = num_experts * capacity
    expert = ops.reshape(indices, (-1,))
    position = place - ops.take(offsets, expert)
    held = (expert < num_experts) & (position < capacity)
    slot = ops.where(held, expert * capacity + position, num_slots)
    # Padding repeats the last real row, so that no invalid value enters.
    start, load = offsets[:-1, None], (offsets[1:] - offsets[:-1])[:, None]
    step = ops.arange(capacity, dtype="int32")[None, :]
    source = ops.maximum(start + ops.minimum(step, load - 1), 0)
    choice = ops.reshape(ops.take(order, source), (-1,))
    filled = ops.reshape(ops.where(step < load, 1, 0), (-1,))
    owner = ops.where(filled > 0, choice, num_choices)

    def buffer(leaf: Tensor) -> Tensor:
        rows = backend.take_rows(
            leaf, choice // num_selected, ops.reshape(slot, (-1, num_selected))
        )
        return ops.reshape(rows, (num_experts, capacity, *ops.shape(leaf)[1:]))

    buffers = [buffer(leaf) for leaf in leaves]
    used = load[:, 0] > 0
    results = []
    for group, (first, last) in zip(groups, backend.numbered(groups), strict=True):
        # An expert without rows runs on padding; its gradient is set to zero.
        variables = [
            backend.keep_gradient(v, used[first:last]) if backend.is_float(v) else v
            for v in group.variables
        ]
        numbers = ops.arange(first, last, dtype="int32")
        mapped = variables, [rows[first:last] for rows in buffers], numbers
        if backend.maps_seeds:
            results.append(backend.vectorized_map(lambda one, _, g=group: g.function(*one), mapped))
        else:  # the number of a segment is one for the whole call, which draws for each expert
            results.append(
                backend.vectorized_map(
                    lambda one, _, g=group, s=first: g.function(one[0], one[1], s), mapped
                )
            )
    stacked = [
        column[0] if len(column) == 1 else ops.concatenate(column)
        for column in zip(*results, strict=True)
    ]
    outputs = [ops.reshape(y, (num_slots, *ops.shape(y)[2:])) for y in stacked]
    return [backend.take_rows(y, slot, owner[:, None]) for y in outputs]


def _sort(indices: Tensor, num_experts: int) -> backend.Choices:
    """Returns the choices `(n, k)` sorted by expert, ties by row."""
    expert = ops.reshape(indices, (-1,))
    num_choices = ops.shape(expert)[0]
    numbers = ops.arange(num_choices, dtype="int32")
    if isinstance(num_choices, int) and (num_experts + 1) * num_choices < 2**31:
        # Sorting one number that holds both is faster than sorting pairs.
        order = ops.sort(expert * num_choices + numbers) % max(num_choices, 1)
    else:
        order = ops.cast(ops.argsort(expert), "int32")
    place = ops.segment_sum(numbers, order, num_segments=num_choices)
    return backend.Choices(order, place, _offsets(expert, num_experts), indices.shape[1])


def _offsets(expert: Tensor, num_experts: int) -> Tensor:
    """Returns where each expert's run begins in the sorted choices `(n * k,)`: int32 `(e + 1,)`."""
    loads = ops.segment_sum(ops.ones_like(expert), expert, num_segments=num_experts + 1)
    return ops.cast(ops.cumsum(loads) - loads, "int32")


def keep_within_capacity(
    indices: Tensor, weights: Tensor, num_experts: int, capacity: Count
) -> Tensor:
    """Returns which choices an expert keeps: its `capacity` choices of the largest weight.

    Args:
        indices: int32 `(n, k)`, the chosen experts, in `[0, e]`.
        weights: Tensor `(n, k)`, what each choice weighs. Among equals the earlier row wins.
        num_experts: `e`, an integer.
        capacity: `c`, an integer or integer tensor: how many rows one expert takes.

    Returns:
        bool `(n, k)`: whether the choice is kept; false in empty slots.

    Example:
    ```python
    >>> import keras
    >>> from plait.ops.dispatch import keep_within_capacity
    >>> kept = keep_within_capacity([[0], [0], [1]], [[0.2], [0.9], [0.5]], 2, 1)
    >>> [bool(row[0]) for row in kept]
    [False, True, True]

    ```
    """
    indices = ops.cast(indices, "int32")
    expert = ops.reshape(indices, (-1,))
    filled = expert < num_experts
    if runs_every_expert():
        kept = filled & (_number_ahead(expert, weights) < capacity)
        return ops.reshape(kept, ops.shape(indices))
    offsets = _offsets(expert, num_experts)

    def heaviest() -> Tensor:
        heavy = ops.argsort(-ops.reshape(ops.convert_to_tensor(weights), (-1,)))
        grouped = ops.argsort(ops.take(expert, heavy))
        place = ops.cast(ops.argsort(ops.take(heavy, grouped)), "int32")
        return filled & (place - ops.take(offsets, expert) < capacity)

    if backend.loads_are_known():
        # The three sorts take longer than routing, and most often nothing overflows.
        overflows = ops.any(offsets[1:] - offsets[:-1] > capacity)
        kept = ops.cond(overflows, heaviest, lambda: filled)
    else:
        kept = heaviest()
    return ops.reshape(kept, ops.shape(indices))


def _number_ahead(expert: Tensor, weights: Tensor) -> Tensor:
    """Returns how many choices of the same expert come before each: heavier, or as heavy, earlier.

    By comparing all with all, as few runtimes take the sorts.
    """
    weights = ops.reshape(ops.convert_to_tensor(weights), (-1,))
    place = ops.cumsum(ops.ones_like(expert))
    same = ops.equal(expert[None], expert[:, None])
    as_heavy = ops.logical_and(
        ops.equal(weights[None], weights[:, None]), place[None] < place[:, None]
    )
    ahead = ops.logical_and(same, ops.logical_or(weights[None] > weights[:, None], as_heavy))
    return ops.sum(ops.cast(ahead, "int32"), axis=-1)


def capacity(num_rows: Count, num_selected: int, num_experts: int, factor: float) -> Count:
    """Returns how many rows one expert takes: `c = ⌈factor · n · k / e⌉`, at most `n`.

    The factor is read as the nearest fraction with a denominator of at most 10 000, and is at least
    1 / 10 000. The arithmetic is that of integers, so the number is the same whether `n` is known
    when a graph is built or only at run time.

    Args:
        num_rows: `n`, an integer, or an integer tensor where it is only known at run time.
        num_selected: `k`, an integer.
        num_experts: `e`, an integer.
        factor: How much room there is over a balanced load.

    Returns:
        An integer, or an integer tensor where `num_rows` is one.

    Example:
    ```python
    >>> from plait.ops.dispatch import capacity
    >>> capacity(4096, 2, 64, 1.25)
    160

    ```
    """
    digits, base, numerator, denominator = _share(num_selected, num_experts, factor)
    # n · p / q by long multiplication, one digit of p at a time, with n = whole · q + rest.
    whole, rest = num_rows // denominator, num_rows % denominator
    quotient, remainder = 0, 0
    for digit in digits:
        remainder = remainder * base + rest * digit
        quotient = quotient * base + remainder // denominator
        remainder = remainder % denominator
    # Not `-(-remainder // denominator)`: runtimes of exported files round a negative quotient up.
    return whole * numerator + quotient + (remainder + denominator - 1) // denominator


@functools.cache
def _share(num_selected: int, num_experts: int, factor: float) -> tuple[list[int], int, int, int]:
    """Returns `p / q = min(factor · k / e, 1)` for `capacity`, and the digits of `p`.

    Returns:
        The digits of `p`, the first one first; their base, such that `2 · q · base` stays below
        2³¹ and no product in `capacity` overflows int32; `p`; `q`.
    """
    nearest = max(Fraction(factor).limit_denominator(10_000), Fraction(1, 10_000))
    share = min(nearest * num_selected / num_experts, Fraction(1))
    bits = max(1, 30 - share.denominator.bit_length())
    length = -(-share.numerator.bit_length() // bits)
    digits = [(share.numerator >> bits * place) % 2**bits for place in reversed(range(length))]
    return digits, 2**bits, share.numerator, share.denominator
