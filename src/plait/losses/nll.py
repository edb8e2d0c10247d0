"""The negative log-likelihood of one distribution."""

from typing import Any

import keras
from keras import ops

from plait.errors import message
from plait.losses import families
from plait.ops.combine import at_least_float32
from plait.typing import Config, Tensor


@keras.saving.register_keras_serializable("plait")
class NLL(keras.losses.Loss):
    """`−log p(y | x)`, where what a model returns are the parameters of one distribution.

    A loss of any Keras model. Of a mixture it is the likelihood of what its experts are merged to,
    as in a pool of Gaussians, and not that of a choice among them, which is `MixtureNLL`. Within
    `ExpertMean` it trains the members of a deep ensemble (Lakshminarayanan et al. 2017).

    Args:
        family: As in `MixtureNLL`, but without variables of its own: one that learns scales takes
            `Gaussian(scale="predicted")`.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: As in `keras.losses.Loss`; values are in float32 or better all the same.

    Call arguments:
        y_true: Target of shape `(b, …, u)`.
        y_pred: Parameters, as the family's experts return them: `(b, …, u)`, or `(b, …, 2u)` for
            means and scales.

    Returns:
        The reduced loss, of values `(b, …)` summed over the last axis.

    Raises:
        ValueError: If no family has that name, or it learns variables.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> loss = plait.losses.NLL(plait.losses.families.Gaussian(scale="predicted"))
    >>> round(float(loss(np.array([[1.0]]), np.array([[0.0, 0.5413]]))), 4)
    1.4189

    References:
        Lakshminarayanan, Pritzel, Blundell (2017), Simple and scalable predictive uncertainty
        estimation using deep ensembles.
    """

    def __init__(
        self,
        family: Any,
        reduction: str | None = "sum_over_batch_size",
        name: str = "nll",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.family = families.get(family)
        self.family.build((None, 1))
        if self.family.weights:
            raise ValueError(
                message(
                    "A model under NLL returns all parameters of its distribution",
                    f"the {type(self.family).__name__} family, which learns "
                    f"{', '.join(weight.name for weight in self.family.weights)}",
                    "Use plait.losses.families.Gaussian(scale='predicted')",
                )
            )

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the values `(b, …)`."""
        outputs = ops.expand_dims(at_least_float32(y_pred), 0)
        densities = self.family.log_density(self.family.target(y_true, outputs), outputs)
        by_unit = len(densities.shape) == len(outputs.shape)
        return -(ops.sum(densities, axis=-1) if by_unit else densities)[0]

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        config = super().get_config()
        return {**config, "family": keras.saving.serialize_keras_object(self.family)}
