"""Calls of experts on the rows that chose them."""

from collections.abc import Sequence

import keras
from keras import ops, tree

from plait.experts.functional_call import call_with
from plait.experts.runner import Rows
from plait.experts.seeds import Seeds
from plait.ops.backend import Group
from plait.typing import Mask, Nested, Tensor

Fed = tuple[list[Nested], list[list[Tensor]]]


def fed_to_groups(rows: Rows) -> Fed:
    """Returns the rows as the structure of tensors that is dispatched: parts, and their masks."""
    return rows.parts, [
        [ops.cast(mask, "int32") for mask in masks or [] if mask is not None]
        for masks in rows.masks
    ]


def group_of(
    layer: keras.layers.Layer,
    variables: Sequence[keras.Variable],
    seeds: Seeds,
    values: Sequence[Tensor],
    *,
    num_experts: int,
    masks: list[Mask] | None,
    part: int,
    training: bool,
    vectorized: bool,
) -> Group:
    """Returns experts of one architecture that read one part of the rows.

    Args:
        layer: The layer that is called.
        variables: Its variables.
        seeds: Which of them are seeds.
        values: A tensor `(e, …)` for each of them.
        num_experts: `e`.
        masks: The part's masks, of which only the presence is read, or `None`.
        part: Position of the part that the experts read.
        training: As in Keras.
        vectorized: Whether one call may run several of the experts.
    """
    mapped, shared = seeds.split(values)
    present = [mask is not None for mask in masks or []]

    def run(mapped: list[Tensor], fed: Fed, segment: Tensor) -> tuple[Nested, list[Tensor]]:
        joined = seeds.join(mapped, shared)
        if seeds.positions:
            joined = seeds.of_segment(joined, segment)
        full = None
        if any(present):
            given = iter(fed[1][part])
            full = [ops.cast(next(given), "bool") if there else None for there in present]
        outcome = call_with(layer, variables, joined, fed[0][part], full, training)
        kept = []
        for mask in outcome.masks:
            if mask is not None:
                kept.append(ops.cast(mask, "int32"))
        return outcome.outputs, kept

    return Group(run, mapped, num_experts, vectorized, called=layer)


def with_all_masks(
    group: Group,
    given_ranks: Sequence[int | None],
    wanted_ranks: Sequence[int | None],
    dtypes: Sequence[str] | None,
) -> Group:
    """Returns a group whose function gives the masks, and the dtypes, that all groups give.

    Args:
        group: Some of a mixture's experts.
        given_ranks: Ranks of the masks of their outputs, `None` for no mask.
        wanted_ranks: Ranks of the masks that any of the groups gives.
        dtypes: The outputs' dtypes, or `None` to leave them.
    """
    if list(given_ranks) == list(wanted_ranks) and dtypes is None:
        return group
    function = group.function

    def run(*args: Nested) -> tuple[Nested, list[Tensor]]:
        outputs, kept = function(*args)
        leaves, given = tree.flatten(outputs), iter(kept)
        masks = [
            _of_rank(None if present is None else next(given), leaf, rank)
            for leaf, present, rank in zip(leaves, given_ranks, wanted_ranks, strict=True)
            if rank is not None
        ]
        if dtypes is not None:
            leaves = [ops.cast(leaf, dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]
        return tree.pack_sequence_as(outputs, leaves), masks

    return group._replace(function=run)


def _of_rank(mask: Mask, leaf: Tensor, rank: int) -> Tensor:
    """Returns a mask, or ones where there is none, for the first axes of an output."""
    ones = ops.ones(ops.shape(leaf)[:rank], "int32")
    if mask is None:
        return ones
    for _ in range(rank - len(mask.shape)):
        mask = ops.expand_dims(mask, -1)
    return mask * ones
