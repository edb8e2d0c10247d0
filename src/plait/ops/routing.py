"""From scores to mixing weights: the pure functions behind the routers."""

from typing import Any, NamedTuple

from keras import ops

from plait.ops.combine import at_least_float32


class Routing(NamedTuple):
    """What a router decides.

    Attributes:
        weights: Mixing weights of shape `(b, …, e)`, zero for experts that were not chosen.
        indices: The chosen experts of shape `(b, …, k)`, int32; `num_experts` in a slot stands
            for nobody. `None` where every expert counts.
    """

    weights: Any
    indices: Any = None


def softmax(logits: Any, temperature: float = 1.0) -> Any:
    """Returns softmax(logits / temperature) over the last axis, in float32 or better.

    Args:
        logits: Tensor of shape `(b, …, e)`.
        temperature: Positive; below one sharpens, above one flattens.

    Example:

    >>> import numpy as np
    >>> from plait.ops import softmax
    >>> [round(float(w), 4) for w in softmax(np.log([[1.0, 3.0]]))[0]]
    [0.25, 0.75]
    """
    return ops.softmax(at_least_float32(logits) / temperature, axis=-1)


def log_probabilities(probabilities: Any) -> Any:
    """Returns logits whose softmax is `probabilities`, finite where one of them is zero.

    Args:
        probabilities: Tensor of shape `(b, …, e)`, not negative.
    """
    return ops.log(ops.maximum(at_least_float32(probabilities), 1e-30))
