"""The Bernoulli family."""

from typing import Any

import keras
from keras import ops

from plait.losses.families.base import Family
from plait.ops.combine import at_least_float32
from plait.ops.likelihood import NEXT_TO_ONE, bernoulli
from plait.typing import Config, Tensor


@keras.saving.register_keras_serializable("plait")
class Bernoulli(Family):
    """`y ~ Bernoulli(f_l(x))`, independent over the units: yes or no, one or many.

    The target and an expert's output are `(b, …, u)`.

    Args:
        from_logits: Whether experts return log-odds, and not probabilities, as those that end in
            `activation="sigmoid"` do. Probabilities are kept 1e-7 away from 0 and 1.
        **kwargs: `name` and `dtype` of a Keras layer.

    Example:
    >>> import plait
    >>> plait.losses.families.get("bernoulli").from_logits
    False
    """

    def __init__(self, from_logits: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = from_logits

    def log_density(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Returns the log-probability, element by element."""
        if self.from_logits:
            return bernoulli(y, outputs)
        p = ops.clip(outputs, NEXT_TO_ONE, 1.0 - NEXT_TO_ONE)
        return y * ops.log(p) + (1.0 - y) * ops.log1p(-p)

    def mean(self, outputs: Tensor) -> Tensor:
        """Returns the probabilities."""
        return ops.sigmoid(at_least_float32(outputs)) if self.from_logits else outputs

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "from_logits": self.from_logits}
