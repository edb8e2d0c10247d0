"""How evenly a router spreads its load: the balance terms, and the bias that needs none."""

from keras import ops

from plait.ops.combine import at_least_float32, log_sum_exp
from plait.ops.routing import Routing, chosen, excluded
from plait.typing import Mask, Tensor


def expert_load(routing: Routing, mask: Mask = None) -> Tensor:
    """Returns each expert's share of the load, outside the gradient.

    `f_l = (choices of l) / (all choices)` (Fedus et al. 2021, eq. 5), where a choice has a
    weight above zero; where every expert counts, the mean weight.

    Args:
        routing: Weights `(b, …, e)` and indices `(b, …, k)` or `None`.
        mask: `None` or bool `(b, …)`; a row where it is false does not count.

    Returns:
        Tensor `(e,)` that sums to one where anything was chosen, else zeros.

    Example:
    >>> import numpy as np
    >>> from plait.ops.balance import expert_load
    >>> from plait.ops.routing import top_k
    >>> load = expert_load(top_k(np.array([[2.0, 1.0], [3.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), 1))
    >>> [round(float(f), 4) for f in load]
    [0.75, 0.25]
    """
    share = ops.stop_gradient(at_least_float32(routing.weights))
    if routing.indices is not None:
        named = chosen(routing.indices, share.shape[-1])
        share = ops.cast(ops.logical_and(named, share > 0), share.dtype)
    total = ops.sum(_rows(share, mask), axis=0)
    return total / ops.maximum(ops.sum(total), 1e-30)


def load_balance(probabilities: Tensor, load: Tensor, mask: Mask = None) -> Tensor:
    """Returns `e · Σ_l f_l · P_l`, one where the load is even (Fedus et al. 2021, eq. 4).

    Args:
        probabilities: Tensor `(b, …, e)`, the softmax of the scores; `P_l` is its mean.
        load: Tensor `(e,)`, the shares `f_l`; see `expert_load`.
        mask: `None` or bool `(b, …)`; a row where it is false does not count.

    Returns:
        A scalar tensor.

    Example:
    >>> import numpy as np
    >>> from plait.ops import load_balance
    >>> probabilities = np.array([[0.75, 0.25], [0.75, 0.25]])
    >>> float(load_balance(probabilities, np.array([1.0, 0.0])))
    1.5
    """
    probabilities = at_least_float32(probabilities)
    mean = _mean(_rows(probabilities, mask), mask)
    return probabilities.shape[-1] * ops.sum(ops.cast(load, mean.dtype) * mean)


def importance(weights: Tensor, mask: Mask = None) -> Tensor:
    """Returns the squared coefficient of variation of the experts' total weights.

    `CV(Σ_i w_il)² = var / mean²` over the experts (Shazeer et al. 2017, eq. 6 and 7), zero where
    the load is even.

    Args:
        weights: Tensor `(b, …, e)`.
        mask: `None` or bool `(b, …)`; a row where it is false does not count.

    Returns:
        A scalar tensor.

    Example:
    >>> import numpy as np
    >>> from plait.ops.balance import importance
    >>> round(float(importance(np.array([[1.0, 0.0], [0.5, 0.5]]))), 4)
    0.25
    """
    total = ops.sum(_rows(at_least_float32(weights), mask), axis=0)
    mean = ops.mean(total)
    return ops.mean(ops.square(total - mean)) / ops.maximum(ops.square(mean), 1e-30)


def z_loss(logits: Tensor, mask: Mask = None) -> Tensor:
    """Returns the mean of `(log Σ_l exp s_l)²`, small where scores are (Zoph et al. 2022, eq. 5).

    An excluded expert adds nothing to the sum, and a row that excludes every expert has size zero.

    Args:
        logits: Tensor `(b, …, e)`.
        mask: `None` or bool `(b, …)`; a row where it is false does not count.

    Returns:
        A scalar tensor.

    Example:
    >>> import numpy as np
    >>> from plait.ops.balance import z_loss
    >>> round(float(z_loss(np.array([[0.0, 0.0]]))), 4)
    0.4805
    """
    logits = at_least_float32(logits)
    empty = ops.all(excluded(logits), axis=-1)
    size = log_sum_exp(ops.where(ops.expand_dims(empty, -1), ops.zeros_like(logits), logits), -1)
    size = ops.square(ops.where(empty, ops.zeros_like(size), size))
    return ops.reshape(_mean(_rows(ops.expand_dims(size, -1), mask), mask), ())


def moved_bias(bias: Tensor, load: Tensor, rate: float) -> Tensor:
    """Returns the selection bias after one step: up for idle experts, down for busy ones.

    `b_l ← b_l + rate · sign(1 / e − f_l)` (Wang et al. 2024, alg. 1). A load of zeros, where
    nothing was chosen, moves nothing.

    Args:
        bias: Tensor `(e,)`.
        load: Tensor `(e,)`, the shares `f_l`.
        rate: The step.

    Example:
    >>> import numpy as np
    >>> from plait.ops.balance import moved_bias
    >>> bias = moved_bias(np.zeros(3), np.array([0.75, 0.25, 0.0]), 0.1)
    >>> [round(float(b), 4) for b in bias]
    [-0.1, 0.1, 0.1]
    """
    bias, load = at_least_float32(bias), at_least_float32(load)
    return bias + ops.cast(rate * ops.sign(ops.mean(load) - load), bias.dtype)


def _rows(tensor: Tensor, mask: Mask) -> Tensor:
    """Returns the tensor as `(n, e)`, with zeros in the rows that the mask leaves out."""
    rows = ops.reshape(tensor, (-1, tensor.shape[-1]))
    if mask is None:
        return rows
    return ops.where(ops.reshape(mask, (-1, 1)), rows, ops.zeros_like(rows))


def _mean(rows: Tensor, mask: Mask) -> Tensor:
    """Returns the mean over the rows that count; zeros where none does."""
    if mask is None:
        return ops.mean(rows, axis=0)
    count = ops.sum(ops.cast(ops.reshape(mask, (-1,)), rows.dtype))
    return ops.sum(rows, axis=0) / ops.maximum(count, 1.0)
