"""Calls a layer as a pure function of its variables' values."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras


class Outcome(NamedTuple):
    """What one call of an expert gives.

    Attributes:
        outputs: Structure of tensors.
        masks: Structure of the outputs' masks, `None` where there is none.
        state: Values of all variables after the call, in the order they were given.
        changed: For each variable, whether the call assigned it.
        losses: List of scalars from `add_loss` and activity regularisers. Weight regularisers are
            not among them: they belong to the variables, not to the call.
    """

    outputs: Any
    masks: Any
    state: list[Any]
    changed: list[bool]
    losses: list[Any]


class _WithMask(keras.layers.Layer):
    """Returns its input with a given mask attached, as Keras' own layers attach theirs."""

    def __init__(self) -> None:
        # TensorFlow refuses the name made of this class's, with its underscore, inside a loop.
        super().__init__(autocast=False, name="with_mask")
        self.supports_masking = True

    def call(self, inputs: Any, mask: Any = None) -> Any:
        del mask  # Keras attaches it to what is returned
        return inputs

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> Any:
        del mask
        return inputs


class _MaskOf(keras.layers.Layer):
    """Returns the masks that its input carries."""

    def __init__(self) -> None:
        super().__init__(autocast=False, name="mask_of")
        self.supports_masking = True

    def call(self, inputs: Any, mask: Any = None) -> Any:
        del inputs
        return mask

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        del inputs, previous_mask  # a mask has no mask


def attach_masks(tensors: Any, masks: Any) -> Any:
    """Returns a structure of tensors, each with its mask attached where it has one.

    Args:
        tensors: Structure of tensors.
        masks: `None`, or a structure like `tensors` of boolean tensors and `None`.
    """
    if masks is None:
        return tensors
    attach = _WithMask()
    flat = [
        tensor if mask is None else attach(tensor, mask=mask)
        for tensor, mask in zip(keras.tree.flatten(tensors), keras.tree.flatten(masks), strict=True)
    ]
    return keras.tree.pack_sequence_as(tensors, flat)


def masks_of(tensors: Any) -> list[Any]:
    """Returns the mask of each tensor of a structure, flat, `None` where there is none."""
    return [_mask_reader()(tensor) for tensor in keras.tree.flatten(tensors)]


@functools.cache
def _mask_reader() -> _MaskOf:
    """Returns the one layer that reads masks: making a layer takes longer than a small expert."""
    return _MaskOf()


def call_with(
    layer: keras.layers.Layer,
    variables: Sequence[keras.Variable],
    values: Sequence[Any],
    inputs: Any,
    masks: Any = None,
    training: bool = False,
) -> Outcome:
    """Calls `layer` with the given values in place of those of its variables.

    Args:
        layer: A built layer or model; nothing of it changes.
        variables: Its variables.
        values: A tensor for each of them.
        inputs: Structure of tensors.
        masks: `None`, or a structure like `inputs`.
        training: As in Keras. Always said aloud: a layer that sets it for one of its own layers
            would otherwise set it for whatever is called after it, the next expert included.
    """
    mapping = list(zip(variables, values, strict=True))
    with keras.StatelessScope(
        state_mapping=mapping, collect_losses=True, initialize_variables=False
    ) as scope:
        before = [scope.get_current_value(variable) for variable in variables]
        outputs = layer(attach_masks(inputs, masks), training=training)
        masks = masks_of(outputs)
    state = [scope.get_current_value(variable) for variable in variables]
    changed = [old is not new for old, new in zip(before, state, strict=True)]
    return Outcome(outputs, masks, state, changed, list(scope.losses))
