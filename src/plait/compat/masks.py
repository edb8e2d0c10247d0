"""Masks on tensors: reads and sets the attribute in which Keras keeps a tensor's mask.

Keras' guide "Masking and padding" documents the attribute. A layer call that only reads or sets it
takes longer than a small expert, so that it is made only for objects that take no attributes, such
as the tracers of JAX.
"""

import functools
import operator

import keras
from keras import tree

from plait.typing import Mask, Nested, Tensor

_ATTRIBUTE = "_keras_mask"
_exists = functools.partial(operator.is_not, None)


class _WithMask(keras.layers.Layer):
    """Returns its input with a given mask attached, as Keras' own layers attach theirs."""

    def __init__(self) -> None:
        # TensorFlow refuses the name made of this class's, with its underscore, inside a loop.
        super().__init__(autocast=False, name="with_mask")
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Mask = None) -> Tensor:
        del mask  # Keras attaches it to what is returned
        return inputs

    def compute_output_spec(self, inputs: Tensor, mask: Mask = None) -> Tensor:
        del mask
        return inputs


class _MaskOf(keras.layers.Layer):
    """Returns the mask that its input carries."""

    def __init__(self) -> None:
        super().__init__(autocast=False, name="mask_of")
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Mask = None) -> Mask:
        del inputs
        return mask

    def compute_mask(self, inputs: Tensor, previous_mask: Mask) -> None:
        del inputs, previous_mask  # a mask has no mask


@functools.cache
def _mask_of() -> _MaskOf:
    return _MaskOf()


def masks_of(tensors: Nested) -> list[Mask]:
    """Returns the mask of each tensor of a structure, flat, `None` where there is none."""
    masks = []
    for tensor in tree.flatten(tensors):
        holds = hasattr(tensor, "__dict__")
        masks.append(getattr(tensor, _ATTRIBUTE, None) if holds else _mask_of()(tensor))
    return masks


def attach_masks(tensors: Nested, masks: list[Mask], fresh: bool = False) -> Nested:
    """Returns the tensors, each with its mask attached where it has one.

    Args:
        tensors: Structure of tensors.
        masks: Flat list of their masks.
        fresh: Whether the tensors were made in this call. Others are copied where they carry
            another mask, so that the caller's tensors stay as they are.
    """
    if not any(map(_exists, masks)):
        return tensors
    flat = tree.flatten(tensors)
    for position, mask in enumerate(masks):
        if mask is not None:
            flat[position] = _attach(flat[position], mask, fresh)
    return tree.pack_sequence_as(tensors, flat)


def _attach(tensor: Tensor, mask: Tensor, fresh: bool) -> Tensor:
    if not hasattr(tensor, "__dict__"):
        return _WithMask()(tensor, mask=mask)
    if getattr(tensor, _ATTRIBUTE, None) is mask:
        return tensor
    tensor = tensor if fresh else keras.ops.copy(tensor)
    setattr(tensor, _ATTRIBUTE, mask)
    return tensor
