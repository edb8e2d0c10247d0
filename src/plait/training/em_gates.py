"""Drivers of the gate's M-step: constant, linear, any other."""

from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import tree

from plait.mixture.gates import ConstantGate, LinearGate
from plait.routers import Softmax
from plait.training import regression
from plait.training.em_experts import State, dense_part
from plait.training.redraw import input_specs, redrawn, restore, snapshot
from plait.training.regression import Array, times, with_intercept
from plait.typing import Nested

if TYPE_CHECKING:
    from plait.mixture import Mixture


class FixedGate:
    """The uniform gate: nothing to fit."""

    exact = True

    def __init__(self, num_experts: int) -> None:
        self.scores = np.zeros((1, num_experts, 1))

    def log_weights(self) -> Array:
        """Returns log w of the training data, `(r, e, n)`; where runs or rows are alike, one."""
        return regression.softmax(self.scores)[0]

    def on(self, x: Nested) -> Array:
        """Returns log w of other data, `(r, e, n)`."""
        del x
        return self.log_weights()

    def fit(self, counts: Array) -> None:
        """The M-step: does not lower `Σ c_nl log w_nl`, counts `c = s r` of shape `(r, e, n)`."""

    def restart(self, runs: int) -> None:
        """Does nothing: there are no parameters."""

    def state(self) -> State:
        """Returns all parameters, runs first."""
        return []

    def set_state(self, state: State) -> None:
        """Sets the parameters to what `state` returned, or to some of its runs."""

    def write(self) -> None:
        """Sets the parameters of the mixture's gate to those of the first run."""

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted in a run."""
        return 0


class ConstantWeights(FixedGate):
    """One learned weight per expert: its share of all counts."""

    def __init__(self, gate: ConstantGate) -> None:
        self.gate = gate
        self.scores = np.asarray(gate.scores, "float64")[None, :, None]

    def fit(self, counts: Array) -> None:
        """Sets each weight to the expert's share of all counts."""
        sums = counts.sum(axis=-1, keepdims=True)
        self.scores = np.log(np.maximum(sums / sums.sum(axis=1, keepdims=True), 1e-30))

    def restart(self, runs: int) -> None:
        """Makes the weights equal."""
        self.scores = np.zeros((runs, self.gate.num_experts, 1))

    def state(self) -> State:
        """Returns the scores."""
        return [self.scores]

    def set_state(self, state: State) -> None:
        """Sets the scores."""
        (self.scores,) = state

    def write(self) -> None:
        """Sets the scores of the gate."""
        self.gate.scores.assign(self.log_weights()[0, :, 0].astype("float32"))

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted; the weights sum to one."""
        return self.gate.num_experts - 1


class LinearScores:
    """A linear gate under a softmax: multinomial logistic regression on the responsibilities.

    Coefficients are `(r, e, d)`.

    Args:
        mixture: The built mixture.
        dense: The Dense layer of the gate.
        x: Input as for `fit`, of arrays.
    """

    exact = True
    coefficients: Array
    fitted: tuple[Array, Array]

    def __init__(self, mixture: "Mixture", dense: keras.layers.Dense, x: Nested) -> None:
        self.mixture = mixture
        self.dense = dense
        self.design = self.design_of(x)
        values = [np.atleast_2d(np.asarray(value, "float64")) for value in dense.get_weights()]
        self.coefficients: Array = np.concatenate(values).T[None]
        self.fitted = self._evaluate(self.coefficients)

    def design_of(self, x: Nested) -> Array:
        """Returns the design matrix of some rows."""
        part = tree.flatten(self.mixture.gate_part(x))
        flat = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in part]
        return with_intercept(np.concatenate(flat, axis=1), self.dense.use_bias)

    def _evaluate(self, coefficients: Array) -> tuple[Array, Array]:
        return regression.softmax(times(coefficients, self.design.T))

    def log_weights(self) -> Array:
        """Returns log w of the training data, `(r, e, n)`."""
        return self.fitted[0]

    def on(self, x: Nested) -> Array:
        """Returns log w of other data, `(r, e, n)`."""
        return regression.softmax(times(self.coefficients, self.design_of(x).T))[0]

    def fit(self, counts: Array) -> None:
        """Takes a Newton step from the present coefficients, counts `(r, e, n)`."""
        sums = counts.sum(axis=1)
        self.coefficients, self.fitted = regression.climb(
            self.coefficients,
            self.fitted,
            evaluate=self._evaluate,
            value=lambda fitted: (counts * fitted[0]).sum(axis=(1, 2)),
            direction=lambda fitted: regression.newton_softmax(
                self.design, counts - sums[:, None] * fitted[1], fitted[1], sums
            ),
            steps=regression.softmax_steps(self.design.shape[1], counts.shape[1]),
        )

    def restart(self, runs: int) -> None:
        """Sets the coefficients to zero: equal weights."""
        self.set_state([np.zeros((runs, *self.coefficients.shape[1:]))])

    def state(self) -> State:
        """Returns the coefficients."""
        return [self.coefficients]

    def set_state(self, state: State) -> None:
        """Sets the coefficients."""
        (self.coefficients,) = state
        self.fitted = self._evaluate(self.coefficients)

    def write(self) -> None:
        """Sets kernel and bias of the gate to those of the first run."""
        values = self.coefficients[0].T.astype("float32")
        self.dense.set_weights([values[:-1], values[-1]] if self.dense.use_bias else [values])

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted; one class of a softmax may have scores of zero."""
        _, classes, features = self.coefficients.shape
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
        """Returns log w of the training data, `(1, e, n)`."""
        return self.on(self.x)

    def on(self, x: Nested) -> Array:
        """Returns log w of other data, `(1, e, n)`."""
        weights = np.asarray(self.mixture.gate_weights(x, batch_size=self.batch_size), "float64")
        return np.log(np.maximum(weights.T[None], 1e-30))

    def fit(self, counts: Array) -> None:
        """Does nothing: `GradientSteps` trains the gate."""

    def restart(self, runs: int = 1) -> None:
        """Draws the gate's weights anew, and sets the router back to where it started."""
        del runs
        gate = self.mixture.gate
        part = self.mixture.gate_part(input_specs(self.mixture.state))
        present = [variable.value for variable in gate.variables]
        restore(gate.variables, redrawn(gate, present, part, self.generator))
        restore(self.of_router, self.router_start)

    def state(self) -> State:
        """Returns copies of all variables."""
        return snapshot(self.variables)

    def set_state(self, state: State) -> None:
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
    """Returns the driver of a mixture's gate: `KerasGate` unless it is constant or linear."""
    gate, router = mixture.gate, mixture.router
    leaves = tree.flatten(x)
    arrays = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    plain = isinstance(router, Softmax) and router.from_logits and router.temperature == 1.0
    if arrays and plain and isinstance(gate, ConstantGate):
        if gate.learned:
            return ConstantWeights(gate)
        return FixedGate(mixture.num_experts)
    dense = gate.dense if isinstance(gate, LinearGate) else dense_part(gate)
    if dense is not None and arrays and len(mixture.weights_shape() or ()) == 2:
        scores = keras.activations.linear if plain else keras.activations.softmax
        if (plain or router is None) and dense.activation is scores:
            return LinearScores(mixture, dense, x)
    return KerasGate(mixture, x, batch_size, generator)
