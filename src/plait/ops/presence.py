"""Missing views: weights over the experts whose input is there."""

from keras import ops

from plait.ops.combine import at_least_float32, log_sum_exp
from plait.typing import Tensor


def over_present(weights: Tensor, present: Tensor) -> Tensor:
    """Returns weights that are zero where an expert's view is missing; the rest take its part.

    `w_l · m_l · Σ_j w_j / Σ_j w_j m_j`: the total stays what it was. Where nothing is left of it,
    the experts that are present share it evenly. A row whose views are all missing keeps its
    weights.

    Args:
        weights: Tensor of shape `(b, …, e)`.
        present: bool `(b, e)`, or any shape `(b, …, e)` with a prefix of the weights' axes.

    Returns:
        Tensor of the weights' shape, in float32 or better.

    Example:
    >>> import numpy as np
    >>> from plait.ops.presence import over_present
    >>> w = over_present(np.array([[0.5, 0.3, 0.2]]), np.array([[False, True, True]]))
    >>> [round(float(v), 4) for v in w[0]]
    [0.0, 0.6, 0.4]
    """
    weights = at_least_float32(weights)
    keep = _kept(present, len(weights.shape))
    kept = ops.where(keep, weights, ops.zeros_like(weights))
    left = ops.sum(kept, axis=-1, keepdims=True)
    total = ops.sum(weights, axis=-1, keepdims=True)
    some = left > 0
    scaled = kept * (total / ops.where(some, left, ops.ones_like(left)))
    flags = ops.cast(ops.broadcast_to(keep, ops.shape(weights)), weights.dtype)
    shared = flags * (total / ops.sum(flags, axis=-1, keepdims=True))
    # Not `left <= 0`: a weight that is NaN must show.
    nothing = ops.logical_not(ops.logical_or(some, ops.isnan(left)))
    return ops.where(nothing, shared, scaled)


def log_over_present(log_weights: Tensor, present: Tensor) -> Tensor:
    """Returns what `over_present` does, for log-weights.

    Args:
        log_weights: Tensor of shape `(b, …, e)`.
        present: bool `(b, e)`, or with more of the weights' axes.
    """
    logs = at_least_float32(log_weights)
    keep = _kept(present, len(logs.shape))
    kept = ops.where(keep, logs, ops.full_like(logs, -float("inf")))
    left = ops.expand_dims(log_sum_exp(kept, axis=-1), -1)
    total = ops.expand_dims(log_sum_exp(logs, axis=-1), -1)
    flags = ops.cast(ops.broadcast_to(keep, ops.shape(logs)), logs.dtype)
    nothing = ops.logical_and(left == -float("inf"), keep)
    shared = total - ops.log(ops.sum(flags, axis=-1, keepdims=True))
    gain = total - ops.where(left == -float("inf"), total, left)
    return ops.where(nothing, shared, kept + gain)


def score_present(scores: Tensor, present: Tensor, from_logits: bool) -> Tensor:
    """Returns a gate's scores with those of missing views excluded, as routers understand it.

    A row whose views are all missing keeps its scores.

    Args:
        scores: Tensor of shape `(b, …, e)`.
        present: bool `(b, e)`, or with more of the scores' axes.
        from_logits: Whether the scores are logits, or probabilities.
    """
    scores = at_least_float32(scores)
    out = -float("inf") if from_logits else 0.0
    return ops.where(_kept(present, len(scores.shape)), scores, ops.full_like(scores, out))


def rows_present(leaf: Tensor) -> Tensor:
    """Returns bool `(b,)`: where a row of a floating tensor `(b, …)` is not all NaN."""
    axes = tuple(range(1, len(leaf.shape)))
    missing = ops.isnan(leaf)
    return ops.logical_not(ops.all(missing, axis=axes) if axes else missing)


def zero_missing(leaf: Tensor, present: Tensor) -> Tensor:
    """Returns a tensor `(b, …)` with zeros in the rows that are missing.

    Args:
        leaf: Tensor of shape `(b, …)`.
        present: bool `(b,)`.
    """
    row = ops.reshape(present, (-1, *(1,) * (len(leaf.shape) - 1)))
    return ops.where(row, leaf, ops.zeros_like(leaf))


def _kept(present: Tensor, rank: int) -> Tensor:
    """Returns `present`, true in whole rows where nothing is, with the given rank."""
    present = ops.cast(present, "bool")
    for _ in range(rank - len(present.shape)):
        present = ops.expand_dims(present, -2)
    return ops.logical_or(present, ops.logical_not(ops.any(present, axis=-1, keepdims=True)))
