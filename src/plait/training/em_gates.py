"""Drivers of the gate's M-step: constant, linear, any other."""

from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import tree

from plait.mixture.gates import ConstantGate, LinearGate
from plait.routers import Softmax
from plait.training import regression
from plait.training.em_experts import dense_part
from plait.training.redraw import input_specs, redrawn, restore, snapshot
from plait.training.regression import Array, log_softmax, with_intercept
from plait.typing import Nested

if TYPE_CHECKING:
    from plait.mixture import Mixture


class FixedGate:
    """The uniform gate: nothing to fit."""

    exact = True

    def __init__(self, num_rows: int, num_experts: int) -> None:
        self.scores = np.zeros((1, num_experts))
        self.num_rows = num_rows

    def log_weights(self) -> Array:
        """Returns log w of the training data, `(n, e)`."""
        return np.broadcast_to(log_softmax(self.scores), (self.num_rows, self.scores.shape[1]))

    def on(self, x: Nested) -> Array:
        """Returns log w of other data, `(n, e)`."""
        rows = len(tree.flatten(x)[0])
        return np.broadcast_to(log_softmax(self.scores), (rows, self.scores.shape[1]))

    def fit(self, counts: Array) -> None:
        """The M-step: does not lower `Σ c_nl log w_nl`, counts `c = s r` of shape `(n, e)`."""

    def restart(self) -> None:
        """Does nothing: there are no parameters."""

    def state(self) -> list[Array]:
        """Returns copies of all parameters."""
        return [self.scores.copy()]

    def set_state(self, state: list[Array]) -> None:
        """Sets the parameters to what `state` returned."""
        self.scores = state[0].copy()

    def write(self) -> None:
        """Sets the parameters of the mixture's gate."""

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted."""
        return 0


class ConstantWeights(FixedGate):
    """One learned weight per expert: its share of all counts."""

    def __init__(self, gate: ConstantGate, num_rows: int) -> None:
        super().__init__(num_rows, gate.num_experts)
        self.gate = gate
        self.scores = np.asarray(gate.scores, "float64")[None]

    def fit(self, counts: Array) -> None:
        """Sets each weight to the expert's share of all counts."""
        shares = counts.sum(axis=0) / counts.sum()
        self.scores = np.log(np.maximum(shares, 1e-30))[None]

    def restart(self) -> None:
        """Makes the weights equal."""
        self.scores = np.zeros_like(self.scores)

    def write(self) -> None:
        """Sets the scores of the gate."""
        self.gate.scores.assign(log_softmax(self.scores)[0].astype("float32"))

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted; the weights sum to one."""
        return self.scores.size - 1


class LinearScores:
    """A linear gate under a softmax: multinomial logistic regression on the responsibilities.

    Args:
        mixture: The built mixture.
        dense: The Dense layer of the gate.
        x: Input as for `fit`, of arrays.
    """

    exact = True

    def __init__(self, mixture: "Mixture", dense: keras.layers.Dense, x: Nested) -> None:
        self.mixture = mixture
        self.dense = dense
        self.design = self._design(x)
        values = [np.atleast_2d(np.asarray(value, "float64")) for value in dense.get_weights()]
        self.coefficients = np.concatenate(values)

    def _design(self, x: Nested) -> Array:
        part = tree.flatten(self.mixture.gate_part(x))
        flat = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in part]
        return with_intercept(np.concatenate(flat, axis=1), self.dense.use_bias)

    def log_weights(self) -> Array:
        """Returns log w of the training data, `(n, e)`."""
        return log_softmax(self.design @ self.coefficients)

    def on(self, x: Nested) -> Array:
        """Returns log w of other data, `(n, e)`."""
        return log_softmax(self._design(x) @ self.coefficients)

    def fit(self, counts: Array) -> None:
        """Takes a few Newton steps from the present coefficients."""
        weights = counts.sum(axis=1)
        self.coefficients = regression.softmax(
            self.design, counts / weights[:, None], weights, self.coefficients, max_iterations=5
        )

    def restart(self) -> None:
        """Sets the coefficients to zero: equal weights."""
        self.coefficients = np.zeros_like(self.coefficients)

    def state(self) -> list[Array]:
        """Returns copies of all parameters."""
        return [self.coefficients.copy()]

    def set_state(self, state: list[Array]) -> None:
        """Sets the parameters to what `state` returned."""
        self.coefficients = state[0].copy()

    def write(self) -> None:
        """Sets kernel and bias of the gate."""
        values = self.coefficients.astype("float32")
        self.dense.set_weights([values[:-1], values[-1]] if self.dense.use_bias else [values])

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted; one class of a softmax may have scores of zero."""
        features, classes = self.coefficients.shape
        return features * (classes - 1)


class KerasGate:
    """Any gate and router: Keras computes the weights, the M-step takes gradient steps.

    Args:
        mixture: The built mixture.
        x: Input as for `fit`.
        batch_size: As in `predict`.
        generator: Draws the gate's weights for a restart.
    """

    exact = False

    def __init__(
        self,
        mixture: "Mixture",
        x: Nested,
        batch_size: int | None,
        generator: np.random.Generator,
    ) -> None:
        self.mixture = mixture
        self.x = x
        self.batch_size = batch_size
        self.generator = generator
        router = mixture.router
        self.of_router = [] if router is None else list(router.variables)
        self.variables = [*mixture.gate.variables, *self.of_router]
        self.router_start = snapshot(self.of_router)

    def log_weights(self) -> Array:
        """Returns log w of the training data, `(n, e)`."""
        return self.on(self.x)

    def on(self, x: Nested) -> Array:
        """Returns log w of other data, `(n, e)`."""
        weights = np.asarray(self.mixture.gate_weights(x, batch_size=self.batch_size), "float64")
        return np.log(np.maximum(weights, 1e-30))

    def fit(self, counts: Array) -> None:
        """Does nothing: `GradientSteps` trains the gate."""

    def restart(self) -> None:
        """Draws the gate's weights anew, and sets the router back to where it started."""
        gate = self.mixture.gate
        part = self.mixture.gate_part(input_specs(self.mixture.state))
        present = [variable.value for variable in gate.variables]
        restore(gate.variables, redrawn(gate, present, part, self.generator))
        restore(self.of_router, self.router_start)

    def state(self) -> list[Array]:
        """Returns copies of all variables."""
        return snapshot(self.variables)

    def set_state(self, state: list[Array]) -> None:
        """Sets the variables to what `state` returned."""
        restore(self.variables, state)

    def write(self) -> None:
        """Does nothing: the gate's variables are the parameters."""

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted."""
        return sum(int(np.prod(v.shape)) for v in self.mixture.gate.trainable_variables)


GateDriver = FixedGate | LinearScores | KerasGate


def gate_of(
    mixture: "Mixture", x: Nested, batch_size: int | None, generator: np.random.Generator
) -> GateDriver:
    """Returns the driver of a mixture's gate: closed form where it is constant or linear."""
    gate, router = mixture.gate, mixture.router
    leaves = tree.flatten(x)
    arrays = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    plain = isinstance(router, Softmax) and router.from_logits and router.temperature == 1.0
    if arrays and plain and isinstance(gate, ConstantGate):
        if gate.learned:
            return ConstantWeights(gate, len(leaves[0]))
        return FixedGate(len(leaves[0]), mixture.num_experts)
    dense = gate.dense if isinstance(gate, LinearGate) else dense_part(gate)
    if dense is not None and arrays and len(mixture.weights_shape() or ()) == 2:
        scores = keras.activations.linear if plain else keras.activations.softmax
        if (plain or router is None) and dense.activation is scores:
            return LinearScores(mixture, dense, x)
    return KerasGate(mixture, x, batch_size, generator)
