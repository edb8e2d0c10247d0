"""The softmax router: every expert counts, each in proportion to exp(score)."""

import keras

from plait.ops.routing import Routing, softmax
from plait.routers.temperature import TemperatureRouter
from plait.typing import Tensor


@keras.saving.register_keras_serializable("plait")
class Softmax(TemperatureRouter):
    """Weights w = softmax(s / T), the gate of Jacobs et al. (1991).

    Takes scores `(b, …, e)` and returns weights of the same shape.

    Args:
        temperature: `T`, positive; below one sharpens the weights, above one flattens them. It can
            be set again at any time; see `plait.callbacks.TemperatureSchedule`.
        load_balance: See `Router`.
        importance: See `Router`.
        z_loss: See `Router`.
        from_logits: See `Router`.
        name: As in Keras.
        dtype: As in Keras.
        trainable: As in Keras.

    Raises:
        ValueError: If `temperature` is not a positive number.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> weights = plait.routers.Softmax(temperature=0.5)(np.log([[1.0, 3.0]]))
    >>> [round(float(w), 4) for w in weights[0]]
    [0.1, 0.9]

    References:
        Jacobs, Jordan, Nowlan, Hinton (1991), Adaptive mixtures of local experts.
    """

    def select(self, logits: Tensor, training: bool) -> Routing:
        """Every expert is chosen."""
        del training
        return Routing(softmax(logits, self.temperature_value))
