"""The top-k router: only the k experts of the largest score count."""

import math
from typing import Any

import keras
from keras import ops

from plait.errors import message
from plait.ops import balance
from plait.ops.dispatch import capacity
from plait.ops.routing import Routing, top_k, within_capacity
from plait.routers.base import Router, check_not_negative, check_positive


@keras.saving.register_keras_serializable("plait")
class TopK(Router):
    """Keeps the k largest scores, with weights that are the softmax over those.

    `w_l = exp(s_l) / Σ_{j kept} exp(s_j)` for the kept, zero elsewhere (Shazeer et al. 2017).

    With a capacity, an expert takes at most `⌈capacity_factor · n · k / e⌉` of the `n` rows of a
    call, those where it weighs most; among equals the earlier row. What overflows has weight zero
    and is not run, the other weights stay as they are, and the dropped share of a training epoch is
    the metric `<router name>_dropped`. What a row gets then depends on the rows beside it, at
    inference too; without a capacity nothing is dropped, however skewed the load.

    Args:
        k: How many experts each row keeps.
        capacity_factor: `None` for no limit, or a positive number, such as 1.25.
        renormalize: Whether the weights of the kept sum to one. With `k=1` they are then all one,
            and the gate learns from the balance terms only; False gives it the gradient of the
            plain softmax (Fedus et al. 2021), with weights that sum to less than one.
        noise: Standard deviation of the Gaussian noise added to the scores in training.
        bias_update_rate: 0, or the step by which a bias that serves the selection only moves after
            every training step towards an even load (Wang et al. 2024, alg. 1).
        seed: Seed of the noise; its state is saved with the router, so that training resumes
            exactly.
        **kwargs: `load_balance`, `importance`, `z_loss` and `from_logits` of `Router`; `name` and
            `dtype` of a Keras layer.

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
        renormalize: bool = True,
        noise: float = 0.0,
        bias_update_rate: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.k = _check_k(k)
        self.capacity_factor = capacity_factor
        if capacity_factor is not None:
            check_positive(self, "capacity_factor", capacity_factor)
        self.renormalize = renormalize
        self.noise = check_not_negative(self, "noise", noise)
        self.bias_update_rate = check_not_negative(self, "bias_update_rate", bias_update_rate)
        self.seed = seed
        self.bias: keras.Variable | None = None
        if self.noise:
            self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the selection bias and the count of what is dropped, where there are any."""
        super().build(input_shape)
        _check_k(self.k, self.num_experts)
        if self.bias_update_rate:
            self.bias = self.add_state("bias", (self.num_experts,))
        if self.capacity_factor is not None:
            self.track("dropped")

    def select(self, logits: Any, training: bool) -> Routing:
        """The k largest scores are chosen."""
        if self.noise and training:
            logits = logits + keras.random.normal(
                ops.shape(logits), stddev=self.noise, dtype=logits.dtype, seed=self.seed_generator
            )
        bias = None if self.bias is None else self.bias.value
        return top_k(logits, self.k, bias, self.renormalize)

    def balance(self, logits: Any, routing: Routing, mask: Any) -> None:
        """Adds the balance terms, and moves the selection bias."""
        super().balance(logits, routing, mask)
        if self.bias is not None:
            load = balance.expert_load(routing, mask)
            self.bias.assign(balance.moved_bias(self.bias.value, load, self.bias_update_rate))

    def limit(self, routing: Routing, training: bool, mask: Any) -> Routing:
        """Drops what overflows, and counts it in training."""
        if self.capacity_factor is None:
            return routing
        num_rows = row_count(routing.weights)
        limited, overflowed = within_capacity(
            routing, self.capacity(num_rows, self.num_experts), mask
        )
        if training:
            if mask is None:
                rows: Any = num_rows
            else:
                rows = ops.sum(ops.cast(mask, "float32"))
            choices = ops.maximum(ops.cast(rows * self.k, "float32"), 1.0)
            share = ops.sum(ops.cast(overflowed, "float32")) / choices
            self.record("dropped", share, choices)
        return limited

    def capacity(self, num_rows: Any, num_experts: int) -> Any:
        """Returns `⌈capacity_factor · n · k / e⌉`, at most `n`; `None` without a capacity."""
        if self.capacity_factor is None:
            return None
        return rows_per_expert(num_rows, self.k, num_experts, self.capacity_factor)

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


def rows_per_expert(num_rows: Any, k: int, num_experts: int, factor: float) -> Any:
    """Returns `plait.ops.dispatch.capacity`, also where `num_rows` is an integer tensor."""
    if isinstance(num_rows, int):
        return capacity(num_rows, k, num_experts, factor)
    share = ops.ceil(ops.cast(num_rows, "float32") * (factor * k / num_experts))
    return ops.clip(ops.cast(share, "int32"), 1, num_rows)


def row_count(weights: Any) -> Any:
    """Returns the product of the routed axes, a tensor where it is only known at run time."""
    return math.prod(ops.shape(weights)[:-1])


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
