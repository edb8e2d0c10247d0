"""Logarithmic opinion pools, out ∝ Π_l f_l(x) ^ w_l(x): of classes, and of Gaussians."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from plait.ops.combine import at_least_float32, expert_weight, lowest
from plait.ops.likelihood import raw_of, scale_of
from plait.typing import Tensor

_LOWEST_LOG = -1e30  # what a log-probability of −∞ counts as
_LARGEST_EXPONENT = 88.0  # its exponential is finite in float32


def pool(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """Returns `softmax_c Σ_l weights[…, l] · log outputs[l][…, c]`, the logarithmic opinion pool.

    The normalised geometric mean of distributions (Genest and Zidek 1986); with weights of one, the
    product of experts (Hinton 1999).

    The last axis holds one distribution; where it has one unit, this is the probability `p` of
    "yes", and the pool is `sigmoid Σ_l w_l · log(p_l / (1 − p_l))`. What an expert's probabilities
    sum to does not matter. A probability of zero counts as the smallest normal number of the dtype:
    it all but excludes the class, and where each class is excluded by some expert the result is
    still a distribution. Weights of zero for all experts give the uniform distribution.

    Args:
        weights: Tensor of shape `(b, …, e)`; the axes before the last are a prefix of the
            outputs' shape. Used as they are, also where they do not sum to one.
        outputs: `e` tensors of one shape `(b, …, u)`, not negative; a negative one gives NaN.

    Returns:
        Tensor of shape `(b, …, u)`, in float32, or float64 where an input is.

    Example:
    >>> import numpy as np
    >>> from plait.ops import pool
    >>> y = pool(np.array([[0.5, 0.5]]), [np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]])])
    >>> [round(float(v), 4) for v in y[0]]
    [0.75, 0.25]

    References:
        Genest, Zidek (1986), Combining probability distributions: a critique and an annotated
        bibliography.
        Hinton (1999), Products of experts.
    """
    weights = at_least_float32(weights)
    total = None
    for expert, output in enumerate(outputs):
        weight = expert_weight(weights, expert, len(output.shape))
        # Not `*`: TensorFlow's own operators do not mix float32 and float64.
        term = ops.multiply(weight, _evidence(at_least_float32(output)))
        total = term if total is None else ops.add(total, term)
    return _normalized(total)


def pool_stacked(weights: Tensor, stacked: Tensor) -> Tensor:
    """Returns the pool of outputs with the expert axis first; see `pool`.

    Args:
        weights: Tensor of shape `(b, …, e)`.
        stacked: Tensor of shape `(e, b, …, u)`.

    Returns:
        Tensor of shape `(b, …, u)`, in float32, or float64 where an input is.
    """
    weights = _experts_first(weights, len(stacked.shape))
    evidence = _evidence(at_least_float32(stacked))
    return _normalized(ops.sum(ops.multiply(weights, evidence), axis=0))


def pool_slots(weights: Tensor, outputs: Tensor) -> Tensor:
    """Returns the pool over axis 1 of the outputs of chosen experts.

    Args:
        weights: Tensor of shape `(n, k)`; zero in an empty slot.
        outputs: Tensor of shape `(n, k, …, u)`.

    Returns:
        Tensor of shape `(n, …, u)`.
    """
    shape = (*ops.shape(weights), *(1,) * (len(outputs.shape) - 2))
    evidence = _evidence(at_least_float32(outputs))
    terms = ops.multiply(ops.reshape(at_least_float32(weights), shape), evidence)
    return _normalized(ops.sum(terms, axis=1))


def log_pool(log_weights: Tensor, log_outputs: Sequence[Tensor]) -> Tensor:
    """Returns the logarithm of the pool of distributions that are given as logarithms; see `pool`.

    The logarithmic opinion pool (Genest and Zidek 1986). A log-probability of −∞ counts as −1e30.

    Args:
        log_weights: Tensor of shape `(b, …, e)`, log-weights; −∞ is a weight of zero.
        log_outputs: `e` tensors of one shape `(b, …, u)`, log-probabilities, also unnormalised.

    Returns:
        Tensor of shape `(b, …, u)`, in float32, or float64 where an input is.

    Example:
    >>> import numpy as np
    >>> from plait.ops import log_pool
    >>> y = log_pool(np.log([[0.5, 0.5]]), [np.log([[0.9, 0.1]]), np.log([[0.5, 0.5]])])
    >>> [round(2.718281828 ** float(v), 4) for v in y[0]]
    [0.75, 0.25]
    """
    weights = ops.exp(at_least_float32(log_weights))
    total = None
    for expert, output in enumerate(log_outputs):
        logs = at_least_float32(output)
        one = logs.shape[-1] == 1
        logs = _at_least(logs, _LOWEST_LOG)
        if one:
            logs = ops.subtract(logs, _log(-ops.expm1(logs)))
        term = ops.multiply(expert_weight(weights, expert, len(output.shape)), logs)
        total = term if total is None else ops.add(total, term)
    assert total is not None
    if total.shape[-1] == 1:
        return -ops.softplus(-total)
    return ops.log_softmax(total, axis=-1)


def gaussian_pool(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """Returns the logarithmic opinion pool of Gaussians, which is one: `Π_l N(m_l, s_l²) ^ w_l`.

    Its precision is `1/s² = Σ_l w_l / s_l²`, its mean `m = s² Σ_l w_l m_l / s_l²`, unit by unit: an
    expert counts as much as it is sure. With weights of one this is the product of experts (Hinton
    1999), with others the generalised one (Cao and Fleet 2014).

    The last axis holds means `m`, then as many numbers `r` with scale `s = softplus(r) + 1e-6`, as
    in `plait.losses.families.Gaussian(scale="predicted")`; that of the result as well. A pooled
    scale of less than 1e-6 counts as 1e-6. Weights of zero for all experts give zeros.

    Args:
        weights: Tensor of shape `(b, …, e)`, not negative; the axes before the last are a prefix of
            the outputs' shape without its last axis. Used as they are, also where they do not sum
            to one.
        outputs: `e` tensors of one shape `(b, …, 2u)`.

    Returns:
        Tensor of shape `(b, …, 2u)`, in float32, or float64 where an input is.

    Example:
    >>> import numpy as np
    >>> from plait.ops import gaussian_pool
    >>> sure, unsure = np.array([[0.0, 0.0]]), np.array([[3.0, 2.0]])
    >>> round(float(gaussian_pool(np.array([[0.5, 0.5]]), [sure, unsure])[0, 0]), 4)
    0.288

    References:
        Hinton (1999), Products of experts.
        Cao, Fleet (2014), Generalized product of experts for automatic and principled fusion of
        Gaussian process predictions.
    """
    outputs = [at_least_float32(output) for output in outputs]
    dtypes = {keras.backend.standardize_dtype(output.dtype) for output in outputs}
    stacked = ops.stack([ops.cast(output, max(dtypes)) for output in outputs])
    return gaussian_pool_stacked(weights, stacked)


def gaussian_pool_stacked(weights: Tensor, stacked: Tensor) -> Tensor:
    """Returns the pool of Gaussians with the expert axis first; see `gaussian_pool`.

    Args:
        weights: Tensor of shape `(b, …, e)`.
        stacked: Tensor of shape `(e, b, …, 2u)`.

    Returns:
        Tensor of shape `(b, …, 2u)`, in float32, or float64 where an input is.
    """
    mean, raw = ops.split(at_least_float32(stacked), 2, axis=-1)
    weights = _experts_first(weights, len(stacked.shape))
    logs = -2.0 * ops.log(scale_of(raw))
    # Precisions are taken relative to the largest that counts: they may span more than a float.
    counts, least = weights > 0, lowest(weights)
    log_weights = ops.log(ops.where(counts, weights, ops.ones_like(weights)))
    counted = ops.add(ops.where(counts, log_weights, ops.full_like(weights, least)), logs)
    top = ops.stop_gradient(ops.max(counted, axis=0, keepdims=True))
    top = ops.where(top > 0.5 * least, top, ops.zeros_like(top))
    relative = ops.exp(ops.clip(ops.subtract(logs, top), lowest(logs), _LARGEST_EXPONENT))
    precisions = ops.multiply(weights, relative)
    total = ops.sum(precisions, axis=0)
    nothing = total == 0
    divisor = ops.where(nothing, ops.ones_like(total), total)
    pooled = ops.divide(ops.sum(ops.multiply(precisions, mean), axis=0), divisor)
    scale = ops.exp(-0.5 * ops.add(top[0], ops.log(divisor)))
    found = raw_of(scale)
    return ops.concatenate([pooled, ops.where(nothing, ops.zeros_like(found), found)], axis=-1)


def gaussian_pool_slots(weights: Tensor, outputs: Tensor) -> Tensor:
    """Returns the pool of Gaussians over axis 1 of the outputs of chosen experts.

    Args:
        weights: Tensor of shape `(n, k)`; zero in an empty slot.
        outputs: Tensor of shape `(n, k, …, 2u)`.

    Returns:
        Tensor of shape `(n, …, 2u)`.
    """
    rank = len(outputs.shape)
    return gaussian_pool_stacked(weights, ops.transpose(outputs, (1, 0, *range(2, rank))))


def _experts_first(weights: Tensor, rank: int) -> Tensor:
    """Returns weights `(b, …, e)` as `(e, b, …, 1, …, 1)`, with as many axes as the outputs."""
    own = len(weights.shape)
    # Not `moveaxis`, which PyTorch's vmap does not take: a mixture may be an expert in a stack.
    weights = ops.transpose(at_least_float32(weights), (own - 1, *range(own - 1)))
    return ops.reshape(weights, (*ops.shape(weights), *(1,) * (rank - own)))


def _evidence(p: Tensor) -> Tensor:
    """Returns what the pool adds up: log-probabilities, or log-odds of a single one."""
    if p.shape[-1] != 1:
        return _log(p)
    return ops.subtract(_log(p), _log(1.0 - p))


def _log(p: Tensor) -> Tensor:
    """Returns log p, that of the smallest normal number where p is zero, NaN where it is less.

    The gradient is zero where p is.
    """
    smallest = float(np.finfo(keras.backend.standardize_dtype(p.dtype)).tiny)
    # By comparisons, which are false for NaN; the one logarithm never sees a number below.
    low = ops.logical_and(p >= 0, p < smallest)
    return ops.log(ops.where(low, ops.full_like(p, smallest), p))


def _at_least(logs: Tensor, lowest: float) -> Tensor:
    return ops.where(logs < lowest, ops.full_like(logs, lowest), logs)


def _normalized(evidence: Tensor) -> Tensor:
    if evidence.shape[-1] == 1:
        return ops.sigmoid(evidence)
    return ops.softmax(evidence, axis=-1)
