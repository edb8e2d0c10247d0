"""The 1.5-entmax router: between softmax and sparsemax, with exact zeros and smooth edges."""

from typing import Any

import keras

from plait.ops.routing import Routing, entmax15
from plait.routers.base import Router


@keras.saving.register_keras_serializable("plait")
class Entmax15(Router):
    """Weights `w = max(s / 2 − τ, 0)²`, with `τ` such that they sum to one.

    How many experts count differs from row to row: from one to all of them.

    Args:
        **kwargs: `load_balance`, `importance`, `z_loss` and `from_logits` of `Router`; `name` and
            `dtype` of a Keras layer.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> weights = plait.routers.Entmax15()(np.array([[1.0, 1.0, -4.0]]))
    >>> [round(float(w), 4) for w in weights[0]]
    [0.5, 0.5, 0.0]

    References:
        Peters, Niculae, Martins (2019), Sparse sequence-to-sequence models, alg. 2.
    """

    sparse = True

    def select(self, logits: Any, training: bool) -> Routing:
        """Every expert may count."""
        del training
        return Routing(entmax15(logits))
