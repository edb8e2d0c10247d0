"""Drivers of the experts' M-step: in float64 where they are linear, by gradients elsewhere."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np
from keras import ops

from plait.losses.families import Family
from plait.mixture.inputs import select_each
from plait.training.linear_families import (
    Fitted,
    LinearFamily,
    LinearGaussian,
    Target,
    linear_family,
)
from plait.training.redraw import input_specs, redrawn, restore, snapshot
from plait.training.regression import Array, times, with_intercept
from plait.typing import Nested

if TYPE_CHECKING:
    from plait.mixture import Mixture

# The parameters of a driver.
State = list[Array]
# A random start is fitted to its few rows in as many Newton steps at most.
FIRST_STEPS = 25


def dense_part(layer: keras.layers.Layer) -> keras.layers.Dense | None:
    """Returns the Dense layer that is all there is to an expert or gate, or `None`."""
    if isinstance(layer, keras.layers.Dense):
        regularized = layer.kernel_regularizer or layer.bias_regularizer
        return None if regularized or layer.kernel_constraint else layer
    if isinstance(layer, keras.Model) and hasattr(layer, "layers"):
        inner = [each for each in layer.layers if not isinstance(each, keras.layers.InputLayer)]
        return dense_part(inner[0]) if len(inner) == 1 else None
    return None


class _Group(NamedTuple):
    """Experts that read one design matrix `(n, d)`: those numbered by the slice."""

    experts: slice
    design: Array


class LinearExperts:
    """Experts that are one Dense layer with the family's canonical activation, in many runs.

    Coefficients are `(r, e, u, d)`, for each group of experts that read the same design matrix.

    Args:
        mixture: The built mixture.
        denses: The Dense layer of each expert.
        family: The family's closed form.
        x: Input as for `fit`.
        y: Target.
        sample_weight: Array `(n,)`, positive.
        generator: Draws the rows that an expert is fitted to at a restart.
    """

    exact = True
    coefficients: list[Array]
    fitted: list[Fitted]

    def __init__(
        self,
        mixture: "Mixture",
        denses: list[keras.layers.Dense],
        family: LinearFamily,
        x: Nested,
        y: Array,
        sample_weight: Array,
        generator: np.random.Generator,
    ) -> None:
        self.mixture = mixture
        self.family = family
        self.sample_weight = sample_weight
        self.generator = generator
        self.biases = [dense.use_bias for dense in denses]
        self.units = denses[0].units
        self.coefficients = []
        self.fitted = []
        self.groups = self.groups_of(x)
        self.target = family.target(y, self.units)
        family.bound(self.target.values, sample_weight)

    def groups_of(self, x: Nested) -> list[_Group]:
        """Returns the design matrices of some rows, and which experts read each."""
        parts = select_each(x, self.mixture.state.selectors)
        if len(parts) == 1 and len(set(self.biases)) == 1:
            return [_Group(slice(None), with_intercept(np.asarray(parts[0]), self.biases[0]))]
        parts = parts * (len(self.biases) // len(parts))
        return [
            _Group(slice(expert, expert + 1), with_intercept(np.asarray(part), bias))
            for expert, (part, bias) in enumerate(zip(parts, self.biases, strict=True))
        ]

    def _evaluate(self, groups: list[_Group], target: Target) -> list[Fitted]:
        return [
            self.family.evaluate(times(coefficients, design.T), target, experts)
            for (experts, design), coefficients in zip(groups, self.coefficients, strict=True)
        ]

    def log_densities(self) -> Array:
        """Returns `log p_l(y | x)` of the training data, `(r, e, n)`."""
        return _densities(self.fitted)

    def fit(self, counts: Array) -> None:
        """Raises the likelihood of each expert; one without any share of the data stays as it is.

        Args:
            counts: Array `(r, e, n)`.
        """
        self._fit(counts, self.family.steps)

    def _fit(self, counts: Array, steps: Callable[[int, int], int]) -> None:
        counts = np.where(counts.sum(axis=-1, keepdims=True) > 1e-8, counts, 0.0)
        found = [
            self.family.fit(
                design,
                self.target,
                counts[:, experts],
                coefficients,
                fitted,
                experts,
                steps(design.shape[1], self.units),
            )
            for (experts, design), coefficients, fitted in zip(
                self.groups, self.coefficients, self.fitted, strict=True
            )
        ]
        self.coefficients = [coefficients for coefficients, _ in found]
        self.fitted = [fitted for _, fitted in found]

    def restart(self, runs: int) -> None:
        """Fits each expert of each run, from coefficients of zero, to a few rows of its own."""
        num_experts = len(self.biases)
        self.family.restart(runs)
        self.coefficients = [
            np.zeros((runs, num_experts if len(self.groups) == 1 else 1, self.units, features))
            for features in (group.design.shape[1] for group in self.groups)
        ]
        self.fitted = self._evaluate(self.groups, self.target)
        counts = np.stack([self._few_rows() for _ in range(runs)])
        self._fit(counts, lambda features, units: FIRST_STEPS)

    def _few_rows(self) -> Array:
        """Returns counts `(e, n)` that give each expert its own few rows, and a little of the rest.

        A row is drawn as often as its weight says, so that weights start where repeated rows do.
        """
        num_experts, features = len(self.biases), self.groups[0].design.shape[1]
        ends = np.cumsum(self.sample_weight)
        size = max(2 * features, int(ends[-1]) // (4 * num_experts))
        counts = np.repeat(0.05 * self.sample_weight[None], num_experts, axis=0)
        for count in counts:
            drawn = np.searchsorted(ends, self.generator.random(size) * ends[-1], side="right")
            count += np.bincount(drawn, minlength=len(ends))
        return counts

    def state(self) -> State:
        """Returns all parameters, runs first."""
        return [*self.coefficients, *self.family.state()]

    def set_state(self, state: State) -> None:
        """Sets the parameters to what `state` returned, or to some of its runs."""
        self.coefficients = state[: len(self.groups)]
        self.family.set_state(state[len(self.groups) :])
        self.fitted = self._evaluate(self.groups, self.target)

    def on(self, x: Nested, y: Array) -> Array:
        """Returns `log p_l(y | x)` of other data, `(r, e, n)`."""
        return _densities(self._evaluate(self.groups_of(x), self.family.target(y, self.units)))

    def write(self) -> None:
        """Sets kernels and biases of the mixture's experts to those of the first run."""
        single = [kernel.T.astype("float32") for each in self.coefficients for kernel in each[0]]
        self.mixture.state.bank.set_all(
            [
                [each[:-1], each[-1]] if bias else [each]
                for each, bias in zip(single, self.biases, strict=True)
            ],
        )

    def scales(self) -> Array | None:
        """Returns the learned scales `(r, e)`, or `None`."""
        family = self.family
        return family.scales if isinstance(family, LinearGaussian) and family.learned else None

    def smallest_scale(self) -> float:
        """Returns the bound of the learned scales."""
        return self.family.smallest if isinstance(self.family, LinearGaussian) else 0.0

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted in a run."""
        return sum(each[0].size for each in self.coefficients) + self.family.num_parameters()


def _densities(fitted: list[Fitted]) -> Array:
    single = [each.densities for each in fitted]
    return single[0] if len(single) == 1 else np.concatenate(single, axis=1)


class KerasExperts:
    """Any experts: Keras computes their densities, the M-step takes gradient steps.

    Args:
        mixture: The built mixture.
        family: The family, built.
        x: Input as for `fit`.
        y: Target.
        sample_weight: Array `(n,)`, positive.
        batch_size: As in `predict`.
        generator: Draws the experts' weights for a restart.
    """

    exact = False

    def __init__(
        self,
        mixture: "Mixture",
        family: Family,
        x: Nested,
        y: Array,
        sample_weight: Array,
        batch_size: int | None,
        generator: np.random.Generator,
    ) -> None:
        self.mixture = mixture
        self.family = family
        self.x, self.y = x, y
        self.batch_size = batch_size
        self.generator = generator
        layers = mixture.owned_experts or mixture.experts
        self.variables = list({id(v): v for layer in layers for v in layer.variables}.values())
        form = linear_family(family, mixture.num_experts)
        self.gaussian = form if isinstance(form, LinearGaussian) and form.learned else None
        if self.gaussian is not None:
            self.gaussian.bound(np.asarray(y, "float64").reshape(len(y), -1).T, sample_weight)

    def outputs_of(self, x: Nested) -> Array:
        """Returns the experts' outputs of some rows, `(e, n, …)`."""
        outputs = self.mixture.expert_outputs(x, batch_size=self.batch_size)
        return np.moveaxis(np.asarray(outputs), 1, 0)

    def _densities(self, outputs: Array, y: Array) -> Array:
        outputs = ops.convert_to_tensor(outputs, dtype="float32")
        if self.gaussian is not None:
            self.family.log_scale.assign(np.log(self.gaussian.scales[0]))
        values = self.family.log_density(self.family.target(y, outputs), outputs)
        found = np.asarray(ops.convert_to_numpy(ops.stop_gradient(values)), "float64")
        return found.reshape(1, *found.shape[:2], -1).sum(axis=-1)

    def log_densities(self) -> Array:
        """Returns `log p_l(y | x)` of the training data, `(1, e, n)`."""
        return self._densities(self.outputs_of(self.x), self.y)

    def fit(self, counts: Array) -> None:
        """Fits the scales alone, in closed form; the experts themselves take gradient steps."""
        if self.gaussian is None:
            return
        outputs = self.outputs_of(self.x).astype("float64")
        squares = (np.asarray(self.y, "float64").reshape(outputs.shape[1:]) - outputs) ** 2
        means = squares.reshape(1, *outputs.shape[:2], -1).mean(axis=-1)
        self.gaussian.fit_scales(means, counts)

    def restart(self, runs: int = 1) -> None:
        """Draws the weights of every expert anew; learned scales start where the family says."""
        state = self.mixture.state
        bank = state.bank
        fed = select_each(input_specs(state), state.selectors)
        fed = fed * self.mixture.num_experts if len(fed) == 1 else fed
        bank.set_all(
            [
                redrawn(bank.representative(i), bank.values(i), inputs, self.generator)
                for i, inputs in enumerate(fed)
            ],
        )
        if self.gaussian is not None:
            self.gaussian.restart(runs)

    def state(self) -> State:
        """Returns copies of all variables, and the scales."""
        return snapshot(self.variables) + ([] if self.gaussian is None else self.gaussian.state())

    def set_state(self, state: State) -> None:
        """Sets variables and scales to what `state` returned."""
        restore(self.variables, state[: len(self.variables)])
        if self.gaussian is not None:
            self.gaussian.set_state(state[len(self.variables) :])

    def on(self, x: Nested, y: Array) -> Array:
        """Returns `log p_l(y | x)` of other data, `(1, e, n)`."""
        return self._densities(self.outputs_of(x), y)

    def write(self) -> None:
        """Does nothing: the experts' variables are the parameters."""

    def scales(self) -> Array | None:
        """Returns the learned scales `(1, e)`, or `None`."""
        return None if self.gaussian is None else self.gaussian.scales

    def smallest_scale(self) -> float:
        """Returns the bound of the learned scales."""
        return 0.0 if self.gaussian is None else self.gaussian.smallest

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted."""
        layers = self.mixture.owned_experts or self.mixture.experts
        variables = {id(v): v for layer in layers for v in layer.trainable_variables}
        sizes = sum(int(np.prod(variable.shape)) for variable in variables.values())
        return sizes + (0 if self.gaussian is None else self.gaussian.num_parameters())


ExpertsDriver = LinearExperts | KerasExperts


def experts_of(
    mixture: "Mixture",
    family: Family,
    x: Nested,
    y: Array,
    sample_weight: Array,
    batch_size: int | None,
    generator: np.random.Generator,
) -> ExpertsDriver:
    """Returns the driver of a mixture's experts: `LinearExperts` where all of them are linear."""
    state = mixture.state
    form = linear_family(family, mixture.num_experts)
    given = state.given * (mixture.num_experts if state.ownership == "template" else 1)
    denses = [dense_part(layer) for layer in given]
    flat = len(mixture.weights_shape() or ()) == 2 and isinstance(y, np.ndarray)
    if (
        form is not None
        and flat
        and all(dense is not None and dense.activation in form.activations for dense in denses)
    ):
        parts = select_each(x, state.selectors)
        if all(isinstance(part, np.ndarray) and part.ndim == 2 for part in parts):
            linear = [dense for dense in denses if dense is not None]
            return LinearExperts(mixture, linear, form, x, y, sample_weight, generator)
    return KerasExperts(mixture, family, x, y, sample_weight, batch_size, generator)
