"""The forward pass in pieces: from weights and experts to the merged output."""

from collections.abc import Sequence
from typing import NamedTuple

from keras import ops, tree

from plait.experts.groups import ExpertBank
from plait.ops.backend import is_float
from plait.ops.combine import combine_masks
from plait.ops.merging import SlotMerge
from plait.ops.routing import Routing, chosen
from plait.typing import Mask, Nested, Tensor


class Fed(NamedTuple):
    """What the experts read.

    Attributes:
        inputs: One structure that all experts share, or one for each.
        masks: As `inputs`, flat lists of masks; or `None` where nothing is masked.
    """

    inputs: list[Nested]
    masks: list[list[Mask]] | None


class Parts(NamedTuple):
    """What a mixture is made of for one batch.

    Attributes:
        weights: Mixing weights of shape `(b, …, e)`.
        outputs: The experts' outputs, a structure with leaves `(e, b, …, u)`.
        masks: Flat list of the outputs' masks, `(b, …)` or `None`.
        losses: Scalars that the experts added and that Keras has not recorded.
    """

    weights: Tensor
    outputs: Nested
    masks: list[Mask]
    losses: list[Tensor]


class Merged(NamedTuple):
    """A mixture's output.

    Attributes:
        outputs: Structure with leaves `(b, …, u)`, masks attached.
        losses: As in `Parts`.
    """

    outputs: Nested
    losses: list[Tensor]


def run_every(
    bank: ExpertBank,
    routing: Routing,
    fed: Fed,
    *,
    by_step: bool,
    sparse: bool,
    training: bool,
) -> Parts:
    """Runs every expert on every row.

    Args:
        bank: The experts.
        routing: The weights `(b, …, e)`, and which experts were chosen.
        fed: What the experts read.
        by_step: Whether experts see the routed axes as one axis of rows.
        sparse: Whether what an expert gives for a row that did not choose it must leave no trace:
            such outputs become zeros, and the gradient to that expert and through it zero.
        training: As in Keras.
    """
    rank = len(routing.weights.shape) - 1
    inputs, masks, used = list(fed.inputs), fed.masks, None
    if by_step and rank > 1:
        inputs, masks = [fold_rows(part, rank) for part in inputs], None
    keep = chosen(chosen_experts(routing), routing.weights.shape[-1]) if sparse else None
    if keep is not None and training:
        folded = fold_rows(keep, rank) if by_step else keep
        used = ops.any(folded, axis=tuple(range(len(folded.shape) - 1)))
        inputs, masks = _guarded(inputs, masks, folded)
    outputs, output_masks, losses = bank.run_all(inputs, masks, training, used)
    if by_step and rank > 1:
        lead = ops.shape(routing.weights)[:-1]
        outputs = tree.map_structure(
            lambda leaf: ops.reshape(leaf, (leaf.shape[0], *lead, *ops.shape(leaf)[2:])), outputs
        )
        output_masks = step_masks(outputs, fed.masks)
    if keep is not None:
        outputs = without_unchosen(outputs, keep)
    return Parts(routing.weights, outputs, output_masks, losses)


def _guarded(
    inputs: list[Nested], masks: list[list[Mask]] | None, keep: Tensor
) -> tuple[list[Nested], list[list[Mask]] | None]:
    """Returns inputs for each expert, without a gradient from rows that did not choose it.

    A gradient of zero times an expert's NaN would be NaN.
    """
    num_experts = keep.shape[-1]
    by_row = (
        ops.any(keep, axis=tuple(range(1, len(keep.shape) - 1))) if len(keep.shape) > 2 else keep
    )

    def guard(leaf: Tensor, expert: int) -> Tensor:
        if not is_float(leaf):
            return leaf
        row = ops.reshape(by_row[:, expert], (-1,) + (1,) * (len(leaf.shape) - 1))
        return ops.where(row, leaf, ops.stop_gradient(leaf))

    every = inputs * num_experts if len(inputs) == 1 else inputs
    guarded = [
        tree.map_structure(lambda leaf, expert=expert: guard(leaf, expert), part)
        for expert, part in enumerate(every)
    ]
    if masks is not None and len(masks) == 1:
        masks = masks * num_experts
    return guarded, masks


def without_unchosen(outputs: Nested, keep: Tensor) -> Nested:
    """Returns outputs `(e, b, …, u)` with zeros where `keep` `(b, …, e)` is false."""
    rank = len(keep.shape)
    keep = ops.transpose(keep, (rank - 1, *range(rank - 1)))

    def clear(leaf: Tensor) -> Tensor:
        shape = (*ops.shape(keep), *(1,) * (len(leaf.shape) - rank))
        return ops.where(ops.reshape(keep, shape), leaf, ops.zeros_like(leaf))

    return tree.map_structure(clear, outputs)


def run_chosen(
    bank: ExpertBank,
    routing: Routing,
    fed: Fed,
    *,
    capacity: int | None,
    training: bool,
    merge: SlotMerge | None = None,
) -> tuple[Tensor, Nested, list[Mask]]:
    """Runs each expert on the rows that chose it.

    Args:
        bank: The experts.
        routing: The weights `(b, …, e)`, and which experts were chosen.
        fed: What the experts read.
        capacity: Most rows that one expert may have, or `None` for any load.
        training: As in Keras.
        merge: What is made of the outputs; `None` leaves them.

    Returns:
        Indices `(n, k)`, outputs with leaves `(n, k, …, u)`, or what `merge` returns, and the
        outputs' masks.
    """
    rank = len(routing.weights.shape) - 1
    weights = fold_rows(routing.weights, rank)
    indices = fold_rows(chosen_experts(routing), rank)
    results = bank.run_dispatched(
        [fold_rows(part, rank) for part in fed.inputs],
        fed.masks if rank == 1 else None,
        indices,
        capacity,
        training,
        merge,
        weights,
    )
    return indices, results.outputs, results.masks


def chosen_experts(routing: Routing) -> Tensor:
    """Returns the indices of a sparse routing; where it has none, all whose weight is not zero."""
    if routing.indices is not None:
        return routing.indices
    num_experts = routing.weights.shape[-1]
    every = ops.broadcast_to(ops.arange(num_experts, dtype="int32"), ops.shape(routing.weights))
    # Not `> 0`: a weight that is NaN must show in the output.
    return ops.where(routing.weights == 0, ops.full_like(every, num_experts), every)


def fold_rows(tensors: Nested, routed_rank: int) -> Nested:
    """Returns tensors whose first `routed_rank` axes are one axis of rows."""
    if routed_rank == 1:
        return tensors
    return tree.map_structure(
        lambda leaf: ops.reshape(leaf, (-1, *ops.shape(leaf)[routed_rank:])), tensors
    )


def unfold_rows(tensors: Nested, like: Tensor, routed_rank: int) -> Nested:
    """Returns tensors whose axis of rows is again the first `routed_rank` axes of `like`."""
    if routed_rank == 1:
        return tensors
    lead = ops.shape(like)[:routed_rank]
    return tree.map_structure(
        lambda leaf: ops.reshape(leaf, (*lead, *ops.shape(leaf)[1:])), tensors
    )


def step_masks(outputs: Nested, masks: Sequence[list[Mask]] | None) -> list[Mask]:
    """Returns the outputs' masks where experts run step by step: those of the input."""
    given = combine_masks([mask for part in masks or [] for mask in part])
    return [given] * len(tree.flatten(outputs))
