"""The 1.5-entmax router: between softmax and sparsemax, with exact zeros and smooth edges."""

import keras

from plait.ops.routing import Routing, entmax15
from plait.routers.base import Router
from plait.typing import Tensor


@keras.saving.register_keras_serializable("plait")
class Entmax15(Router):
    """Weights `w = max(s / 2 − τ, 0)²`, with `τ` such that they sum to one.

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
    >>> weights = plait.routers.Entmax15()(np.array([[1.0, 1.0, -4.0]]))
    >>> [round(float(w), 4) for w in weights[0]]
    [0.5, 0.5, 0.0]

    References:
        Peters, Niculae, Martins (2019), Sparse sequence-to-sequence models, alg. 2.
    """

    sparse = True

    def select(self, logits: Tensor, training: bool) -> Routing:
        """Every expert may count."""
        del training
        return Routing(entmax15(logits))
