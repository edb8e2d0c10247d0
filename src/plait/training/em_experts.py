"""Drivers of the experts' M-step: in closed form where they are linear, by gradients elsewhere."""

from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import ops

from plait.losses.families import Family
from plait.mixture.inputs import select_each
from plait.training.linear_families import LinearFamily, LinearGaussian, linear_family
from plait.training.redraw import input_specs, redrawn, restore, snapshot
from plait.training.regression import Array, with_intercept
from plait.typing import Nested

if TYPE_CHECKING:
    from plait.mixture import Mixture

# Copies of the experts' parameters, and of the family's.
State = tuple[list[Array], Array | None]


def dense_part(layer: keras.layers.Layer) -> keras.layers.Dense | None:
    """Returns the Dense layer that is all there is to an expert or gate, or `None`."""
    if isinstance(layer, keras.layers.Dense):
        regularized = layer.kernel_regularizer or layer.bias_regularizer
        return None if regularized or layer.kernel_constraint else layer
    if isinstance(layer, keras.Model) and hasattr(layer, "layers"):
        inner = [each for each in layer.layers if not isinstance(each, keras.layers.InputLayer)]
        return dense_part(inner[0]) if len(inner) == 1 else None
    return None


class LinearExperts:
    """Experts that are one Dense layer with the family's canonical activation.

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
        self.designs = self._designs(x)
        self.coefficients = [
            np.concatenate(
                [
                    np.atleast_2d(np.asarray(ops.convert_to_numpy(value), "float64"))
                    for value in values
                ]
            )
            for values in map(mixture.state.bank.values, range(mixture.num_experts))
        ]
        self.target = family.target(y, self.coefficients[0].shape[1])
        family.bound(self.target, sample_weight)

    def _designs(self, x: Nested) -> list[Array]:
        selectors = self.mixture.state.selectors
        parts = select_each(x, selectors)
        made = [with_intercept(np.asarray(part), self.biases[0]) for part in parts]
        return made * len(self.biases) if len(made) == 1 else made

    def _densities(self, designs: list[Array], target: Array) -> Array:
        return np.stack(
            [
                self.family.log_density(design @ coefficients, target, expert)
                for expert, (design, coefficients) in enumerate(
                    zip(designs, self.coefficients, strict=True)
                )
            ],
            axis=1,
        )

    def log_densities(self) -> Array:
        """Returns `log p_l(y | x)` of the training data, `(n, e)`."""
        return self._densities(self.designs, self.target)

    def fit(self, counts: Array) -> None:
        """Fits each expert to convergence; one without any share of the data stays as it is."""
        for expert, design in enumerate(self.designs):
            weights = counts[:, expert]
            if weights.sum() > 1e-8:
                self.coefficients[expert] = self.family.fit(
                    design, self.target, weights, self.coefficients[expert], expert
                )

    def restart(self) -> None:
        """Fits each expert, from coefficients of zero, to a few rows of its own."""
        self.coefficients = [np.zeros_like(each) for each in self.coefficients]
        self.fit(self._few_rows())

    def _few_rows(self) -> Array:
        """Returns counts `(n, e)` that give each expert its own few rows, and a little of the rest.

        A row is drawn as often as its weight says, so that weights start where repeated rows do.
        """
        num_experts, features = len(self.designs), self.designs[0].shape[1]
        ends = np.cumsum(self.sample_weight)
        size = max(2 * features, int(ends[-1]) // (4 * num_experts))
        counts = np.repeat(0.05 * self.sample_weight[:, None], num_experts, axis=1)
        for expert in range(num_experts):
            drawn = np.searchsorted(ends, self.generator.random(size) * ends[-1], side="right")
            counts[:, expert] += np.bincount(drawn, minlength=len(ends))
        return counts

    def state(self) -> State:
        """Returns copies of all parameters."""
        return [each.copy() for each in self.coefficients], self.family.state()

    def set_state(self, state: State) -> None:
        """Sets the parameters to what `state` returned."""
        coefficients, family = state
        self.coefficients = [each.copy() for each in coefficients]
        self.family.set_state(family)

    def on(self, x: Nested, y: Array) -> Array:
        """Returns `log p_l(y | x)` of other data, `(n, e)`."""
        target = self.family.target(y, self.coefficients[0].shape[1])
        return self._densities(self._designs(x), target)

    def write(self) -> None:
        """Sets kernels and biases of the mixture's experts."""
        single = [each.astype("float32") for each in self.coefficients]
        self.mixture.state.bank.set_all(
            [
                [each[:-1], each[-1]] if bias else [each]
                for each, bias in zip(single, self.biases, strict=True)
            ],
        )

    def scales(self) -> Array | None:
        """Returns the learned scales, or `None`."""
        family = self.family
        return family.scales if isinstance(family, LinearGaussian) and family.learned else None

    def smallest_scale(self) -> float:
        """Returns the bound of the learned scales."""
        return self.family.smallest if isinstance(self.family, LinearGaussian) else 0.0

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted."""
        return sum(each.size for each in self.coefficients) + self.family.num_parameters()


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
            flat = np.asarray(y, "float64").reshape(len(y), -1)
            self.gaussian.bound(flat, sample_weight)
        self.first_scales = None if self.gaussian is None else self.gaussian.state()

    def _outputs(self, x: Nested) -> Array:
        outputs = self.mixture.expert_outputs(x, batch_size=self.batch_size)
        return np.moveaxis(np.asarray(outputs), 1, 0)

    def _densities(self, outputs: Array, y: Array) -> Array:
        outputs = ops.convert_to_tensor(outputs, dtype="float32")
        if self.gaussian is not None:
            self.family.log_scale.assign(np.log(self.gaussian.scales))
        values = self.family.log_density(self.family.target(y, outputs), outputs)
        found = np.asarray(ops.convert_to_numpy(ops.stop_gradient(values)), "float64")
        return found.reshape(len(found), found.shape[1], -1).sum(axis=-1).T

    def log_densities(self) -> Array:
        """Returns `log p_l(y | x)` of the training data, `(n, e)`."""
        return self._densities(self._outputs(self.x), self.y)

    def fit(self, counts: Array) -> None:
        """Fits the scales alone, in closed form; the experts themselves take gradient steps."""
        if self.gaussian is None:
            return
        outputs = self._outputs(self.x).astype("float64")
        target = np.asarray(self.y, "float64").reshape(outputs.shape[1:])
        flat = target.reshape(len(target), -1)
        for expert, output in enumerate(outputs):
            weights = counts[:, expert]
            if weights.sum() > 1e-8:
                self.gaussian.fit_scale(output.reshape(flat.shape), flat, weights, expert)

    def restart(self) -> None:
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
            self.gaussian.set_state(self.first_scales)

    def state(self) -> State:
        """Returns copies of all variables and scales."""
        return snapshot(self.variables), None if self.gaussian is None else self.gaussian.state()

    def set_state(self, state: State) -> None:
        """Sets variables and scales to what `state` returned."""
        restore(self.variables, state[0])
        if self.gaussian is not None:
            self.gaussian.set_state(state[1])

    def on(self, x: Nested, y: Array) -> Array:
        """Returns `log p_l(y | x)` of other data, `(n, e)`."""
        return self._densities(self._outputs(x), y)

    def write(self) -> None:
        """Does nothing: the experts' variables are the parameters."""

    def scales(self) -> Array | None:
        """Returns the learned scales, or `None`."""
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
    """Returns the driver of a mixture's experts: closed form where all of them are linear."""
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
