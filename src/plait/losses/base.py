"""The base of the objectives that see the parts of a mixture, not only its blend."""

from typing import Any

import keras
from keras import ops

from plait.errors import message
from plait.typing import Mask, Tensor


class MixtureObjective(keras.losses.Loss):
    """A loss on the weights and on each expert's output.

    Pass it to `Mixture.compile(loss=…)`. A member implements `per_example`.

    Where an expert's output is `(b, …, u)`, `per_example` takes the target `(b, …, u)`, the weights
    `(b, …, e)` and all outputs `(e, b, …, u)`, and returns `(b, …)`.

    Args:
        reduction: As in `keras.losses.Loss`: `"sum_over_batch_size"`, `"sum"`,
            `"mean_with_sample_weight"` or `None`.
        name: Name of the loss.
        dtype: As in `keras.losses.Loss`; values are in float32 or better all the same.

    Example:
    >>> import keras, numpy as np, plait
    >>> class Best(plait.losses.MixtureObjective):
    ...     def per_example(self, y_true, weights, outputs):
    ...         return keras.ops.min(keras.ops.sum((outputs - y_true) ** 2, axis=-1), axis=0)
    >>> outputs = np.array([[[1.0]], [[3.0]]])
    >>> float(Best().per_example(np.array([[0.0]]), np.array([[0.5, 0.5]]), outputs)[0])
    1.0
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    @property
    def state(self) -> keras.layers.Layer | None:
        """The layer that owns the objective's variables, or `None`."""
        return None

    def build(self, weights_shape: tuple[int | None, ...]) -> None:
        """Creates the objective's variables for weights of shape `(b, …, e)`."""
        if self.state is not None and not self.state.built:
            self.state.build(tuple(weights_shape))

    def per_example(self, y_true: Tensor, weights: Tensor, outputs: Tensor) -> Tensor:
        """The hook: returns the loss of each example, `(b, …)`, shaped as the routed axes.

        Args:
            y_true: Target of shape `(b, …, u)`.
            weights: Mixing weights of shape `(b, …, e)`.
            outputs: The experts' outputs of shape `(e, b, …, u)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `per_example`.")

    def responsibilities(self, y_true: Tensor, weights: Tensor, outputs: Tensor) -> Tensor:
        """Returns which expert explains the target, `(b, …, e)`; here, the weights."""
        del y_true, outputs
        return weights

    def mean(self, outputs: Tensor) -> Tensor:
        """Returns what the experts contribute to the blend; here, their outputs."""
        return outputs

    def mixture_loss(
        self,
        y_true: Tensor,
        weights: Tensor,
        outputs: Tensor,
        sample_weight: Tensor = None,
        mask: Mask = None,
    ) -> Tensor:
        """Returns the reduced loss.

        Args:
            y_true: See `per_example`.
            weights: See `per_example`.
            outputs: See `per_example`.
            sample_weight: `None`, or a tensor of shape `(b,)` up to that of the routed axes.
            mask: `None`, or bool of such a shape; where it is false an example does not count.

        Raises:
            ValueError: If sample weights or mask do not fit the routed axes.
        """
        values = self.per_example(y_true, weights, outputs)
        counts = ops.ones_like(values)
        if mask is not None:
            mask = ops.cast(_over(mask, values, "mask"), "bool")
            values = ops.where(mask, values, ops.zeros_like(values))
            counts = counts * ops.cast(mask, values.dtype)
        factors = counts
        if sample_weight is not None:
            factors = counts * ops.cast(_over(sample_weight, values, "sample_weight"), values.dtype)
        weighted = values * factors
        if self.reduction in (None, "none"):
            return weighted
        total = ops.sum(weighted)
        if self.reduction == "sum":
            return total
        size = factors if self.reduction == "mean_with_sample_weight" else counts
        return total / ops.maximum(ops.sum(size), 1e-12)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Says that a blended prediction is not enough."""
        raise TypeError(
            message(
                f"{type(self).__name__} needs the weights and every expert's output",
                "a blended prediction",
                "Pass it to `compile` of a plait.Mixture that is the whole model, not a part of it",
            )
        )


def _over(tensor: Tensor, values: Tensor, name: str) -> Tensor:
    """Returns a tensor of lower rank with trailing axes of one, checked to fit."""
    tensor = ops.convert_to_tensor(tensor)
    shape, wanted = tuple(tensor.shape), tuple(values.shape)
    if len(shape) == len(wanted) + 1 and shape[-1] == 1:
        tensor, shape = ops.squeeze(tensor, -1), shape[:-1]
    fits = len(shape) <= len(wanted) and all(
        a is None or b is None or a == b for a, b in zip(shape, wanted, strict=False)
    )
    if not fits:
        raise ValueError(
            message(
                f"`{name}` must have one entry per example, or per routed step",
                f"{name} of shape {shape} for losses of shape {wanted}",
                f"Use a {name} of shape {wanted[:1]} or {wanted}",
            )
        )
    return ops.reshape(tensor, (*ops.shape(tensor), *(1,) * (len(wanted) - len(shape))))
