"""Merges the outputs of a mixture's experts by one of the rules of combination."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
from keras import ops, tree

from plait.errors import choose_from, message
from plait.ops.combine import (
    at_least_float32,
    log_mixture,
    merged_dtype,
    weighted_sum,
    weighted_sum_stacked,
)
from plait.ops.pool import (
    gaussian_pool,
    gaussian_pool_slots,
    gaussian_pool_stacked,
    log_pool,
    pool,
    pool_slots,
    pool_stacked,
)
from plait.ops.shapes import Shape
from plait.typing import Nested, Tensor


class Combination(NamedTuple):
    """A rule that makes one output of the experts' and their weights.

    Attributes:
        check: Of the shapes of weights and of an output: raises `ValueError` where they cannot be
            what the rule takes.
        merge: Of weights `(b, …, e)` and `e` outputs `(b, …, u)`.
        merge_logs: As `merge`, of logarithms, and to one; `None` where there are none.
        stacked: Of weights `(b, …, e)` and outputs `(e, b, …, u)`.
        slots: Of weights `(n, k)` and outputs `(n, k, …, u)`.
        adds: Whether what `slots` makes of some of the experts and of the others adds up to all.
    """

    check: Callable[[Shape, Shape], None]
    merge: Callable[[Tensor, Sequence[Tensor]], Tensor]
    merge_logs: Callable[[Tensor, Sequence[Tensor]], Tensor] | None
    stacked: Callable[[Tensor, Tensor], Tensor]
    slots: Callable[[Tensor, Tensor], Tensor]
    adds: bool


def _sum_slots(weights: Tensor, outputs: Tensor) -> Tensor:
    """Returns `Σ_j weights[i, j] · outputs[i, j]`."""
    shape = (*ops.shape(weights), *(1,) * (len(outputs.shape) - 2))
    weighted = ops.multiply(ops.reshape(weights, shape), at_least_float32(outputs))
    return ops.sum(weighted, axis=1)


def _any_shapes(weights: Shape, output: Shape) -> None:
    """A sum takes what the rule of ranks allows."""
    del weights, output


def _check_classes(weights: Shape, output: Shape) -> None:
    del weights
    if len(output) < 2:
        raise ValueError(
            message(
                "A geometric combination takes distributions over the experts' last axis",
                f"outputs of shape {output}",
                "Let the experts return shape (b, classes)",
            )
        )


def _check_gaussians(weights: Shape, output: Shape) -> None:
    if len(output) < 2 or (output[-1] or 0) % 2:
        raise ValueError(
            message(
                "A Gaussian combination takes means, then as many scales, on the last axis",
                f"outputs of shape {output}",
                "End the experts in an even number of units",
            )
        )
    if len(weights) > len(output):
        raise ValueError(
            message(
                "The weights of a Gaussian combination weigh whole outputs, of means and scales",
                f"weights of shape {weights} over outputs of shape {output}",
                f"Use weights of shape {(*output[:-1], weights[-1])}",
            )
        )


_RULES = {
    "arithmetic": Combination(
        _any_shapes, weighted_sum, log_mixture, weighted_sum_stacked, _sum_slots, True
    ),
    "gaussian": Combination(
        _check_gaussians, gaussian_pool, None, gaussian_pool_stacked, gaussian_pool_slots, False
    ),
    "geometric": Combination(_check_classes, pool, log_pool, pool_stacked, pool_slots, False),
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
    """Returns the rule of a name: `"arithmetic"`, `"gaussian"` or `"geometric"`."""
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
