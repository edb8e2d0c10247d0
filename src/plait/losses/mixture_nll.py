"""The negative log-likelihood of a mixture: what makes experts specialise."""

from typing import Any

import keras
from keras import ops

from plait.errors import message
from plait.losses import families
from plait.losses.base import MixtureObjective
from plait.ops.combine import at_least_float32
from plait.ops.likelihood import log_likelihood, posterior
from plait.typing import Config, Tensor


@keras.saving.register_keras_serializable("plait")
class MixtureNLL(MixtureObjective):
    """`−log Σ_l w_l(x) · p_l(y | x)` (Jacobs et al. 1991, eq. 1.3), computed in log space.

    The model still predicts the blended mean, `Σ_l w_l · E_l[y | x]`. A row whose weights are all
    zero, such as a capacity leaves where it drops a row, has loss zero.

    Shapes are those of `MixtureObjective`: weights `(b, …, e)`, outputs `(e, b, …, u)`, and losses
    `(b, …)`.

    Args:
        family: `"gaussian"`, `"poisson"`, `"bernoulli"`, `"categorical"`, or a
            `plait.losses.families.Family` such as `Gaussian(scale="predicted")`; subclass that to
            add one.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: If no family has that name.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> loss = plait.losses.MixtureNLL("poisson")
    >>> weights, rates = np.array([[0.5, 0.5]]), np.array([[[1.0]], [[3.0]]])
    >>> round(float(loss.per_example(np.array([[2.0]]), weights, rates)[0]), 4)
    1.5897

    References:
        Jacobs, Jordan, Nowlan, Hinton (1991), Adaptive mixtures of local experts.
    """

    def __init__(
        self,
        family: Any = "gaussian",
        reduction: str | None = "sum_over_batch_size",
        name: str = "mixture_nll",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.family = families.get(family)

    @property
    def state(self) -> keras.layers.Layer:
        """The family, which owns the learned scales."""
        return self.family

    def log_densities(self, y_true: Tensor, weights: Tensor, outputs: Tensor) -> Tensor:
        """Returns `log p_l(y | x)` of each example, `(e, b, …)`.

        Raises:
            ValueError: If target, weights and outputs do not fit together.
        """
        self.build(tuple(weights.shape))
        outputs = at_least_float32(outputs)
        densities = self.family.log_density(self.family.target(y_true, outputs), outputs)
        routed, rank = len(weights.shape) - 1, len(densities.shape) - 1
        if rank < routed:
            raise ValueError(
                message(
                    f"The {self.family.name} family gives one density per event",
                    f"weights of shape {tuple(weights.shape)} for densities of shape "
                    f"{tuple(densities.shape[1:])}",
                    "Route no more axes than that, as with weights of shape (b, e)",
                )
            )
        return (
            ops.sum(densities, axis=tuple(range(routed + 1, rank + 1)))
            if (rank > routed)
            else densities
        )

    def per_example(self, y_true: Tensor, weights: Tensor, outputs: Tensor) -> Tensor:
        """Returns the negative log-likelihood of each example."""
        return -log_likelihood(weights, self.log_densities(y_true, weights, outputs))

    def responsibilities(self, y_true: Tensor, weights: Tensor, outputs: Tensor) -> Tensor:
        """Returns `h_l = w_l p_l / Σ_j w_j p_j`."""
        return posterior(weights, self.log_densities(y_true, weights, outputs))

    def mean(self, outputs: Tensor) -> Tensor:
        """Returns the mean of each expert's distribution."""
        return self.family.mean(outputs)

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        config = super().get_config()
        return {**config, "family": keras.saving.serialize_keras_object(self.family)}
