"""Runs experts on the rows that chose them."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops, tree

from plait.experts.fresh import is_seed
from plait.experts.stateless import call_with
from plait.ops.dispatch import apply_experts

# Draws that one call may take from one seed generator before the next step repeats them.
_DRAWS_PER_CALL = 1024
# Odd and prime to the step between experts, so that no two segments draw the same numbers.
_SEED_STEP_OF_SEGMENT = 7_919_333


class CoupledRowsError(Exception):
    """Raised where an expert's call depends on more than the rows it is given one by one."""


def run_chosen(
    layer: keras.layers.Layer,
    variables: Sequence[keras.Variable],
    values: Sequence[Any],
    rows: Any,
    masks: Any,
    indices: Any,
    *,
    num_experts: int,
    capacity: int | None,
    training: bool,
    vectorized: bool,
) -> tuple[Any, list[Any]]:
    """Runs experts of one architecture, each on the rows that chose it.

    Args:
        layer: The expert that serves as the scaffold.
        variables: Its variables.
        values: A tensor `(e, …)` for each of them.
        rows: Structure of tensors `(n, …)`.
        masks: `None`, or a structure like `rows` of boolean tensors and `None`.
        indices: int32 `(n, k)`; `num_experts` stands for nobody.
        num_experts: `e`.
        capacity: Most rows that one expert may have, or `None` for any load.
        training: As in Keras.
        vectorized: Whether one call may run several experts.

    Returns:
        The outputs' structure with leaves `(n, k, …)`, zero where nobody was chosen; and the flat
        list of their masks, `(n, k, …)` or `None`.

    Raises:
        CoupledRowsError: If a training call moves state other than seeds (batch norm) or adds a
            loss: both depend on the whole batch, of which an expert would see a part.
    """
    flat_masks = tree.flatten(masks)
    present = [position for position, mask in enumerate(flat_masks) if mask is not None]
    mask_of_output: list[bool] = []

    def run(values: list[Any], inputs: Any, segment: Any) -> Any:
        rows, given = inputs
        seeded = [
            _of_segment(value, segment) if is_seed(variable) else value
            for variable, value in zip(variables, values, strict=True)
        ]
        full = [None] * len(flat_masks)
        for position, mask in zip(present, given, strict=True):
            full[position] = ops.cast(mask, "bool")
        packed = tree.pack_sequence_as(rows, full) if present else None
        outcome = call_with(layer, variables, seeded, rows, packed, training)
        moved = any(
            changed and not is_seed(variable)
            for variable, changed in zip(variables, outcome.changed, strict=True)
        )
        if moved or outcome.losses:
            raise CoupledRowsError
        mask_of_output[:] = [mask is not None for mask in outcome.masks]
        kept = [ops.cast(mask, "int32") for mask in outcome.masks if mask is not None]
        return outcome.outputs, kept

    given = [ops.cast(flat_masks[position], "int32") for position in present]
    outputs, kept = apply_experts(
        run,
        list(values),
        (rows, given),
        indices,
        num_experts=num_experts,
        capacity=capacity,
        vectorized=vectorized,
    )
    flags = iter(kept)
    return outputs, [ops.cast(next(flags), "bool") if masked else None for masked in mask_of_output]


def _of_segment(seed: Any, segment: Any) -> Any:
    step = ops.cast(segment, seed.dtype) * _SEED_STEP_OF_SEGMENT
    return seed + ops.stack([step, ops.zeros_like(step)])


def advance_seeds(variables: Sequence[keras.Variable], seeds: Sequence[bool]) -> None:
    """Moves the seeds among stacked variables on, so that the next step draws anew."""
    for variable, seed in zip(variables, seeds, strict=True):
        if seed:
            step = ops.cast([0, _DRAWS_PER_CALL], variable.dtype)
            variable.assign(variable.value + step)
