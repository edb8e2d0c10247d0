"""Calls a layer as a pure function of its variables' values."""

from collections.abc import Sequence
from typing import NamedTuple

import keras

from plait.compat import attach_masks, masks_of
from plait.typing import Mask, Nested, Tensor


class Outcome(NamedTuple):
    """What one call of an expert gives.

    Attributes:
        outputs: Structure of tensors.
        masks: Flat list of the outputs' masks, `None` where there is none.
        updates: New values of the variables that the call assigned, by their position.
        losses: List of scalars from `add_loss` and activity regularisers. Weight regularisers are
            not among them: they belong to the variables, not to the call.
    """

    outputs: Nested
    masks: list[Mask]
    updates: dict[int, Tensor]
    losses: list[Tensor]


def call_with(
    layer: keras.layers.Layer,
    variables: Sequence[keras.Variable],
    values: Sequence[Tensor],
    inputs: Nested,
    masks: list[Mask] | None = None,
    training: bool = False,
) -> Outcome:
    """Calls `layer` with the given values in place of those of its variables.

    Args:
        layer: A built layer or model; nothing of it changes.
        variables: Its variables.
        values: A tensor for each of them.
        inputs: Structure of tensors.
        masks: `None`, or a flat list with a mask or `None` for each tensor of `inputs`.
        training: As in Keras. Always passed explicitly; otherwise a value set inside one layer
            leaks into later calls.
    """
    mapping = list(zip(variables, values, strict=True))
    with keras.StatelessScope(
        state_mapping=mapping, collect_losses=True, initialize_variables=False
    ) as scope:
        before = list(map(scope.get_current_value, variables))
        outputs = layer(attach_masks(inputs, masks) if masks else inputs, training=training)
        output_masks = masks_of(outputs)
    updates = {}
    for position, (variable, old) in enumerate(zip(variables, before, strict=True)):
        new = scope.get_current_value(variable)
        if new is not old:
            updates[position] = new
    return Outcome(outputs, output_masks, updates, list(scope.losses))
