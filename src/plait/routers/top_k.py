"""The top-k router: only the k experts of the largest score count."""

import warnings
from typing import Any

import keras
from keras import ops

from plait.errors import message
from plait.ops import balance
from plait.ops.dispatch import capacity
from plait.ops.routing import Routing, top_k, within_capacity
from plait.routers.base import Router, check_not_negative, check_positive, row_count
from plait.typing import Count, Dtype, Mask, Shape, Tensor


@keras.saving.register_keras_serializable("plait")
class TopK(Router):
    """Keeps the k largest scores, with weights that are the softmax over those.

    `w_l = exp(s_l) / Σ_{j kept} exp(s_j)` for the kept, zero elsewhere (Shazeer et al. 2017).

    With a capacity, an expert takes at most `⌈capacity_factor · n · k / e⌉` of the `n` rows of a
    call, those where it weighs most; among equals the earlier row. What overflows has weight zero
    and is not run, the other weights stay as they are, and the dropped share of a training epoch is
    the metric `<router name>_dropped`. What a row gets then depends on the rows beside it, at
    inference too; without a capacity nothing is dropped, however skewed the load.

    Takes scores `(b, …, e)` and returns weights of the same shape.

    Args:
        k: How many experts each row keeps.
        capacity_factor: `None` for no limit, or a positive number, such as 1.25.
        renormalize: Whether the weights of the kept sum to one. `None` is True for `k > 1`, and
            False for `k=1`, where all weights would be one and the gate could not learn: the weight
            is then the probability among all experts (Fedus et al. 2021, eq. 2), below one.
        noise: Standard deviation of the Gaussian noise added to the scores in training.
        bias_update_rate: 0, or the step by which a bias that serves the selection only moves after
            every training step towards an even load (Wang et al. 2024, alg. 1).
        seed: Seed of the noise; its state is saved with the router, so that training resumes
            exactly.
        load_balance: See `Router`.
        importance: See `Router`.
        z_loss: See `Router`.
        from_logits: See `Router`.
        name: As in Keras.
        dtype: As in Keras.
        trainable: As in Keras.

    Raises:
        ValueError: If `k` is no integer in [1, e], or another argument is out of its range.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> weights = plait.routers.TopK(2)(np.log([[1.0, 4.0, 3.0, 1.0]]))
    >>> [round(float(w), 4) for w in weights[0]]
    [0.0, 0.5714, 0.4286, 0.0]

    References:
        Shazeer et al. (2017), Outrageously large neural networks, eq. 3 to 5.
        Wang et al. (2024), Auxiliary-loss-free load balancing strategy for mixture of experts.
    """

    sparse = True

    def __init__(
        self,
        k: int = 1,
        capacity_factor: float | None = None,
        *,
        renormalize: bool | None = None,
        noise: float = 0.0,
        bias_update_rate: float = 0.0,
        seed: int | None = None,
        load_balance: float = 0.0,
        importance: float = 0.0,
        z_loss: float = 0.0,
        from_logits: bool = True,
        name: str | None = None,
        dtype: Dtype | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(
            load_balance=load_balance,
            importance=importance,
            z_loss=z_loss,
            from_logits=from_logits,
            name=name,
            dtype=dtype,
            trainable=trainable,
        )
        self.k = _check_k(k)
        self.capacity_factor = capacity_factor
        if capacity_factor is not None:
            check_positive(self, "capacity_factor", capacity_factor)
        self.renormalize = renormalize
        self.noise = check_not_negative(self, "noise", noise)
        self.bias_update_rate = check_not_negative(self, "bias_update_rate", bias_update_rate)
        self.seed = seed
        self.bias: keras.Variable | None = None
        # The importance term, too, is a function of the weights.
        if k == 1 and renormalize and not (load_balance or z_loss):
            warnings.warn(
                message(
                    "The gate of TopK(k=1) gets no gradient from renormalized weights: all are one",
                    "k=1, renormalize=True, load_balance=0.0, z_loss=0.0",
                    "Leave `renormalize` at None, or set load_balance=0.01",
                ),
                stacklevel=2,
            )
        if self.noise:
            self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Shape) -> None:
        """Creates the selection bias and the count of what is dropped, where there are any."""
        super().build(input_shape)
        _check_k(self.k, self.num_experts)
        if self.bias_update_rate:
            self.bias = self.add_state("bias", (self.num_experts,))
        if self.capacity_factor is not None:
            self.track("dropped")

    def select(self, logits: Tensor, training: bool) -> Routing:
        """The k largest scores are chosen."""
        if self.noise and training:
            logits = logits + keras.random.normal(
                ops.shape(logits), stddev=self.noise, dtype=logits.dtype, seed=self.seed_generator
            )
        bias = None if self.bias is None else self.bias.value
        renormalize = self.k > 1 if self.renormalize is None else bool(self.renormalize)
        return top_k(logits, self.k, bias, renormalize)

    def balance(self, logits: Tensor, routing: Routing, mask: Mask) -> None:
        """Adds the balance terms, and moves the selection bias."""
        super().balance(logits, routing, mask)
        if self.bias is not None:
            load = balance.expert_load(routing, mask)
            self.bias.assign(balance.moved_bias(self.bias.value, load, self.bias_update_rate))

    def limit(self, routing: Routing, training: bool, mask: Mask) -> Routing:
        """Drops what overflows, and counts it in training."""
        if self.capacity_factor is None:
            return routing
        num_rows = row_count(routing.weights)
        limited, overflowed = within_capacity(
            routing, self.capacity(num_rows, self.num_experts), mask
        )
        if training:
            rows = num_rows if mask is None else ops.sum(ops.cast(mask, "float32"))
            choices = ops.maximum(ops.cast(rows * self.k, "float32"), 1.0)
            share = ops.sum(ops.cast(overflowed, "float32")) / choices
            self.record("dropped", share, choices)
        return limited

    def capacity(self, num_rows: Count, num_experts: int) -> Count | None:
        """Returns `⌈capacity_factor · n · k / e⌉`, at most `n`; `None` without a capacity."""
        if self.capacity_factor is None:
            return None
        return capacity(num_rows, self.k, num_experts, self.capacity_factor)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "k": self.k,
            "capacity_factor": self.capacity_factor,
            "renormalize": self.renormalize,
            "noise": self.noise,
            "bias_update_rate": self.bias_update_rate,
            "seed": self.seed,
        }


def _check_k(k: int, num_experts: int | None = None) -> int:
    """Returns `k` when it is an integer that fits, and raises `ValueError` otherwise."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(
            message(
                "`k` of TopK must be an integer of at least 1", f"k={k!r}", "Use k=1 for one expert"
            )
        )
    if num_experts is not None and k > num_experts:
        raise ValueError(
            message(
                f"`k` of TopK must be an integer in [1, num_experts={num_experts}]",
                f"k={k}",
                f"Use k<={num_experts} or raise num_experts",
            )
        )
    return k
