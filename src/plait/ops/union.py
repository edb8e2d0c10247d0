"""Choices of several routers among the same experts, joined so that each expert runs once."""

from collections.abc import Sequence

import numpy as np
from keras import ops

from plait.ops.routing import chosen
from plait.typing import Tensor


def distinct(indices: Tensor, num_experts: int) -> Tensor:
    """Returns the experts that a row chose, each of them once.

    Args:
        indices: int32 `(b, …, s)`, in `[0, e]`, where an expert may stand several times; `e` marks
            an empty slot.
        num_experts: `e`, an integer.

    Returns:
        int32 `(b, …, min(s, e))`; what repeats an earlier entry is an empty slot.

    Example:
    >>> import numpy as np
    >>> from plait.ops.union import distinct
    >>> [int(v) for v in distinct(np.array([[2, 0, 2, 4]], "int32"), 4)[0]]
    [2, 0, 4, 4]
    >>> [int(v) for v in distinct(np.array([[1, 0, 1, 3]], "int32"), 3)[0]]
    [0, 1, 3]
    """
    indices = ops.cast(indices, "int32")
    size = indices.shape[-1]
    if size > num_experts:
        every = ops.arange(num_experts, dtype="int32")
        return ops.where(chosen(indices, num_experts), every, num_experts)
    earlier = ops.convert_to_tensor(np.tri(size, k=-1, dtype=bool))
    same = ops.equal(ops.expand_dims(indices, -1), ops.expand_dims(indices, -2))
    repeated = ops.any(ops.logical_and(same, earlier), axis=-1)
    return ops.where(repeated, num_experts, indices)


def numbered(indices: Tensor, positions: Sequence[int], num_experts: int) -> Tensor:
    """Returns choices among some experts as choices among all.

    Args:
        indices: int32 `(b, …, k)`, in `[0, len(positions)]`; the last marks an empty slot.
        positions: The number of each of these experts among all.
        num_experts: `e`, how many experts there are in all.

    Example:
    >>> import numpy as np
    >>> from plait.ops.union import numbered
    >>> [int(v) for v in numbered(np.array([[1, 0, 2]], "int32"), [0, 3], 4)[0]]
    [3, 0, 4]
    """
    if list(positions) == list(range(num_experts)):
        return indices
    return ops.take(ops.convert_to_tensor([*positions, num_experts], dtype="int32"), indices)


def spread(weights: Tensor, positions: Sequence[int], num_experts: int) -> Tensor:
    """Returns weights of some experts as weights of all, zero for the others.

    A row that holds a NaN is NaN for the others too.

    Args:
        weights: Tensor of shape `(b, …, len(positions))`.
        positions: The number of each of these experts among all.
        num_experts: `e`, how many experts there are in all.

    Returns:
        Tensor of shape `(b, …, e)`.

    Example:
    >>> import numpy as np
    >>> from plait.ops.union import spread
    >>> [float(v) for v in spread(np.array([[0.25, 0.75]]), [0, 2], 3)[0]]
    [0.25, 0.0, 0.75]
    """
    weights = ops.convert_to_tensor(weights)
    if list(positions) == list(range(num_experts)):
        return weights
    nothing = 0 * ops.sum(ops.stop_gradient(weights), axis=-1, keepdims=True)
    source = [len(positions)] * num_experts
    for number, position in enumerate(positions):
        source[position] = number
    indices = ops.convert_to_tensor(source, dtype="int32")
    return ops.take(ops.concatenate([weights, nothing], axis=-1), indices, axis=-1)
