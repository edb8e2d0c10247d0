"""The Poisson family."""

from typing import Any

import keras
from keras import ops

from plait.losses.families.base import Family
from plait.ops.combine import at_least_float32
from plait.ops.likelihood import poisson, safe_log
from plait.typing import Config, Tensor


@keras.saving.register_keras_serializable("plait")
class Poisson(Family):
    """`y ~ Poisson(f_l(x))`, independent over the units.

    The target and an expert's output are `(b, …, u)`.

    Args:
        log_rates: Whether experts return the logarithms of their rates, and not the rates
            themselves, as those that end in `activation="exponential"` do.
        **kwargs: `name` and `dtype` of a Keras layer.

    Example:
    >>> import plait
    >>> plait.losses.families.get("poisson").log_rates
    False
    """

    def __init__(self, log_rates: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.log_rates = log_rates

    def log_density(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Returns the log-probability, element by element."""
        return poisson(y, outputs) if self.log_rates else poisson(y, safe_log(outputs), outputs)

    def mean(self, outputs: Tensor) -> Tensor:
        """Returns the rates."""
        if not self.log_rates:
            return outputs
        return ops.exp(ops.clip(at_least_float32(outputs), -1e15, 80.0))

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "log_rates": self.log_rates}
