"""The base of the families: how the target is distributed around an expert's output."""

from typing import Any

import keras

from plait.errors import message
from plait.typing import Shapes, Tensor


class Family(keras.layers.Layer):
    """A distribution `p_l(y | x)` whose parameters are an expert's output.

    A member implements `log_density`, and `mean` where the output is not the mean itself. It is a
    Keras layer, so that it may own variables: create them in `build`, one entry per expert.
    Register it with `keras.saving.register_keras_serializable`, and return the constructor's
    arguments from `get_config`.

    `log_density` takes the target `(1, b, …, u)` and all experts' outputs `(e, b, …, u)`, and
    returns the outputs' shape, or `(e, b, …)`.

    Example:
    >>> import keras, plait
    >>> @keras.saving.register_keras_serializable("my_package")
    ... class Exponential(plait.losses.families.Family):
    ...     def log_density(self, y, outputs):
    ...         return -keras.ops.log(outputs) - y / outputs
    >>> plait.losses.MixtureNLL(Exponential()).family.name
    'exponential'
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables; `input_shape` is that of the weights, `(b, …, e)`."""

    def log_density(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The hook: returns `log p_l(y | x)`, element by element or for each event.

        Args:
            y: Target of shape `(1, b, …, u)`, in the outputs' dtype; see `target`.
            outputs: The experts' outputs of shape `(e, b, …, u)`, in float32 or better.

        Returns:
            Tensor of shape `(e, b, …)`; axes after the routed ones are summed.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `log_density`.")

    def mean(self, outputs: Tensor) -> Tensor:
        """Returns what an expert contributes to the blended prediction; here, its output."""
        return outputs

    def target(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Returns the target with a leading axis of one, checked to fit `mean(outputs)`.

        A target may lack a last axis of size one. It takes on the outputs' dtype, as a target does
        under Keras' own losses.

        Args:
            y: Target of shape `(b, …, u)`.
            outputs: The experts' outputs of shape `(e, b, …, u)`, in float32 or better.

        Raises:
            ValueError: If the shapes do not agree.
        """
        y = keras.ops.cast(y, outputs.dtype)
        expected = tuple(self.mean(outputs).shape[1:])
        if len(y.shape) == len(expected) - 1 and expected[-1] == 1:
            y = keras.ops.expand_dims(y, -1)
        if not _agree(tuple(y.shape), expected):
            raise ValueError(
                message(
                    "The target must have the shape of an expert's output",
                    f"y of shape {tuple(y.shape)}, outputs of shape {expected}",
                    "Reshape the target, or end the experts in as many units as it has",
                )
            )
        return keras.ops.expand_dims(y, 0)

    def compute_output_shape(self, input_shape: Shapes) -> Tensor:
        """A family is not called; the shape is what it was."""
        return input_shape


def _agree(left: tuple[int | None, ...], right: tuple[int | None, ...]) -> bool:
    return len(left) == len(right) and all(
        a is None or b is None or a == b for a, b in zip(left, right, strict=True)
    )
