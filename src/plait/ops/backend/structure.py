"""What the backends share: structures of tensors taken apart and put together again."""

import keras
from keras import tree

__all__ = ["is_float", "vectorized_map_with"]


def is_float(tensor):
    """Whether a tensor has a floating dtype, and hence may have a gradient."""
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


def vectorized_map_with(vectorize, function, mapped, shared):
    """`vectorized_map` by a backend's `vectorize`, which knows only lists of tensors.

    Args:
        vectorize: Maps `(function, tensors)` to a list of tensors; its function takes the list of
            one expert's slices and returns a list of tensors.
        function: As for `vectorized_map`.
        mapped: As for `vectorized_map`.
        shared: As for `vectorized_map`.

    Returns:
        As for `vectorized_map`.
    """
    returned = None

    def on_leaves(leaves):
        nonlocal returned
        returned = function(tree.pack_sequence_as(mapped, leaves), shared)
        outputs = [leaf for leaf in tree.flatten(returned) if leaf is not None]
        return [keras.ops.convert_to_tensor(output) for output in outputs]

    leaves = [keras.ops.convert_to_tensor(leaf) for leaf in tree.flatten(mapped)]
    stacked = iter(vectorize(on_leaves, leaves))
    return tree.map_structure(lambda leaf: None if leaf is None else next(stacked), returned)
