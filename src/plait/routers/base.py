"""The base of the routers: scores in, weights out, and one hook."""

from typing import Any

import keras

from plait.errors import message
from plait.ops.routing import Routing, log_probabilities


class Router(keras.layers.Layer):
    """Turns a gate's scores into mixing weights.

    A member of the family implements `select`; everything else is here.

    Args:
        from_logits: Whether the scores are logits, the default, or probabilities, such as those
            of a gate that ends in a softmax.
        **kwargs: `name` and `dtype` of a Keras layer.

    Call arguments:
        scores: Tensor of shape `(b, …, e)`.
        training: Whether the call is part of training.

    Returns:
        Weights of shape `(b, …, e)`, in float32 or better.
    """

    def __init__(self, *, from_logits: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = from_logits
        self.supports_masking = True

    def select(self, logits: Any, training: bool) -> Routing:
        """The hook: returns the `Routing` for logits of shape `(b, …, e)`, float32 or better."""
        raise NotImplementedError(f"{type(self).__name__} must implement `select`.")

    def route(self, scores: Any, training: bool | None = None) -> Routing:
        """Returns the weights and, where only some experts count, which ones.

        Args:
            scores: Tensor of shape `(b, …, e)`.
            training: Whether the call is part of training.
        """
        logits = scores if self.from_logits else log_probabilities(scores)
        return self.select(logits, bool(training))

    def call(self, scores: Any, training: bool | None = None) -> Any:
        """Returns the weights alone; see `route`."""
        return self.route(scores, training=training).weights

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Weights are shaped as the scores are."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "from_logits": self.from_logits}


def check_positive(owner: object, name: str, value: float) -> float:
    """Returns `value` when it is a positive number, and raises `ValueError` otherwise."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):
        raise ValueError(
            message(
                f"`{name}` of {type(owner).__name__} must be a positive number",
                f"{name}={value!r}",
                f"Use {name}=1.0 for the plain rule",
            )
        )
    return float(value)
