"""Merges the outputs of a mixture's experts by one of the rules of combination."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
from keras import ops, tree

from plait.errors import choose_from
from plait.ops.combine import (
    at_least_float32,
    log_mixture,
    merged_dtype,
    weighted_sum,
    weighted_sum_stacked,
)
from plait.ops.pool import log_pool, pool, pool_slots, pool_stacked
from plait.typing import Nested, Tensor


class Combination(NamedTuple):
    """A rule that makes one output of the experts' and their weights.

    Attributes:
        merge: Of weights `(b, …, e)` and `e` outputs `(b, …, u)`.
        merge_logs: As `merge`, of logarithms, and to one.
        stacked: Of weights `(b, …, e)` and outputs `(e, b, …, u)`.
        slots: Of weights `(n, k)` and outputs `(n, k, …, u)`.
        adds: Whether what `slots` makes of some of the experts and of the others adds up to all.
    """

    merge: Callable[[Tensor, Sequence[Tensor]], Tensor]
    merge_logs: Callable[[Tensor, Sequence[Tensor]], Tensor]
    stacked: Callable[[Tensor, Tensor], Tensor]
    slots: Callable[[Tensor, Tensor], Tensor]
    adds: bool


def _sum_slots(weights: Tensor, outputs: Tensor) -> Tensor:
    """Returns `Σ_j weights[i, j] · outputs[i, j]`."""
    shape = (*ops.shape(weights), *(1,) * (len(outputs.shape) - 2))
    weighted = ops.multiply(ops.reshape(weights, shape), at_least_float32(outputs))
    return ops.sum(weighted, axis=1)


_RULES = {
    "arithmetic": Combination(weighted_sum, log_mixture, weighted_sum_stacked, _sum_slots, True),
    "geometric": Combination(pool, log_pool, pool_stacked, pool_slots, False),
}


def check_combination(name: str) -> str:
    """Returns the name of a rule when there is one, and raises `ValueError` otherwise.

    Example:
    >>> from plait.ops.merging import check_combination
    >>> check_combination("geometric")
    'geometric'
    """
    if name not in _RULES:
        raise ValueError(choose_from("combination", name, _RULES))
    return name


def combination(name: str) -> Combination:
    """Returns the rule of a name: `"arithmetic"` or `"geometric"`."""
    return _RULES[check_combination(name)]


def merge_stacked(
    weights: Tensor, outputs: Nested, compute_dtype: str, rule: str = "arithmetic"
) -> Nested:
    """Returns the merged output for each leaf `(e, b, …, u)` of the experts' outputs."""
    stacked = combination(rule).stacked

    def merge(leaf: Tensor) -> Tensor:
        dtype = merged_dtype([keras.backend.standardize_dtype(leaf.dtype)], compute_dtype)
        return ops.cast(stacked(weights, leaf), dtype)

    return tree.map_structure(merge, outputs)


def merge_chosen(
    weights: Tensor,
    indices: Tensor,
    outputs: Nested,
    compute_dtype: str,
    rule: str = "arithmetic",
) -> Nested:
    """Returns the merged output for each leaf of the chosen experts' outputs.

    Args:
        weights: Tensor of shape `(n, e)`.
        indices: int32 `(n, k)`; `e` marks an empty slot.
        outputs: Structure with leaves `(n, k, …, u)`.
        compute_dtype: The mixture's compute dtype.
        rule: Name of the combination.

    Returns:
        The structure with leaves `(n, …, u)`.
    """
    num_experts = weights.shape[-1]
    taken = ops.take_along_axis(weights, ops.minimum(indices, num_experts - 1), axis=-1)
    # A slot of a row with NaN shows it, also where no expert runs.
    shown = ops.logical_or(indices < num_experts, ops.isnan(taken))
    taken = ops.where(shown, taken, ops.zeros_like(taken))
    slots = combination(rule).slots

    def merge(leaf: Tensor) -> Tensor:
        dtype = merged_dtype([keras.backend.standardize_dtype(leaf.dtype)], compute_dtype)
        return ops.cast(slots(taken, leaf), dtype)

    return tree.map_structure(merge, outputs)


class SlotMerge(NamedTuple):
    """What a mixture makes of the outputs of chosen experts; equal ones do the same.

    Attributes:
        mean: Maps the experts' outputs to what is merged, or `None`.
        compute_dtype: The mixture's compute dtype.
        rule: Name of the combination.
    """

    mean: Callable[[Nested], Nested] | None
    compute_dtype: str
    rule: str

    @property
    def adds(self) -> bool:
        """Whether merges of some of the experts and of the others add up to that of all."""
        return combination(self.rule).adds

    def __call__(self, weights: Tensor, indices: Tensor, outputs: Nested) -> Nested:
        """Returns leaves `(n, …, u)`; see `merge_chosen`."""
        if self.mean is not None:
            outputs = self.mean(outputs)
        return merge_chosen(weights, indices, outputs, self.compute_dtype, self.rule)
