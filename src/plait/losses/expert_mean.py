"""The mean of the experts' own losses: what deep ensembles train on."""

from typing import Any

import keras
from keras import ops

from plait.errors import message
from plait.losses.base import MixtureObjective
from plait.ops.combine import at_least_float32
from plait.typing import Config, Tensor


@keras.saving.register_keras_serializable("plait")
class ExpertMean(MixtureObjective):
    """`Σ_l w_l(x) · loss(y, f_l(x))`, or the plain mean over the experts.

    Each expert is trained on its own error, not on that of the blend: without weights, as the
    members of a deep ensemble are (Lakshminarayanan et al. 2017), and the gate learns nothing; with
    weights, each the more the gate trusts it (Jacobs et al. 1991, eq. 1.2).

    Shapes are those of `MixtureObjective`: weights `(b, …, e)`, outputs `(e, b, …, u)`, and losses
    `(b, …)`.

    Args:
        loss: Keras loss: a name, a function or a `keras.losses.Loss`.
        weighted: Whether the gate's weights count.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: If Keras has no such loss, or its values do not fit the weights.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> loss = plait.losses.ExpertMean("mean_squared_error")
    >>> outputs = np.array([[[1.0]], [[3.0]]])
    >>> float(loss.per_example(np.array([[0.0]]), np.array([[0.5, 0.5]]), outputs)[0])
    5.0

    References:
        Lakshminarayanan, Pritzel, Blundell (2017), Simple and scalable predictive uncertainty
        estimation using deep ensembles.
    """

    def __init__(
        self,
        loss: Any,
        weighted: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "expert_mean",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.loss = keras.losses.get(loss)
        self.weighted = weighted
        self._values = _unreduced(self.loss)

    def per_example(self, y_true: Tensor, weights: Tensor, outputs: Tensor) -> Tensor:
        """Returns the mean of the experts' losses for each example."""
        losses = self._expert_losses(ops.convert_to_tensor(y_true), at_least_float32(outputs))
        weights = at_least_float32(weights)
        routed, rank = len(weights.shape) - 1, len(losses.shape) - 1
        if rank < routed:
            raise ValueError(
                message(
                    "The loss of an expert must have all axes that the weights route",
                    f"weights of shape {tuple(weights.shape)} for losses of shape "
                    f"{tuple(losses.shape[1:])}",
                    "Route no more axes than that, as with weights of shape (b, e)",
                )
            )
        if rank > routed:
            losses = ops.mean(losses, axis=tuple(range(routed + 1, rank + 1)))
        if not self.weighted:
            return ops.mean(losses, axis=0)
        return ops.sum(ops.moveaxis(weights, -1, 0) * losses, axis=0)

    def _expert_losses(self, y_true: Tensor, outputs: Tensor) -> Tensor:
        """Returns the losses `(e, b, …)`: the experts' batches, laid end to end, in one call."""
        num_experts, *shape = ops.shape(outputs)
        if len(y_true.shape) == len(shape) - 1 and shape[-1] == 1:
            y_true = ops.expand_dims(y_true, -1)
        known, wanted = tuple(y_true.shape), tuple(outputs.shape[1:])
        if any(
            a != b for a, b in zip(known[:-1], wanted, strict=False) if None not in (a, b)
        ) or len(known) not in (len(wanted), len(wanted) - 1):
            raise ValueError(
                message(
                    "The target must have the shape of an expert's output, or lack its last axis",
                    f"y of shape {known}, outputs of shape {wanted}",
                    "Reshape the target",
                )
            )
        repeated = ops.broadcast_to(y_true[None], (num_experts, *ops.shape(y_true)))
        losses = self._values(
            ops.reshape(repeated, (-1, *ops.shape(y_true)[1:])),
            ops.reshape(outputs, (-1, *shape[1:])),
        )
        return ops.reshape(losses, (num_experts, -1, *ops.shape(losses)[1:]))

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "loss": keras.losses.serialize(self.loss),
            "weighted": self.weighted,
        }


def _unreduced(loss: Any) -> Tensor:
    """Returns the loss as a function that gives one value per example, or per step."""
    if not isinstance(loss, keras.losses.Loss):
        return loss
    config = loss.get_config()
    return type(loss).from_config({**config, "reduction": None}).call
