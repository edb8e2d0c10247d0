"""What a gate does with its experts: shares, entropy."""

from keras import ops

from plait.ops.combine import at_least_float32
from plait.typing import Tensor


def gate_entropy(weights: Tensor) -> Tensor:
    """Returns `−Σ_l w_l log w_l` of each row, in nats: 0 for one expert, log e for all alike.

    Weights are divided by their sum first; a row of zeros has entropy 0.

    Args:
        weights: Tensor of shape `(b, …, e)`, not negative.

    Returns:
        Tensor of shape `(b, …)`.

    Example:
    >>> import numpy as np
    >>> from plait.ops.usage import gate_entropy
    >>> [round(float(h), 4) for h in gate_entropy(np.array([[0.5, 0.5], [1.0, 0.0]]))]
    [0.6931, 0.0]
    """
    weights = at_least_float32(weights)
    shares = weights / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-30)
    return ops.sum(shares * -ops.log(ops.maximum(shares, 1e-30)), axis=-1)


def idle(usage: Tensor, threshold: float) -> Tensor:
    """Returns which experts have less than `threshold` times an even share.

    Args:
        usage: Tensor `(e,)`, shares that sum to one.
        threshold: Fraction of `1 / e`.

    Example:
    >>> import numpy as np
    >>> from plait.ops.usage import idle
    >>> [bool(v) for v in idle(np.array([0.6, 0.399, 0.001]), 0.01)]
    [False, False, True]
    """
    usage = at_least_float32(usage)
    return usage * usage.shape[-1] < threshold
