"""From scores to mixing weights: the pure functions behind the routers.

Three rules hold for all of them:

* A score of −∞, or of the lowest finite number of its dtype, *excludes* its expert: that expert has
  weight zero and is not chosen. A row that excludes every expert has weights of zero. The gradient
  of such a score is zero.
* A score of NaN makes every weight of its row NaN, and of no other row.
* No constant in the graph is infinite or NaN, as these do not survive an export to ONNX.
"""

from typing import NamedTuple

from keras import ops

from plait.ops.combine import at_least_float32, lowest
from plait.ops.dispatch import keep_within_capacity
from plait.ops.tracing import runs_every_expert
from plait.typing import Count, Mask, Tensor


class Routing(NamedTuple):
    """What a router decides.

    Attributes:
        weights: Mixing weights of shape `(b, …, e)`, zero for experts that were not chosen.
        indices: The chosen experts of shape `(b, …, k)`, int32. Index `e`, one past the last
            expert, marks an empty slot. `None` where every expert counts.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> routing = plait.ops.Routing(np.array([[0.0, 1.0]]), np.array([[1]], "int32"))
    >>> routing.weights.shape, routing.indices.shape
    ((1, 2), (1, 1))
    """

    weights: Tensor
    indices: Tensor | None = None


def excluded(logits: Tensor) -> Tensor:
    """Returns which experts a score of −∞, or of the lowest finite number, excludes.

    Args:
        logits: Tensor of shape `(b, …, e)`, in float32 or better.

    Returns:
        bool `(b, …, e)`.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import excluded
    >>> [bool(v) for v in excluded(np.array([-np.inf, -1e30, np.nan]))]
    [True, False, False]
    """
    logits = at_least_float32(logits)
    # Not `less_equal`: on TensorFlow it takes a number for a float32.
    return logits <= lowest(logits)


def _below_top(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logits less the largest of their row, and which are excluded.

    No exponential of the result overflows; it is zero where an expert is excluded. Scores of +∞ are
    brought to the largest number first, as ∞ − ∞ would be NaN. Not by `clip`, `minimum` or
    `maximum`: what these make of NaN depends on the backend, while comparisons are false.
    """
    out, low = excluded(logits), lowest(logits)
    logits = ops.where(logits > -low, -low, logits)
    top = ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))
    return ops.where(out, 0.0, logits - ops.where(top < low, low, top)), out


def _nan_apart(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Returns scores without NaN, and what to add to the weights in the end.

    Returns:
        The scores `(b, …, e)`, zeros in rows with a NaN; and `(b, …, 1)`, NaN in these rows and
        zero in the others.
    """
    spoiled = ops.any(ops.isnan(scores), axis=-1, keepdims=True)
    nan = _zero_unless(spoiled, ops.sum(scores, axis=-1, keepdims=True))
    return ops.where(spoiled, 0.0, scores), nan


def softmax(logits: Tensor, temperature: Tensor = 1.0) -> Tensor:
    """Returns `exp(s_l / T) / Σ_j exp(s_j / T)` over the last axis, in float32 or better.

    Args:
        logits: Tensor of shape `(b, …, e)`.
        temperature: Positive number or scalar tensor; below one sharpens, above one flattens.

    Example:
    >>> import numpy as np
    >>> from plait.ops import softmax
    >>> [round(float(w), 4) for w in softmax(np.log([[1.0, 3.0]]))[0]]
    [0.25, 0.75]
    >>> [float(w) for w in softmax(np.array([[-np.inf, -np.inf]]))[0]]
    [0.0, 0.0]
    """
    logits = at_least_float32(logits)
    below, out = _below_top(logits)
    powers = ops.where(out, 0.0, ops.exp(below / ops.cast(temperature, logits.dtype)))
    total = ops.sum(powers, axis=-1, keepdims=True)
    return powers / ops.where(ops.equal(total, 0), 1.0, total)


def log_probabilities(probabilities: Tensor) -> Tensor:
    """Returns logits whose softmax is `probabilities`; a probability of zero excludes its expert.

    A positive number below 1e-30 counts as 1e-30.

    Args:
        probabilities: Tensor of shape `(b, …, e)`, not negative.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import excluded, log_probabilities
    >>> [bool(v) for v in excluded(log_probabilities(np.array([1.0, 0.0])))]
    [False, True]
    """
    probabilities = at_least_float32(probabilities)
    logs = ops.log(ops.where(probabilities < 1e-30, 1e-30, probabilities))
    return ops.where(probabilities <= 0, lowest(logs), logs)


def chosen(indices: Tensor, num_experts: int) -> Tensor:
    """Returns which experts the indices name.

    Args:
        indices: int32 `(b, …, k)`, in `[0, e]`; index `e` marks an empty slot.
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


def masked_softmax(logits: Tensor, keep: Tensor) -> Tensor:
    """Returns the softmax over the kept entries of the last axis, and zero elsewhere.

    Args:
        logits: Tensor of shape `(b, …, e)`.
        keep: bool of the same shape. A row where it is false throughout has weights of zero.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import masked_softmax
    >>> weights = masked_softmax(np.log([[1.0, 3.0, 4.0]]), np.array([[True, True, False]]))
    >>> [round(float(w), 4) for w in weights[0]]
    [0.25, 0.75, 0.0]
    """
    logits = at_least_float32(logits)
    return softmax(ops.where(keep, logits, lowest(logits)))


def top_k(logits: Tensor, k: int, bias: Tensor | None = None, renormalize: bool = True) -> Routing:
    """Keeps the k largest scores of each row and takes the softmax over those.

    `w_l = exp(s_l) / Σ_{j kept} exp(s_j)` for the kept, zero elsewhere (Shazeer et al. 2017,
    eq. 3 and 5). The gradient flows through the kept scores.

    Args:
        logits: Tensor of shape `(b, …, e)`.
        k: How many to keep, in `[1, e]`.
        bias: `None`, or a finite tensor `(e,)` added to the scores for the selection only (Wang et
            al. 2024, eq. 3); the weights come from the unbiased scores.
        renormalize: Whether the sum over `j` runs over the kept; otherwise over all experts
            (Fedus et al. 2021, eq. 1 and 2).

    Returns:
        `Routing` with indices `(b, …, k)`, the largest first. Where fewer than `k` experts are not
        excluded, the last slots are empty. Which experts a row with NaN chooses is not defined.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import top_k
    >>> weights, indices = top_k(np.log([[1.0, 4.0, 3.0, 1.0]]), 2)
    >>> [round(float(w), 4) for w in weights[0]], [int(i) for i in indices[0]]
    ([0.0, 0.5714, 0.4286, 0.0], [1, 2])
    >>> [int(i) for i in top_k(np.array([[-np.inf, 1.0, -np.inf]]), 2).indices[0]]
    [1, 3]
    """
    logits, nan = _nan_apart(at_least_float32(logits))
    num_experts = logits.shape[-1]
    order = logits if bias is None else logits + ops.cast(bias, logits.dtype)
    largest, indices = _largest(ops.stop_gradient(order), k)
    indices = ops.where(excluded(largest), num_experts, ops.cast(indices, "int32"))
    keep = chosen(indices, num_experts)
    weights = masked_softmax(logits, keep) if renormalize else _zero_unless(keep, softmax(logits))
    return Routing(weights + nan, indices)


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest scores of each row and their positions; among equals the first."""
    if not runs_every_expert():
        return ops.top_k(scores, k)
    # Of sorts and of `top_k` some runtimes take the one, some the other; comparisons all take.
    experts = ops.arange(scores.shape[-1], dtype="int32")
    left, right = ops.expand_dims(scores, -1), ops.expand_dims(scores, -2)
    earlier = ops.expand_dims(experts, -1) > experts
    ahead = ops.logical_or(right > left, ops.logical_and(ops.equal(right, left), earlier))
    rank = ops.expand_dims(ops.sum(ops.cast(ahead, "int32"), axis=-1), -2)
    placed = ops.equal(rank, ops.expand_dims(ops.arange(k, dtype="int32"), -1))
    largest = ops.sum(ops.where(placed, ops.expand_dims(scores, -2), 0.0), axis=-1)
    return largest, ops.sum(ops.where(placed, experts, 0), axis=-1)


def _weights_of(weights: Tensor, indices: Tensor) -> Tensor:
    """Returns the weight `(n, k)` of each choice; of an empty slot any number."""
    num_experts = weights.shape[-1]
    if not runs_every_expert():
        return ops.take_along_axis(weights, ops.minimum(indices, num_experts - 1), axis=-1)
    named = ops.equal(ops.expand_dims(indices, -1), ops.arange(num_experts, dtype="int32"))
    return ops.sum(ops.where(named, ops.expand_dims(weights, -2), 0.0), axis=-1)


def within_capacity(routing: Routing, capacity: Count, mask: Mask = None) -> tuple[Routing, Tensor]:
    """Drops the choices by which an expert has more rows than its capacity (Lepikhin et al. 2021).

    An expert keeps its choices of the largest weight; among equals the earlier row stays, and rows
    of NaN come last. A dropped choice leaves an empty slot and weight zero; the weights of the
    others stay as they are.

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
    (weights, nan), indices = _nan_apart(routing.weights), routing.indices
    num_experts = weights.shape[-1]
    if mask is not None:
        mask = ops.expand_dims(mask, -1)
        indices, nan = ops.where(mask, indices, num_experts), _zero_unless(mask, nan)
    shape = ops.shape(indices)
    rows = ops.reshape(indices, (-1, shape[-1]))
    flat = ops.reshape(ops.stop_gradient(weights), (-1, num_experts))
    priority = _weights_of(flat, rows)
    kept = ops.reshape(keep_within_capacity(rows, priority, num_experts, capacity), shape)
    overflowed = ops.logical_and(ops.logical_not(kept), indices < num_experts)
    indices = ops.where(kept, indices, num_experts)
    return Routing(_zero_unless(chosen(indices, num_experts), weights) + nan, indices), overflowed


def expert_choice(probabilities: Tensor, capacity: Count, mask: Mask = None) -> Routing:
    """Lets each expert pick its `capacity` rows of the largest probability.

    `w_il = p_il` where expert `l` picked row `i`, zero elsewhere (Zhou et al. 2022, eq. 2 and 3).
    Among equals the earlier row is picked. A row may be picked by many experts, or by none. An
    expert picks no row whose probability is zero, and none with NaN.

    Args:
        probabilities: Tensor of shape `(b, …, e)`, the softmax of the scores over the experts.
        capacity: How many rows one expert picks, over all routed axes together.
        mask: `None` or bool `(b, …)`; a row where it is false is not picked.

    Returns:
        `Routing` with indices `(b, …, e)`: slot `l` holds `l` or, where that expert did not pick
        the row, is empty.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import expert_choice
    >>> weights, indices = expert_choice(np.array([[0.9, 0.1], [0.8, 0.2]]), 1)
    >>> [[round(float(w), 4) for w in row] for row in weights]
    [[0.9, 0.0], [0.0, 0.2]]
    """
    probabilities, nan = _nan_apart(at_least_float32(probabilities))
    if mask is not None:
        mask = ops.expand_dims(mask, -1)
        probabilities, nan = _zero_unless(mask, probabilities), _zero_unless(mask, nan)
    shape = ops.shape(probabilities)
    num_experts = shape[-1]
    score = ops.stop_gradient(ops.reshape(probabilities, (-1, num_experts)))
    picked = ops.reshape(ops.logical_and(_first(score, capacity), score > 0), shape)
    experts = ops.where(picked, ops.arange(num_experts, dtype="int32"), num_experts)
    return Routing(_zero_unless(picked, probabilities) + nan, experts)


def _first(scores: Tensor, count: Count) -> Tensor:
    """Returns which are the `count` largest scores of each column; among equals the first."""
    if runs_every_expert():
        # All with all: few runtimes take a `top_k` whose `k` they learn when they run.
        place = ops.cumsum(ops.ones_like(scores[:, :1], dtype="int32"), axis=0)
        other, other_place = scores[None], ops.transpose(place)[..., None]
        level = ops.logical_and(other == scores[:, None], other_place < place[:, None])
        ahead = ops.logical_or(other > scores[:, None], level)
        return ops.sum(ops.cast(ahead, "int32"), axis=1) < count
    bar = ops.transpose(ops.top_k(ops.transpose(scores), count)[0][:, -1:])
    above, level = scores > bar, scores == bar
    room = count - ops.sum(ops.cast(above, "int32"), axis=0)
    early = ops.cumsum(ops.cast(level, "int32"), axis=0) <= room
    return ops.logical_or(above, ops.logical_and(level, early))


def straight_through(probabilities: Tensor) -> Routing:
    """Returns the one-hot of the largest, with the gradient of the probabilities themselves.

    The straight-through estimator (Bengio et al. 2013).

    Args:
        probabilities: Tensor of shape `(b, …, e)`.

    Returns:
        `Routing` with indices `(b, …, 1)`; a row of zeros has an empty slot and weights of zero.

    Example:
    >>> import numpy as np
    >>> from plait.ops.routing import straight_through
    >>> [float(w) for w in straight_through(np.array([[0.2, 0.5, 0.3]])).weights[0]]
    [0.0, 1.0, 0.0]
    """
    probabilities = at_least_float32(probabilities)
    constant, num_experts = ops.stop_gradient(probabilities), probabilities.shape[-1]
    empty = ops.equal(ops.sum(constant, axis=-1), 0)
    largest = ops.where(empty, num_experts, ops.cast(ops.argmax(constant, axis=-1), "int32"))
    indices = ops.expand_dims(largest, -1)
    hard = ops.cast(chosen(indices, num_experts), probabilities.dtype)
    # A sum that is exactly zero carries the gradient, so that the one-hot stays exact.
    return Routing(hard + (probabilities - constant), indices)


def sparsemax(logits: Tensor) -> Tensor:
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
    logits, nan = _nan_apart(at_least_float32(logits))
    below, out = _below_top(logits)
    # Scores further than one below the top have weight zero: cut there, no sum overflows.
    below = ops.where(out, -2.0, ops.maximum(below, -2.0))
    ordered, count = _descending(below)
    inside = 1.0 + count * ordered > ops.cumsum(ordered, axis=-1)
    support, size = _support(below, ordered, inside)
    total = ops.sum(_zero_unless(support, below), axis=-1, keepdims=True)
    support = ops.logical_and(support, ops.logical_not(out))
    return _zero_unless(support, below - (total - 1.0) / size) + nan


def entmax15(logits: Tensor) -> Tensor:
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
    logits, nan = _nan_apart(at_least_float32(logits))
    below, out = _below_top(logits)
    # Scores further than two below the top have weight zero.
    half = ops.where(out, -2.0, ops.maximum(below, -4.0) / 2.0)
    ordered, count = _descending(half)
    mean = ops.cumsum(ordered, axis=-1) / count
    spread = ops.cumsum(ordered * ordered, axis=-1) - count * mean * mean
    inside = mean - ops.sqrt(ops.maximum((1.0 - spread) / count, 0.0)) <= ordered
    support, size = _support(half, ordered, inside)
    mean = ops.sum(_zero_unless(support, half), axis=-1, keepdims=True) / size
    apart = _zero_unless(support, half - mean)
    left = (1.0 - ops.sum(apart * apart, axis=-1, keepdims=True)) / size
    # On a support `left` is at least 1 / |S|²; the bound only guards the root against rounding.
    threshold = mean - ops.sqrt(ops.maximum(left, 1e-12))
    support = ops.logical_and(support, ops.logical_not(out))
    return _zero_unless(support, ops.square(ops.maximum(half - threshold, 0.0))) + nan


def _descending(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the scores, largest first, outside the gradient; and 1, 2, …, e."""
    ordered = ops.flip(ops.sort(ops.stop_gradient(scores), axis=-1), axis=-1)
    return ordered, ops.cast(ops.arange(1, scores.shape[-1] + 1), scores.dtype)


def _support(scores: Tensor, ordered: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which scores are at least the last ordered one inside, and how many they are."""
    limit = ops.where(inside, ordered, -lowest(ordered))
    support = ops.stop_gradient(scores) >= ops.min(limit, axis=-1, keepdims=True)
    return support, ops.sum(ops.cast(support, scores.dtype), axis=-1, keepdims=True)


def _zero_unless(condition: Tensor, tensor: Tensor) -> Tensor:
    """Returns the tensor where the condition holds, and zero elsewhere."""
    return ops.where(condition, tensor, ops.zeros_like(tensor))
