"""From scores to mixing weights: the pure functions behind the routers."""

from typing import Any, NamedTuple

from keras import ops

from plait.ops.combine import at_least_float32
from plait.ops.dispatch import keep_within_capacity


class Routing(NamedTuple):
    """What a router decides.

    Attributes:
        weights: Mixing weights of shape `(b, …, e)`, zero for experts that were not chosen.
        indices: The chosen experts of shape `(b, …, k)`, int32; `num_experts` in a slot stands
            for nobody. `None` where every expert counts.
    """

    weights: Any
    indices: Any = None


def _below_top(logits: Any) -> Any:
    """Returns the logits less the largest of their row: no exponential overflows.

    Infinite scores are first brought to the largest number, as ∞ − ∞ would be NaN.
    """
    logits = ops.clip(logits, -3e38, 3e38)
    return logits - ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))


def softmax(logits: Any, temperature: Any = 1.0) -> Any:
    """Returns `exp(s_l / T) / Σ_j exp(s_j / T)` over the last axis, in float32 or better.

    Args:
        logits: Tensor of shape `(b, …, e)`.
        temperature: Positive number or scalar tensor; below one sharpens, above one flattens.

    Example:
    >>> import numpy as np
    >>> from plait.ops import softmax
    >>> [round(float(w), 4) for w in softmax(np.log([[1.0, 3.0]]))[0]]
    [0.25, 0.75]
    """
    logits = at_least_float32(logits)
    scores = _below_top(logits) / ops.cast(temperature, logits.dtype)
    if scores.shape[-1] == 1:  # Keras warns of a softmax over one number
        powers = ops.exp(scores)
        return powers / powers
    return ops.softmax(scores, axis=-1)


def log_probabilities(probabilities: Any) -> Any:
    """Returns logits whose softmax is `probabilities`, finite where one of them is zero.

    Args:
        probabilities: Tensor of shape `(b, …, e)`, not negative.
    """
    return ops.log(ops.maximum(at_least_float32(probabilities), 1e-30))


def chosen(indices: Any, num_experts: int) -> Any:
    """Returns which experts the indices name.

    Args:
        indices: int32 `(b, …, k)`, in `[0, e]`; `e` stands for nobody.
        num_experts: `e`, an integer.

    Returns:
        bool `(b, …, e)`.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import chosen
    >>> [bool(v) for v in chosen(np.array([[2, 0, 3]]), 3)[0]]
    [True, False, True]
    """
    experts = ops.arange(num_experts, dtype="int32")
    indices = ops.cast(ops.expand_dims(indices, -1), "int32")
    return ops.any(ops.equal(indices, experts), axis=-2)


def masked_softmax(logits: Any, keep: Any) -> Any:
    """Returns the softmax over the kept entries of the last axis, and zero elsewhere.

    Args:
        logits: Tensor of shape `(b, …, e)`.
        keep: bool of the same shape, true at least once in each row.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import masked_softmax
    >>> weights = masked_softmax(np.log([[1.0, 3.0, 4.0]]), np.array([[True, True, False]]))
    >>> [round(float(w), 4) for w in weights[0]]
    [0.25, 0.75, 0.0]
    """
    logits, keep = at_least_float32(logits), ops.cast(keep, "bool")
    kept = _below_top(ops.where(keep, logits, ops.full_like(logits, -float("inf"))))
    # Zero in place of numbers far below: their exponential is slow on some backends.
    powers = ops.exp(ops.where(keep, kept, ops.zeros_like(kept)))
    powers = ops.where(keep, powers, ops.zeros_like(powers))
    return powers / ops.sum(powers, axis=-1, keepdims=True)


def top_k(logits: Any, k: int, bias: Any = None, renormalize: bool = True) -> Routing:
    """Keeps the k largest scores of each row and takes the softmax over those.

    `w_l = exp(s_l) / Σ_{j kept} exp(s_j)` for the kept, zero elsewhere (Shazeer et al. 2017,
    eq. 3 and 5). The gradient flows through the kept scores.

    Args:
        logits: Tensor of shape `(b, …, e)`.
        k: How many to keep, in `[1, e]`.
        bias: `None`, or a tensor `(e,)` added to the scores for the selection only (Wang et al.
            2024, eq. 3); the weights come from the unbiased scores.
        renormalize: Whether the sum over `j` runs over the kept; otherwise over all experts
            (Fedus et al. 2021, eq. 1 and 2).

    Returns:
        `Routing` with indices `(b, …, k)`, the largest first.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import top_k
    >>> weights, indices = top_k(np.log([[1.0, 4.0, 3.0, 1.0]]), 2)
    >>> [round(float(w), 4) for w in weights[0]], [int(i) for i in indices[0]]
    ([0.0, 0.5714, 0.4286, 0.0], [1, 2])
    """
    logits = at_least_float32(logits)
    order = logits if bias is None else logits + ops.cast(bias, logits.dtype)
    indices = ops.cast(ops.top_k(ops.stop_gradient(order), k)[1], "int32")
    keep = chosen(indices, logits.shape[-1])
    if renormalize:
        return Routing(masked_softmax(logits, keep), indices)
    probabilities = softmax(logits)
    return Routing(ops.where(keep, probabilities, ops.zeros_like(probabilities)), indices)


def within_capacity(routing: Routing, capacity: Any, mask: Any = None) -> tuple[Routing, Any]:
    """Drops the choices by which an expert has more rows than its capacity.

    An expert keeps its choices of the largest weight; among equals the earlier row stays. A
    dropped choice has weight zero and index `num_experts`; the weights of the others stay as
    they are.

    Args:
        routing: Weights `(b, …, e)` and indices `(b, …, k)`.
        capacity: How many rows one expert takes, over all routed axes together.
        mask: `None` or bool `(b, …)`; a row where it is false takes no room and is not run.

    Returns:
        The remaining `Routing`, and bool `(b, …, k)`: which choices overflowed, those of masked
        rows not among them.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import top_k, within_capacity
    >>> routing, overflowed = within_capacity(top_k(np.array([[2.0, 1.0], [3.0, 1.0]]), 1), 1)
    >>> [int(i) for i in routing.indices[:, 0]], [bool(o) for o in overflowed[:, 0]]
    ([0, 2], [False, True])
    """
    weights, indices = routing
    num_experts = weights.shape[-1]
    nobody = ops.full_like(indices, num_experts)
    if mask is not None:
        indices = ops.where(ops.expand_dims(mask, -1), indices, nobody)
    shape = ops.shape(indices)
    rows = ops.reshape(indices, (-1, shape[-1]))
    flat = ops.reshape(ops.stop_gradient(weights), (-1, num_experts))
    priority = ops.take_along_axis(flat, ops.minimum(rows, num_experts - 1), axis=-1)
    kept = ops.reshape(keep_within_capacity(rows, priority, num_experts, capacity), shape)
    overflowed = ops.logical_and(ops.logical_not(kept), indices < num_experts)
    indices = ops.where(kept, indices, nobody)
    left = ops.where(chosen(indices, num_experts), weights, ops.zeros_like(weights))
    return Routing(left, indices), overflowed


def expert_choice(probabilities: Any, capacity: Any, mask: Any = None) -> Routing:
    """Lets each expert pick its `capacity` rows of the largest probability.

    `w_il = p_il` where expert `l` picked row `i`, zero elsewhere (Zhou et al. 2022, eq. 2 and 3).
    Among equals the earlier row is picked. A row may be picked by many experts, or by none.

    Args:
        probabilities: Tensor of shape `(b, …, e)`, the softmax of the scores over the experts.
        capacity: How many rows one expert picks, over all routed axes together.
        mask: `None` or bool `(b, …)`; a row where it is false is not picked.

    Returns:
        `Routing` with indices `(b, …, e)`: slot `l` holds `l` or, where that expert did not pick
        the row, `e`.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import expert_choice
    >>> weights, indices = expert_choice(np.array([[0.9, 0.1], [0.8, 0.2]]), 1)
    >>> [[round(float(w), 4) for w in row] for row in weights]
    [[0.9, 0.0], [0.0, 0.2]]
    """
    probabilities = at_least_float32(probabilities)
    shape = ops.shape(probabilities)
    num_experts = shape[-1]
    score = ops.stop_gradient(ops.reshape(probabilities, (-1, num_experts)))
    if mask is not None:
        score = ops.where(ops.reshape(mask, (-1, 1)), score, ops.full_like(score, -1.0))
    bar = ops.transpose(ops.top_k(ops.transpose(score), capacity)[0][:, -1:])
    above, level = score > bar, score == bar
    room = capacity - ops.sum(ops.cast(above, "int32"), axis=0)
    early = ops.cumsum(ops.cast(level, "int32"), axis=0) <= room
    picked = ops.logical_or(above, ops.logical_and(level, early))
    picked = ops.reshape(ops.logical_and(picked, score >= 0), shape)
    experts = ops.broadcast_to(ops.arange(num_experts, dtype="int32"), shape)
    return Routing(
        ops.where(picked, probabilities, ops.zeros_like(probabilities)),
        ops.where(picked, experts, ops.full_like(experts, num_experts)),
    )


def straight_through(probabilities: Any) -> Routing:
    """Returns the one-hot of the largest, with the gradient of the probabilities themselves.

    Args:
        probabilities: Tensor of shape `(b, …, e)`.

    Returns:
        `Routing` with indices `(b, …, 1)`.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import straight_through
    >>> [float(w) for w in straight_through(np.array([[0.2, 0.5, 0.3]])).weights[0]]
    [0.0, 1.0, 0.0]
    """
    probabilities = at_least_float32(probabilities)
    largest = ops.cast(ops.argmax(ops.stop_gradient(probabilities), axis=-1), "int32")
    hard = ops.one_hot(largest, probabilities.shape[-1], dtype=probabilities.dtype)
    # A sum that is exactly zero carries the gradient, so that the one-hot stays exact.
    carrier = probabilities - ops.stop_gradient(probabilities)
    return Routing(hard + carrier, ops.expand_dims(largest, -1))


def sparsemax(logits: Any) -> Any:
    """Returns the projection of the scores onto the simplex: `w = max(s − τ, 0)`.

    `τ = (Σ_{j in S} s_j − 1) / |S|` over the support `S` (Martins and Astudillo 2016, alg. 1).
    The support is found by sorting; given the support, `τ` is a plain mean, and so is its
    gradient (ibid., eq. 9).

    Args:
        logits: Tensor of shape `(b, …, e)`.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import sparsemax
    >>> [round(float(w), 4) for w in sparsemax(np.array([[1.0, 0.5, -1.0]]))[0]]
    [0.75, 0.25, 0.0]
    """
    # Scores further than one below the top have weight zero: cut there, no sum overflows.
    logits = ops.maximum(_below_top(at_least_float32(logits)), -2.0)
    ordered, count = _descending(logits)
    inside = 1.0 + count * ordered > ops.cumsum(ordered, axis=-1)
    support, size = _support(logits, ordered, inside)
    total = ops.sum(ops.where(support, logits, ops.zeros_like(logits)), axis=-1, keepdims=True)
    return ops.where(support, logits - (total - 1.0) / size, ops.zeros_like(logits))


def entmax15(logits: Any) -> Any:
    """Returns the 1.5-entmax of the scores: `w = max(s / 2 − τ, 0)²`.

    `τ = M − √((1 − Σ_{j in S} (s_j / 2 − M)²) / |S|)` with `M` the mean of `s / 2` over the
    support `S` (Peters et al. 2019, alg. 2). Sparse like sparsemax, with smooth edges.

    Args:
        logits: Tensor of shape `(b, …, e)`.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import entmax15
    >>> [round(float(w), 4) for w in entmax15(np.array([[1.0, 1.0, -4.0]]))[0]]
    [0.5, 0.5, 0.0]
    """
    # Scores further than two below the top have weight zero.
    half = ops.maximum(_below_top(at_least_float32(logits)), -4.0) / 2.0
    ordered, count = _descending(half)
    mean = ops.cumsum(ordered, axis=-1) / count
    spread = ops.cumsum(ordered * ordered, axis=-1) - count * mean * mean
    inside = mean - ops.sqrt(ops.maximum((1.0 - spread) / count, 0.0)) <= ordered
    support, size = _support(half, ordered, inside)
    zeros = ops.zeros_like(half)
    mean = ops.sum(ops.where(support, half, zeros), axis=-1, keepdims=True) / size
    apart = ops.where(support, half - mean, zeros)
    left = (1.0 - ops.sum(apart * apart, axis=-1, keepdims=True)) / size
    # On a support `left` is at least 1 / |S|²; the bound only guards the root against rounding.
    threshold = mean - ops.sqrt(ops.maximum(left, 1e-12))
    return ops.where(support, ops.square(ops.maximum(half - threshold, 0.0)), zeros)


def _descending(scores: Any) -> tuple[Any, Any]:
    """Returns the scores, largest first, outside the gradient; and 1, 2, …, e."""
    ordered = ops.flip(ops.sort(ops.stop_gradient(scores), axis=-1), axis=-1)
    return ordered, ops.cast(ops.arange(1, scores.shape[-1] + 1), scores.dtype)


def _support(scores: Any, ordered: Any, inside: Any) -> tuple[Any, Any]:
    """Returns which scores are at least the last ordered one inside, and how many they are."""
    limit = ops.where(inside, ordered, ops.full_like(ordered, float("inf")))
    support = ops.stop_gradient(scores) >= ops.min(limit, axis=-1, keepdims=True)
    return support, ops.sum(ops.cast(support, scores.dtype), axis=-1, keepdims=True)
