"""Log-densities, element by element, finite in value and gradient at the extremes."""

import math
from typing import Any

from keras import ops

from plait.ops.combine import at_least_float32, log_sum_exp
from plait.typing import Tensor

# Below this a probability or rate is taken for this; its logarithm has a finite gradient.
SMALLEST = 1e-20
# Next to one, float32 tells probabilities apart by no less than this.
NEXT_TO_ONE = 1e-7
# The smallest scale of a Gaussian.
_LEAST_SCALE = 1e-6
# The largest rate: its logarithm is 80.
_LARGEST = math.exp(80.0)
# From this count on Stirling's series, as far as it goes here, is exact to 1e-8.
_MANY = 4.0


def gaussian(y: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Returns `log N(y | mean, scale²) = −z² / 2 − log scale − log(2π) / 2`.

    Here `z = (y − mean) / scale`. The scale is taken for at least 1e-6, `|y − mean|` for at most
    1e20 and `|z|` for at most 1e15.

    Args:
        y: Tensor.
        mean: Tensor that broadcasts with `y`.
        log_scale: Tensor that broadcasts with `y`.

    Example:
    >>> from plait.ops.likelihood import gaussian
    >>> round(float(gaussian(0.0, 1.0, 0.0)), 4)
    -1.4189
    """
    y, mean = at_least_float32(y), at_least_float32(mean)
    log_scale = ops.clip(at_least_float32(log_scale), math.log(_LEAST_SCALE), 60.0)
    difference = ops.clip(y - mean, -1e20, 1e20)
    z = ops.clip(difference * ops.exp(-log_scale), -1e15, 1e15)
    return -0.5 * ops.square(z) - log_scale - 0.5 * math.log(2 * math.pi)


def scale_of(raw: Tensor) -> Tensor:
    """Returns the scale `softplus(r) + 1e-6` that a network's output `r` stands for.

    Args:
        raw: Tensor, in float32 or better.

    Example:
    >>> import numpy as np
    >>> from plait.ops.likelihood import scale_of
    >>> round(float(scale_of(np.float32(0.0))), 4)
    0.6931
    """
    return ops.softplus(raw) + _LEAST_SCALE


def raw_of(scale: Tensor) -> Tensor:
    """Returns the output whose scale it is: the inverse of `scale_of`.

    Of a scale of 1e-6 and below it is about −30, with a gradient of zero.

    Args:
        scale: Tensor, positive, in float32 or better.

    Example:
    >>> import numpy as np
    >>> from plait.ops.likelihood import raw_of, scale_of
    >>> round(float(raw_of(scale_of(np.float32(-5.0)))), 3)
    -5.0
    """
    # log(exp a − 1) = a + log(1 − exp −a), by its series where it is small: `expm1` has no operator
    # in ONNX, and Keras' `tanh` rounds to float32.
    above = _at_least(scale - _LEAST_SCALE, 1e-13)
    tail = ops.ones_like(above)
    for factor in (8, 7, 6, 5, 4, 3, 2):
        tail = 1.0 - above / factor * tail
    small = above < 0.1
    far = 1.0 - ops.exp(-ops.where(small, ops.ones_like(above), above))
    return above + ops.log(ops.where(small, above * tail, far))


def poisson(y: Tensor, log_rate: Any, rate: Any = None) -> Tensor:
    """Returns `log Poisson(y | rate) = y · log rate − rate − log y!`.

    Of many counts the terms are large and nearly cancel, so that these go by the deviance from the
    rate that fits best, `log Poisson(y | y) − D(y, rate)` (Loader 2000). The logarithm of the rate
    is taken for at most 80.

    Args:
        y: Tensor of counts, not negative.
        log_rate: Tensor that broadcasts with `y`.
        rate: Tensor like `log_rate`, where the rate itself is known, and so more exactly.

    Example:
    >>> from plait.ops.likelihood import poisson
    >>> round(float(poisson(2.0, 0.0)), 4)
    -1.6931

    References:
        Loader (2000), Fast and accurate computation of binomial probabilities.
    """
    y = at_least_float32(y)
    log_rate = ops.clip(at_least_float32(log_rate), -1e15, 80.0)
    rate = ops.exp(log_rate) if rate is None else ops.clip(at_least_float32(rate), 0.0, _LARGEST)
    few = ops.clip(y, 0.0, _MANY)
    # 0 · log 0 is 0: no count where the rate is nil.
    product = ops.where(few > 0, few * log_rate, ops.zeros_like(few * log_rate))
    many = _at_least(y, _MANY)
    best = -_stirling_error(many) - 0.5 * ops.log(2 * math.pi * many)
    return ops.where(
        y < _MANY,
        product - rate - log_factorial(few),
        best - _poisson_deviance(many, rate, log_rate),
    )


def _poisson_deviance(y: Tensor, rate: Any, log_rate: Any) -> Tensor:
    """Returns `D(y, rate) = y log(y / rate) + rate − y`, exact to rounding where it is small.

    Near the rate, with `v = (y − rate) / (y + rate)`, by `log(y / rate) = 2 Σ_j v^(2j+1) / (2j+1)`.
    """
    difference = y - rate
    v = difference / (y + rate)
    square, tail = v * v, 0.0
    for odd in (17, 15, 13, 11, 9, 7, 5, 3):
        tail = (tail + 1.0 / odd) * square
    near = difference * v + 2.0 * y * v * tail
    # The ratio loses less than two logarithms do, but has no gradient where the rate underflows.
    seen = rate > 1e-10
    ratio = ops.where(seen, rate, ops.ones_like(rate)) / y
    log_ratio = ops.where(seen, ops.log(ratio), log_rate - ops.log(y))
    return ops.where(ops.abs(v) < 0.2, near, -y * log_ratio - difference)


def log_factorial(y: Tensor) -> Tensor:
    """Returns `log Γ(y + 1)`, to 1e-6 relative to the larger of it and one.

    Stirling's series at `y + 8`, less the logarithms of the seven factors in between; counts
    carry no gradient.

    Example:
    >>> from plait.ops.likelihood import log_factorial
    >>> round(float(log_factorial(5.0)), 3)
    4.787
    """
    y = _at_least(ops.stop_gradient(at_least_float32(y)), 0.0)
    factors = ops.ones_like(y)
    for step in range(1, 7):
        factors = factors * (1.0 + step / (y + 1.0))
    # Γ(y + 8) = Γ(y + 1) · Π_{j=1..7} (y + j), each y + j as (y + 1) · (1 + (j − 1) / (y + 1)).
    x = y + 8.0
    lead = (x - 0.5) * ops.log(x) - x - 7.0 * ops.log(y + 1.0)
    return lead + _stirling_error(x) + 0.5 * math.log(2 * math.pi) - ops.log(factors)


def _stirling_error(x: Any) -> Tensor:
    """Returns `log Γ(x) − ((x − 1/2) log x − x + log(2π) / 2)` by its series, for `x ≥ 4`."""
    r = 1.0 / x
    s = r * r
    return r * (1.0 / 12.0 - s * (1.0 / 360.0 - s * (1.0 / 1260.0 - s / 1680.0)))


def _at_least(values: Tensor, smallest: float) -> Tensor:
    """Returns the larger of each value and `smallest`; Keras' `maximum` rounds to float32."""
    return ops.clip(values, smallest, float("inf"))


def bernoulli(y: Tensor, log_odds: Any) -> Tensor:
    """Returns `log Bernoulli(y | p) = y · s − log(1 + exp s)` for log-odds `s`.

    Args:
        y: Tensor of labels in [0, 1].
        log_odds: Tensor that broadcasts with `y`.

    Example:
    >>> from plait.ops.likelihood import bernoulli
    >>> round(float(bernoulli(1.0, 0.0)), 4)
    -0.6931
    """
    y = at_least_float32(y)
    log_odds = ops.clip(at_least_float32(log_odds), -1e15, 1e15)
    return y * log_odds - ops.softplus(log_odds)


def categorical(y: Tensor, log_probabilities: Any) -> Tensor:
    """Returns `log Categorical(y | p) = Σ_c y_c · log p_c` over the last axis.

    Args:
        y: Tensor of one-hot labels, or probabilities.
        log_probabilities: Tensor that broadcasts with `y`.

    Example:
    >>> import numpy as np
    >>> from plait.ops.likelihood import categorical
    >>> round(float(categorical(np.array([0.0, 1.0]), np.log([0.75, 0.25]))), 4)
    -1.3863
    """
    y, logs = at_least_float32(y), at_least_float32(log_probabilities)
    logs = ops.clip(logs, -1e30, 1e30)
    return ops.sum(ops.where(y > 0, y * logs, ops.zeros_like(y * logs)), axis=-1)


def safe_log(values: Tensor, smallest: float = SMALLEST) -> Tensor:
    """Returns the logarithm of the larger of a value and `smallest`."""
    return ops.log(_at_least(at_least_float32(values), smallest))


def log_weights(weights: Tensor) -> Tensor:
    """Returns log w, −∞ where a weight is zero, with a gradient that is zero there, not NaN.

    Args:
        weights: Tensor of shape `(b, …, e)`, not negative.
    """
    weights = at_least_float32(weights)
    logs = safe_log(weights, 1e-30)
    return ops.where(weights > 0, logs, ops.full_like(logs, -float("inf")))


def log_likelihood(weights: Tensor, log_densities: Tensor) -> Tensor:
    """Returns `log Σ_l w_l p_l` (Jacobs et al. 1991, eq. 1.3), in log space.

    A row of zero weights, such as a capacity leaves where it drops a row, has likelihood one.

    Args:
        weights: Tensor of shape `(b, …, e)`.
        log_densities: Tensor of shape `(e, b, …)`, finite.

    Returns:
        Tensor of shape `(b, …)`.

    Example:
    >>> import numpy as np
    >>> from plait.ops.likelihood import log_likelihood
    >>> value = log_likelihood(np.array([[0.5, 0.5]]), np.log([[0.2], [0.6]]))
    >>> round(float(value[0]), 4)
    -0.9163
    """
    # Not `+`: TensorFlow's own operators do not mix float32 and float64.
    joint = ops.add(ops.moveaxis(log_weights(weights), -1, 0), at_least_float32(log_densities))
    total = log_sum_exp(joint, axis=0)
    return ops.where(_weightless(weights), ops.zeros_like(total), total)


def posterior(weights: Tensor, log_densities: Tensor) -> Tensor:
    """Returns the responsibilities `h_l = w_l p_l / Σ_j w_j p_j`, zero in a row of zero weights.

    The posterior probability of each expert (Jordan and Jacobs 1994).

    Args:
        weights: Tensor of shape `(b, …, e)`.
        log_densities: Tensor of shape `(e, b, …)`, finite.

    Returns:
        Tensor of shape `(b, …, e)`.

    Example:
    >>> import numpy as np
    >>> from plait.ops.likelihood import posterior
    >>> h = posterior(np.array([[0.5, 0.5]]), np.log([[0.2], [0.6]]))
    >>> [round(float(v), 4) for v in h[0]]
    [0.25, 0.75]
    """
    joint = ops.add(log_weights(weights), ops.moveaxis(at_least_float32(log_densities), 0, -1))
    top = ops.max(joint, axis=-1, keepdims=True)
    powers = ops.exp(joint - ops.where(ops.isfinite(top), top, ops.zeros_like(top)))
    total = ops.sum(powers, axis=-1, keepdims=True)
    return powers / ops.where(total > 0, total, ops.ones_like(total))


def _weightless(weights: Tensor) -> Tensor:
    return ops.logical_not(ops.any(at_least_float32(weights) > 0, axis=-1))
