"""The forward pass in pieces: from weights and outputs to the merged output."""

from typing import Any, NamedTuple

from keras import backend, ops, tree

from plait.experts import attach_masks
from plait.ops.combine import at_least_float32, merged_dtype, weighted_sum_stacked
from plait.ops.routing import Routing


class Parts(NamedTuple):
    """What a mixture is made of for one batch.

    Attributes:
        weights: Mixing weights of shape `(b, …, e)`.
        outputs: The experts' outputs, a structure with leaves `(e, b, …, u)`.
        masks: Flat list of the outputs' masks, `(b, …)` or `None`.
    """

    weights: Any
    outputs: Any
    masks: Any


def merge_stacked(weights: Any, outputs: Any, compute_dtype: str) -> Any:
    """Returns `Σ_l w_l · f_l` for each leaf `(e, b, …, u)` of the experts' outputs."""

    def merge(leaf: Any) -> Any:
        dtype = merged_dtype([backend.standardize_dtype(leaf.dtype)], compute_dtype)
        return ops.cast(weighted_sum_stacked(weights, leaf), dtype)

    return tree.map_structure(merge, outputs)


def merge_chosen(weights: Any, indices: Any, outputs: Any, compute_dtype: str) -> Any:
    """Returns `Σ_j w[i, indices[i, j]] · y[i, j]` for each leaf of the chosen experts' outputs.

    Args:
        weights: Tensor of shape `(n, e)`.
        indices: int32 `(n, k)`; `e` stands for nobody.
        outputs: Structure with leaves `(n, k, …, u)`.
        compute_dtype: The mixture's compute dtype.

    Returns:
        The structure with leaves `(n, …, u)`.
    """
    num_experts = weights.shape[-1]
    chosen = ops.take_along_axis(weights, ops.minimum(indices, num_experts - 1), axis=-1)
    chosen = ops.where(indices < num_experts, chosen, ops.zeros_like(chosen))

    def merge(leaf: Any) -> Any:
        dtype = merged_dtype([backend.standardize_dtype(leaf.dtype)], compute_dtype)
        shape = (*ops.shape(chosen), *(1,) * (len(leaf.shape) - 2))
        weighted = ops.multiply(ops.reshape(chosen, shape), at_least_float32(leaf))
        total = ops.sum(weighted, axis=1)
        return ops.cast(total, dtype)

    return tree.map_structure(merge, outputs)


def chosen_experts(routing: Routing) -> Any:
    """Returns the indices of a sparse routing; where the router gives none, all of weight > 0."""
    if routing.indices is not None:
        return routing.indices
    num_experts = routing.weights.shape[-1]
    everyone = ops.broadcast_to(ops.arange(num_experts, dtype="int32"), ops.shape(routing.weights))
    return ops.where(routing.weights > 0, everyone, ops.full_like(everyone, num_experts))


def fold_rows(tensors: Any, routed_rank: int) -> Any:
    """Returns tensors whose first `routed_rank` axes are one axis of rows."""
    if routed_rank == 1:
        return tensors
    return tree.map_structure(
        lambda leaf: (
            leaf if leaf is None else ops.reshape(leaf, (-1, *ops.shape(leaf)[routed_rank:]))
        ),
        tensors,
    )


def unfold_rows(tensors: Any, like: Any, routed_rank: int) -> Any:
    """Returns tensors whose axis of rows is again the first `routed_rank` axes of `like`."""
    if routed_rank == 1:
        return tensors
    lead = ops.shape(like)[:routed_rank]
    return tree.map_structure(
        lambda leaf: leaf if leaf is None else ops.reshape(leaf, (*lead, *ops.shape(leaf)[1:])),
        tensors,
    )


def with_masks(outputs: Any, masks: Any) -> Any:
    """Returns the outputs with their masks attached; `masks` is flat."""
    if all(mask is None for mask in masks):
        return outputs
    return attach_masks(outputs, tree.pack_sequence_as(outputs, list(masks)))
