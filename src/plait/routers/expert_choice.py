"""The expert-choice router: experts pick rows, not rows experts."""

from typing import Any

import keras

from plait.ops.dispatch import capacity
from plait.ops.routing import Routing, expert_choice, softmax
from plait.routers.base import Router, check_positive, row_count
from plait.typing import Count, Dtype, Mask, Tensor


@keras.saving.register_keras_serializable("plait")
class ExpertChoice(Router):
    """Each expert picks its `⌈capacity_factor · n / e⌉` rows of the largest probability.

    `w_il = softmax(s_i)_l` where expert `l` picked row `i`, zero elsewhere: the load is even by
    construction, while a row may be served by several experts or by none. What a row gets depends
    on the rows beside it; do not use it where a row must not see the others, as in a causal model.

    Takes scores `(b, …, e)` and returns weights of the same shape.

    Args:
        capacity_factor: How many experts serve a row on average.
        load_balance: See `Router`.
        importance: See `Router`.
        z_loss: See `Router`.
        from_logits: See `Router`.
        name: As in Keras.
        dtype: As in Keras.
        trainable: As in Keras.

    Raises:
        ValueError: If `capacity_factor` is not a positive number.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> weights = plait.routers.ExpertChoice(1.0)(np.log([[0.9, 0.1], [0.8, 0.2]]))
    >>> [[round(float(w), 4) for w in row] for row in weights]
    [[0.9, 0.0], [0.0, 0.2]]

    References:
        Zhou et al. (2022), Mixture-of-experts with expert choice routing, eq. 2 and 3.
    """

    sparse = True

    def __init__(
        self,
        capacity_factor: float = 1.0,
        *,
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
        self.capacity_factor = check_positive(self, "capacity_factor", capacity_factor)

    def select(self, logits: Tensor, training: bool) -> Routing:
        """Returns the probabilities, before the experts pick."""
        del training
        return Routing(softmax(logits))

    def limit(self, routing: Routing, training: bool, mask: Mask) -> Routing:
        """The experts pick."""
        del training
        num_rows = row_count(routing.weights)
        return expert_choice(routing.weights, self.capacity(num_rows, self.num_experts), mask)

    def capacity(self, num_rows: Count, num_experts: int) -> Count:
        """Returns `⌈capacity_factor · n / e⌉`, at most `n`."""
        return capacity(num_rows, 1, num_experts, self.capacity_factor)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "capacity_factor": self.capacity_factor}
