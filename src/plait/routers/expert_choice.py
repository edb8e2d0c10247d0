"""The expert-choice router: experts pick rows, not rows experts."""

from typing import Any

import keras

from plait.ops.routing import Routing, expert_choice, softmax
from plait.routers.base import Router, check_positive
from plait.routers.top_k import row_count, rows_per_expert


@keras.saving.register_keras_serializable("plait")
class ExpertChoice(Router):
    """Each expert picks its `⌈capacity_factor · n / e⌉` rows of the largest probability.

    `w_il = softmax(s_i)_l` where expert `l` picked row `i`, zero elsewhere: the load is even by
    construction, while a row may be served by several experts or by none. What a row gets depends
    on the rows beside it; do not use it where a row must not see the others, as in a causal model.

    Args:
        capacity_factor: How many experts serve a row on average.
        **kwargs: `load_balance`, `importance`, `z_loss` and `from_logits` of `Router`; `name` and
            `dtype` of a Keras layer.

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

    def __init__(self, capacity_factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.capacity_factor = check_positive(self, "capacity_factor", capacity_factor)

    def select(self, logits: Any, training: bool) -> Routing:
        """Returns the probabilities, before the experts pick."""
        del training
        return Routing(softmax(logits))

    def limit(self, routing: Routing, training: bool, mask: Any) -> Routing:
        """The experts pick."""
        del training
        num_rows = row_count(routing.weights)
        return expert_choice(routing.weights, self.capacity(num_rows, self.num_experts), mask)

    def capacity(self, num_rows: Any, num_experts: int) -> Any:
        """Returns `⌈capacity_factor · n / e⌉`, at most `n`."""
        return rows_per_expert(num_rows, 1, num_experts, self.capacity_factor)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "capacity_factor": self.capacity_factor}
