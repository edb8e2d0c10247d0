"""The M-step by gradients: a few epochs on the expected log-likelihood."""

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from plait.losses import MixtureNLL, MixtureObjective
from plait.losses.families import Family
from plait.ops.likelihood import safe_log
from plait.training.regression import Array

if TYPE_CHECKING:
    from plait.mixture import Mixture


class ExpectedLogLikelihood(MixtureObjective):
    """`−Σ_l c_l (log p_l(y | x) + log w_l)`, with the counts `c = s r` as part of the target.

    Args:
        family: The family of the experts.
        shape: Shape of one target.
        experts: 1.0 where the experts' part is wanted, else 0.0.
        gate: 1.0 where the gate's part is wanted, else 0.0.
    """

    def __init__(self, family: Family, shape: tuple[int, ...], experts: float, gate: float) -> None:
        super().__init__(name="expected_log_likelihood")
        self.likelihood = MixtureNLL(family)
        self.shape = shape
        self.experts, self.gate = experts, gate

    def per_example(self, y_true: Any, weights: Any, outputs: Any) -> Any:
        """Returns the expected negative log-likelihood of each example."""
        num_experts = weights.shape[-1]
        y = ops.reshape(y_true[:, :-num_experts], (-1, *self.shape))
        counts = y_true[:, -num_experts:]
        densities = ops.moveaxis(self.likelihood.log_densities(y, weights, outputs), 0, -1)
        # A part that is not wanted counts zero times: its variables then have a gradient, of zero.
        terms = self.experts * densities + self.gate * safe_log(weights)
        return -ops.sum(counts * terms, axis=-1)


class GradientSteps:
    """Takes the M-steps that have no closed form.

    Args:
        mixture: The built mixture, which is compiled anew.
        family: The family of the experts, built.
        x: Input as for `fit`.
        y: Target.
        experts: Whether the experts take gradient steps.
        gate: Whether the gate does.
        epochs: Epochs of one M-step.
        batch_size: As in `fit`.
        learning_rate: Of Adam; halved whenever an M-step would lower the likelihood.
    """

    def __init__(
        self,
        mixture: "Mixture",
        family: Family,
        x: Any,
        y: Any,
        *,
        experts: bool,
        gate: bool,
        epochs: int,
        batch_size: int | None,
        learning_rate: float,
    ) -> None:
        self.mixture, self.x = mixture, x
        self.y = np.asarray(y, "float32")
        self.epochs, self.batch_size = epochs, batch_size
        self.learning_rate = learning_rate
        self.objective = ExpectedLogLikelihood(
            family, self.y.shape[1:], float(experts), float(gate)
        )
        self.restart()

    def restart(self) -> None:
        """Forgets the optimizer's state."""
        self.mixture.compile(keras.optimizers.Adam(self.learning_rate), loss=self.objective)

    def fit(self, counts: Array) -> None:
        """Trains for some epochs on the expected log-likelihood."""
        flat = self.y.reshape(len(self.y), -1)
        # Keras divides by the number of rows; regularisers ask for that of the counts.
        counts = counts * (len(counts) / counts.sum())
        packed = np.concatenate([flat, counts.astype("float32")], axis=1)
        self.mixture.fit(self.x, packed, epochs=self.epochs, batch_size=self.batch_size, verbose=0)

    def slow_down(self) -> None:
        """Halves the learning rate."""
        optimizer = self.mixture.optimizer
        optimizer.learning_rate = float(ops.convert_to_numpy(optimizer.learning_rate)) / 2.0
