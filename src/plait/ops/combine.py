"""Weighted sums and log-mixtures: the formula out = Σ w_l(x) · f_l(x)."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from plait.typing import Mask, Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Returns `tensor`, or the tensor of an array, in float32, or float64 when it is that.

    Softmax, logarithms and sums of products lose too much in half precision.
    """
    tensor = ops.convert_to_tensor(tensor)
    if keras.backend.standardize_dtype(tensor.dtype) == "float64":
        return tensor
    return ops.cast(tensor, "float32")


def lowest(tensor: Tensor) -> float:
    """Returns the lowest finite number of a tensor's dtype, float32 or float64.

    Example:
    >>> import numpy as np
    >>> from plait.ops.combine import lowest
    >>> lowest(np.zeros(1, "float32")) < -3e38
    True
    """
    return float(np.finfo(keras.backend.standardize_dtype(tensor.dtype)).min)


def merged_dtype(output_dtypes: Sequence[str], compute_dtype: str) -> str:
    """Returns the dtype of a merged output: the layer's, but never coarser than the outputs are.

    Under a mixed policy a network that ends in a float32 softmax keeps its float32 probabilities.

    Example:
    >>> from plait.ops.combine import merged_dtype
    >>> merged_dtype(["float16"], "float16"), merged_dtype(["float32"], "float16")
    ('float16', 'float32')
    """
    half = ("float16", "bfloat16")
    if compute_dtype in half and any(dtype not in half for dtype in output_dtypes):
        return "float32"
    return compute_dtype


def expert_weight(weights: Tensor, expert: int, rank: int) -> Tensor:
    """Returns one expert's weights, shaped to multiply an output of the given rank.

    Args:
        weights: Tensor of shape `(b, …, e)`.
        expert: Position on the last axis.
        rank: Rank of the expert's output, at least that of the weights less one.

    Returns:
        Tensor of shape `(b, …, 1, …, 1)` with `rank` axes.
    """
    weight = weights[..., expert]
    return ops.reshape(weight, (*ops.shape(weight), *(1,) * (rank - len(weight.shape))))


def weighted_sum(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """Returns `Σ_l weights[…, l] · outputs[l]`, summed in float32 or better.

    Args:
        weights: Tensor of shape `(b, …, e)`; the axes before the last are a prefix of the
            outputs' shape. Used as they are, also where they do not sum to one.
        outputs: `e` tensors of one shape `(b, …, u)`.

    Returns:
        Tensor of shape `(b, …, u)`, in float32, or float64 where an input is.

    Example:
    >>> import numpy as np
    >>> from plait.ops import weighted_sum
    >>> y = weighted_sum(np.array([[0.25, 0.75]]), [np.array([[4.0, 0.0]]), np.array([[0.0, 4.0]])])
    >>> [round(float(v), 4) for v in y[0]]
    [1.0, 3.0]
    """
    weights = at_least_float32(weights)
    total = None
    for expert, output in enumerate(outputs):
        weight = expert_weight(weights, expert, len(output.shape))
        # Not `*`: TensorFlow's own operators do not mix float32 and float64.
        term = ops.multiply(weight, at_least_float32(output))
        total = term if total is None else ops.add(total, term)
    return total


def weighted_sum_stacked(weights: Tensor, stacked: Tensor) -> Tensor:
    """Returns `Σ_l weights[…, l] · stacked[l]` for outputs with the expert axis first.

    The experts' engine computes in this layout; see `weighted_sum` for the formula.

    Args:
        weights: Tensor of shape `(b, …, e)`.
        stacked: Tensor of shape `(e, b, …, u)`.

    Returns:
        Tensor of shape `(b, …, u)`, in float32, or float64 where an input is.

    Example:
    >>> import numpy as np
    >>> from plait.ops import weighted_sum_stacked
    >>> stacked = np.array([[[4.0, 0.0]], [[0.0, 4.0]]])
    >>> [float(v) for v in weighted_sum_stacked(np.array([[0.25, 0.75]]), stacked)[0]]
    [1.0, 3.0]
    """
    rank = len(weights.shape)
    # Not `moveaxis`, which PyTorch's vmap does not take: a mixture may be an expert in a stack.
    weights = ops.transpose(at_least_float32(weights), (rank - 1, *range(rank - 1)))
    stacked = at_least_float32(stacked)
    shape = (*ops.shape(weights), *(1,) * (len(stacked.shape) - len(weights.shape)))
    return ops.sum(ops.multiply(ops.reshape(weights, shape), stacked), axis=0)


def log_sum_exp(terms: Tensor, axis: int = 0) -> Tensor:
    """Returns log Σ exp(terms), finite in value and gradient wherever one term is finite.

    Where all terms are −∞ the value is −∞ and the gradient zero, not NaN.

    Args:
        terms: Tensor of any shape, such as `(e, b, …)`.
        axis: The axis that is summed over.

    Returns:
        Tensor without that axis, such as `(b, …)`, in float32, or float64 where the terms are.

    Example:
    >>> import numpy as np
    >>> from plait.ops import log_sum_exp
    >>> round(float(log_sum_exp(np.array([-1000.0, -np.inf, -1000.0]))), 2)
    -999.31
    """
    terms = at_least_float32(terms)
    top = ops.stop_gradient(ops.max(terms, axis=axis, keepdims=True))
    # Not by `isfinite`, which PyTorch spells as a comparison with infinity.
    shift = ops.where(ops.abs(top) <= -lowest(top), top, ops.zeros_like(top))
    total = ops.sum(ops.exp(terms - shift), axis=axis)
    empty = total <= 0
    log = ops.log(ops.where(empty, ops.ones_like(total), total)) + ops.squeeze(shift, axis)
    # Where all terms are −∞ so is the largest. As a constant, −∞ turns into NaN in ONNX.
    return ops.where(empty, ops.squeeze(top, axis), log)


def log_mixture(log_weights: Tensor, log_outputs: Sequence[Tensor]) -> Tensor:
    """Returns `log Σ_l exp(log_weights[…, l] + log_outputs[l])`, the log of a mixture.

    Args:
        log_weights: Tensor of shape `(b, …, e)`, log-weights; −∞ is a weight of zero.
        log_outputs: `e` tensors of one shape `(b, …, u)`, log-probabilities.

    Returns:
        Tensor of shape `(b, …, u)`, in float32, or float64 where an input is.

    Example:
    >>> import numpy as np
    >>> from plait.ops import log_mixture
    >>> y = log_mixture(np.log([[0.5, 0.5]]), [np.log([[0.2]]), np.log([[0.6]])])
    >>> round(2.718281828 ** float(y[0, 0]), 4)
    0.4
    """
    log_weights = at_least_float32(log_weights)
    terms = [
        ops.add(expert_weight(log_weights, expert, len(output.shape)), at_least_float32(output))
        for expert, output in enumerate(log_outputs)
    ]
    return log_sum_exp(ops.stack(terms), axis=0)


def combine_masks(masks: Sequence[Mask]) -> Mask:
    """Returns where every given mask is true; `None` means no mask.

    Args:
        masks: Boolean tensors whose shapes are prefixes of one shape, or `None`.

    Returns:
        Boolean tensor `(b, …)` of the largest rank among the masks, or `None` when all are.

    Example:
    >>> import numpy as np
    >>> from plait.ops import combine_masks
    >>> both = combine_masks([np.array([True, True]), None, np.array([True, False])])
    >>> [bool(valid) for valid in both]
    [True, False]
    """
    present = [mask for mask in masks if mask is not None]
    if not present:
        return None
    rank = max(len(mask.shape) for mask in present)
    combined = None
    for mask in present:
        # Not a reshape: when a functional model is built, a mask has an unknown batch size.
        for _ in range(rank - len(mask.shape)):
            mask = ops.expand_dims(mask, -1)
        combined = mask if combined is None else ops.logical_and(combined, mask)
    return combined
