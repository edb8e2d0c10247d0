"""The softmax router: every expert counts, each in proportion to exp(score)."""

from typing import Any

import keras

from plait.ops.routing import Routing, softmax
from plait.routers.base import Router, check_positive


@keras.saving.register_keras_serializable("plait")
class Softmax(Router):
    """Weights w = softmax(s / T), the gate of Jacobs et al. (1991).

    Args:
        temperature: `T`, positive; below one sharpens the weights, above one flattens them.
        from_logits: See `Router`.
        **kwargs: `name` and `dtype` of a Keras layer.

    Raises:
        ValueError: If `temperature` is not a positive number.

    Example:

    >>> import numpy as np
    >>> import plait
    >>> weights = plait.routers.Softmax(temperature=0.5)(np.log([[1.0, 3.0]]))
    >>> [round(float(w), 4) for w in weights[0]]
    [0.1, 0.9]

    References:
        Jacobs, Jordan, Nowlan, Hinton (1991), Adaptive mixtures of local experts, eq. 1.3.
    """

    def __init__(
        self, temperature: float = 1.0, *, from_logits: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(from_logits=from_logits, **kwargs)
        self.temperature = check_positive(self, "temperature", temperature)

    def select(self, logits: Any, training: bool) -> Routing:
        """Every expert is chosen."""
        del training
        return Routing(softmax(logits, self.temperature))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature}
