"""What plait needs of Keras beyond its documented calls: masks, walks, untracked layers, files."""

from plait.compat.layers import flat_layers, is_functional, refresh_adapted
from plait.compat.masks import attach_masks, masks_of
from plait.compat.optimizers import register_optimizers, with_public_optimizers
from plait.compat.serialization import without_other_backends
from plait.compat.untracked import UntrackedList

__all__ = [
    "UntrackedList",
    "attach_masks",
    "flat_layers",
    "is_functional",
    "masks_of",
    "refresh_adapted",
    "register_optimizers",
    "with_public_optimizers",
    "without_other_backends",
]
