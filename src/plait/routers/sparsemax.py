"""The sparsemax router: a projection onto the simplex, with exact zeros."""

import keras

from plait.ops.routing import Routing, sparsemax
from plait.routers.base import Router
from plait.typing import Tensor


@keras.saving.register_keras_serializable("plait")
class Sparsemax(Router):
    """Weights w = argmin ‖w − s‖² over the simplex, the sparsest of the smooth rules.

    How many experts count differs from row to row: from one to all of them.

    Takes scores `(b, …, e)` and returns weights of the same shape.

    Args:
        load_balance: See `Router`.
        importance: See `Router`.
        z_loss: See `Router`.
        from_logits: See `Router`.
        name: As in Keras.
        dtype: As in Keras.
        trainable: As in Keras.

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

    def select(self, logits: Tensor, training: bool) -> Routing:
        """Every expert may count."""
        del training
        return Routing(sparsemax(logits))
