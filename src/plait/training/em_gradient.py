"""The M-step by gradients: a few epochs on the expected log-likelihood."""

from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import ops

from plait.losses import MixtureNLL, MixtureObjective
from plait.losses.families import Family
from plait.ops.likelihood import safe_log
from plait.training.batches import Batches
from plait.training.on_disk import OnDisk
from plait.training.regression import Array
from plait.typing import Nested, Tensor

if TYPE_CHECKING:
    from plait.mixture import Mixture


class ExpectedLogLikelihood(MixtureObjective):
    """`−Σ_l c_l (log p_l(y | x) + log w_l)`, with the counts `c = s r` beside the target.

    Args:
        family: The family of the experts.
        experts: 1.0 where the experts' part is wanted, else 0.0.
        gate: 1.0 where the gate's part is wanted, else 0.0.
    """

    def __init__(self, family: Family, experts: float, gate: float) -> None:
        super().__init__(name="expected_log_likelihood")
        self.likelihood = MixtureNLL(family)
        self.experts, self.gate = experts, gate

    @property
    def state(self) -> keras.layers.Layer:
        """The family: its scales change between M-steps, and a compiled step must read them."""
        return self.likelihood.state

    def per_example(self, y_true: dict[str, Tensor], weights: Tensor, outputs: Tensor) -> Tensor:
        """Returns the expected negative log-likelihood of each example.

        Args:
            y_true: The target as `"y"`, `(b, …)`, and the counts as `"counts"`, `(b, e)`.
            weights: Mixing weights `(b, e)`.
            outputs: The experts' outputs `(e, b, …)`.
        """
        densities = self.likelihood.log_densities(y_true["y"], weights, outputs)
        # A part that is not wanted counts zero times: its variables then have a gradient, of zero.
        terms = self.experts * ops.moveaxis(densities, 0, -1) + self.gate * safe_log(weights)
        return -ops.sum(y_true["counts"] * terms, axis=-1)


class GradientSteps:
    """Takes the M-steps that have no closed form.

    Args:
        mixture: The built mixture, which is compiled anew.
        family: The family of the experts, built.
        x: Input, as arrays that may lie in files.
        y: Target, which may too.
        generator: Draws the order of the rows.
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
        x: Nested,
        y: Array | OnDisk,
        generator: np.random.Generator,
        *,
        experts: bool,
        gate: bool,
        epochs: int,
        batch_size: int | None,
        learning_rate: float,
    ) -> None:
        self.mixture = mixture
        self.x = x
        self.y = y if isinstance(y, OnDisk) else np.asarray(y, "float32")
        self.generator = generator
        self.epochs, self.batch_size = epochs, batch_size or 32
        self.learning_rate = learning_rate
        self.objective = ExpectedLogLikelihood(family, float(experts), float(gate))
        self.restart()

    def restart(self) -> None:
        """Compiles the mixture with an optimizer that has no state yet."""
        self.mixture.compile(keras.optimizers.Adam(self.learning_rate), loss=self.objective)

    def fit(self, counts: Array) -> None:
        """Trains for some epochs on the expected log-likelihood, counts `(n, e)`."""
        # Keras divides by the number of rows; regularisers ask for that of the counts.
        self.train((counts * (len(counts) / counts.sum())).astype("float32"))

    def train(self, counts: Array | OnDisk) -> None:
        """As `fit`, on counts of one a row on average."""
        arrays = (self.x, {"y": self.y, "counts": counts})
        batches = Batches(arrays, self.batch_size, self.generator)
        self.mixture.fit(batches, epochs=self.epochs, shuffle=False, verbose=0)

    def slow_down(self) -> None:
        """Halves the learning rate."""
        optimizer = self.mixture.optimizer
        optimizer.learning_rate = float(ops.convert_to_numpy(optimizer.learning_rate)) / 2.0
