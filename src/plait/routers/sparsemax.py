"""The sparsemax router: a projection onto the simplex, with exact zeros."""

from typing import Any

import keras

from plait.ops.routing import Routing, sparsemax
from plait.routers.base import Router


@keras.saving.register_keras_serializable("plait")
class Sparsemax(Router):
    """Weights w = argmin ‖w − s‖² over the simplex, the sparsest of the smooth rules.

    How many experts count differs from row to row: from one to all of them.

    Args:
        **kwargs: `load_balance`, `importance`, `z_loss` and `from_logits` of `Router`; `name` and
            `dtype` of a Keras layer.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> weights = plait.routers.Sparsemax()(np.array([[1.0, 0.5, -1.0]]))
    >>> [round(float(w), 4) for w in weights[0]]
    [0.75, 0.25, 0.0]

    References:
        Martins, Astudillo (2016), From softmax to sparsemax, alg. 1.
    """

    sparse = True

    def select(self, logits: Any, training: bool) -> Routing:
        """Every expert may count."""
        del training
        return Routing(sparsemax(logits))
