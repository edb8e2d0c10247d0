"""The categorical family."""

from typing import Any

import keras
from keras import ops

from plait.errors import message
from plait.losses.families.base import Family
from plait.ops.likelihood import categorical, safe_log
from plait.ops.routing import softmax
from plait.typing import Config, Tensor


@keras.saving.register_keras_serializable("plait")
class Categorical(Family):
    """`y ~ Categorical(f_l(x))`: one of the classes on the last axis.

    Targets are class numbers of shape `(b, …)` or `(b, …, 1)`, or one-hot of shape `(b, …, u)`.

    Args:
        from_logits: Whether experts return logits, and not probabilities, as those that end in
            `activation="softmax"` do.
        **kwargs: `name` and `dtype` of a Keras layer.

    Example:
    >>> import plait
    >>> plait.losses.families.get("categorical").from_logits
    False
    """

    def __init__(self, from_logits: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = from_logits

    def target(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Returns the target as one-hot, with a leading axis of one."""
        y = ops.convert_to_tensor(y)
        shape, expected = tuple(y.shape), tuple(outputs.shape[1:])
        if shape != expected and shape == (*expected[:-1], 1):
            y, shape = ops.squeeze(y, -1), shape[:-1]
        if len(shape) == len(expected) - 1:
            _check(shape, expected[:-1], expected)
            # A class number outside the classes gives a row of zeros: likelihood one, no gradient.
            one_hot = ops.one_hot(ops.cast(y, "int32"), expected[-1], dtype=outputs.dtype)
            return ops.expand_dims(one_hot, 0)
        _check(shape, expected, expected)
        return ops.expand_dims(ops.cast(y, outputs.dtype), 0)

    def log_density(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Returns the log-probability of each event; the last axis is gone."""
        if self.from_logits:
            top = ops.stop_gradient(ops.max(outputs, axis=-1, keepdims=True))
            below = outputs - top
            logs = below - ops.log(ops.sum(ops.exp(below), axis=-1, keepdims=True))
        else:
            logs = safe_log(outputs)
        return categorical(y, logs)

    def mean(self, outputs: Tensor) -> Tensor:
        """Returns the probabilities."""
        return softmax(outputs) if self.from_logits else outputs

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "from_logits": self.from_logits}


def _check(shape: tuple[int, ...], wanted: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    agree = len(shape) == len(wanted) and all(
        a is None or b is None or a == b for a, b in zip(shape, wanted, strict=True)
    )
    if not agree:
        raise ValueError(
            message(
                "The target must hold one class number per event, or be one-hot",
                f"y of shape {shape}, outputs of shape {outputs}",
                f"Use a target of shape {outputs[:-1]} or {outputs}",
            )
        )
