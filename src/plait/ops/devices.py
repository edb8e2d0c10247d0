"""Dispatch spread over the devices of a mesh: each runs its own rows, or its own experts."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
from keras import ops

from plait.ops import backend
from plait.typing import Nested, Tensor

__all__ = ["Merge", "local_numbers", "runs_within_expert", "spread", "within_expert"]


class Merge(NamedTuple):
    """A sum over the experts of a row, of which each device takes its experts' part.

    Attributes:
        function: Maps `(weights, indices, outputs)` to what is made of outputs `(n, k, …)`: the
            results for two parts of the slots, the others empty, add up to that for all.
        weights: Tensor `(n, e)`.
    """

    function: Callable[[Tensor, Tensor, Nested], Nested]
    weights: Tensor


_within = ContextVar("inside a call of an expert", default=False)


def within_expert(function: Callable[..., Nested]) -> Callable[..., Nested]:
    """Returns a function in whose calls `runs_within_expert` is true.

    Backends call it again for the gradient, after the call that it was part of has returned.
    """

    def run(*args: Nested) -> Nested:
        token = _within.set(True)
        try:
            return function(*args)
        finally:
            _within.reset(token)

    return run


def runs_within_expert() -> bool:
    """Whether a dispatch runs within an expert of another, on the device where that one runs."""
    return _within.get()


def spread(
    run: Callable[..., list[Tensor]],
    groups: Sequence[backend.Group],
    leaves: Sequence[Tensor],
    indices: Tensor,
    devices: backend.Devices,
    merge: Merge | None = None,
) -> list[Tensor]:
    """Runs a dispatch on every device of a mesh: rows travel to experts, weights stay.

    Each device sorts and runs the rows it has that chose an expert it has. What it does not run is
    zeros, and the sum over the devices of the experts' axis is what one device would give.

    Args:
        run: Maps `(groups, leaves, indices, capacity, shards)` to outputs `(n, k, …)`.
        groups: As for `plait.ops.dispatch.apply_groups`.
        leaves: List of tensors `(n, …)`; the devices along the rows' axis divide `n`.
        indices: int32 `(n, k)`.
        devices: The mesh. The devices along the experts' axis divide the experts of each group.
        merge: What each device makes of its outputs, a list, before they travel; or `None`.

    Returns:
        List of tensors `(n, k, …)`, or what `merge` returns.
    """
    shards = devices.expert_shards
    counts = [group.num_experts // shards for group in groups]

    def on_one(variables: Sequence[list[Tensor]], rows: Sequence[Tensor], shard: Tensor) -> Nested:
        *leaves, indices, weights = rows
        numbers = indices
        if shards > 1:
            table = ops.convert_to_tensor(local_numbers(counts, shards))
            numbers = ops.take(ops.take(table, shard, axis=0), indices)
        own = [
            group._replace(variables=list(values), num_experts=count)
            for group, values, count in zip(groups, variables, counts, strict=True)
        ]
        # What a capacity drops has been dropped, counted over all rows. A device's share of the
        # rest may be of any size.
        outputs = run(own, leaves, numbers, None, shards)
        if merge is None:
            return outputs
        own_indices = ops.where(numbers < sum(counts), indices, sum(counts) * shards)
        return merge.function(weights, own_indices, outputs)

    variables = [group.variables for group in groups]
    rows = [*leaves, indices, None if merge is None else merge.weights]
    return backend.on_devices(on_one, devices, variables, rows)


def local_numbers(counts: Sequence[int], shards: int) -> np.ndarray:
    """Returns which number each expert has on each device that it may be on.

    Args:
        counts: How many experts of each group one device has.
        shards: Over how many devices the experts are split.

    Returns:
        int32 `(shards, e + 1)`; the last number, that of an empty slot, stands for every expert
        that a device has not, and for an empty slot.

    Example:
    >>> from plait.ops.devices import local_numbers
    >>> local_numbers([2, 1], 2).tolist()
    [[0, 1, 3, 3, 2, 3, 3], [3, 3, 0, 1, 3, 2, 3]]
    """
    empty = sum(counts)
    numbers = np.full((shards, empty * shards + 1), empty, "int32")
    for shard in range(shards):
        first = 0
        for count in counts:
            start = first * shards + shard * count
            numbers[shard, start : start + count] = np.arange(first, first + count)
            first += count
    return numbers
