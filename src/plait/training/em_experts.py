"""Drivers of the experts' M-step: in closed form where they are linear, by gradients elsewhere."""

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from plait.experts import copy_of
from plait.losses.families import Family
from plait.mixture.inputs import select_each
from plait.training.linear_families import LinearFamily, LinearGaussian, linear_family
from plait.training.regression import Array, with_intercept

if TYPE_CHECKING:
    from plait.mixture import Mixture


def fresh_weights(
    layer: keras.layers.Layer, generator: np.random.Generator
) -> list[keras.KerasTensor]:
    """Returns newly drawn values for the variables of a built layer, in order.

    The draws come from the generator alone, whatever Keras' own seed or an initialiser's is.
    """
    copy = copy_of(layer, int(generator.integers(2**20)))
    if not copy.built:
        copy.build(layer.input_shape)
    return [variable.value for variable in copy.variables]


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
    """

    exact = True

    def __init__(
        self,
        mixture: "Mixture",
        denses: list[keras.layers.Dense],
        family: LinearFamily,
        x: Any,
        y: Any,
        sample_weight: Array,
    ) -> None:
        self.mixture = mixture
        self.family = family
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

    def _designs(self, x: Any) -> list[Array]:
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

    def restart(self, generator: np.random.Generator) -> None:
        """Forgets the coefficients."""
        del generator
        self.coefficients = [np.zeros_like(each) for each in self.coefficients]

    def state(self) -> Any:
        """Returns all parameters."""
        return [each.copy() for each in self.coefficients], self.family.state()

    def set_state(self, state: Any) -> None:
        """Goes back to what `state` returned."""
        coefficients, family = state
        self.coefficients = [each.copy() for each in coefficients]
        self.family.set_state(family)

    def on(self, x: Any, y: Any) -> Array:
        """Returns `log p_l(y | x)` of other data, `(n, e)`."""
        target = self.family.target(y, self.coefficients[0].shape[1])
        return self._densities(self._designs(x), target)

    def write(self) -> None:
        """Gives kernels and biases to the mixture's experts."""
        values = [
            [each[:-1], each[-1]] if bias else [each]
            for each, bias in zip(self.coefficients, self.biases, strict=True)
        ]
        for expert, arrays in enumerate(values):
            self.mixture.state.bank.set_values(expert, [a.astype("float32") for a in arrays])

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
    """Any experts: their densities are computed by Keras, their M-step is left to gradients.

    Args:
        mixture: The built mixture.
        family: The family, built.
        x: Input as for `fit`.
        y: Target.
        sample_weight: Array `(n,)`, positive.
        batch_size: As in `predict`.
    """

    exact = False

    def __init__(
        self,
        mixture: "Mixture",
        family: Family,
        x: Any,
        y: Any,
        sample_weight: Array,
        batch_size: int | None,
    ) -> None:
        self.mixture = mixture
        self.family = family
        self.x, self.y = x, y
        self.batch_size = batch_size
        form = linear_family(family, mixture.num_experts)
        self.gaussian = form if isinstance(form, LinearGaussian) and form.learned else None
        if self.gaussian is not None:
            flat = np.asarray(y, "float64").reshape(len(y), -1)
            self.gaussian.bound(flat, sample_weight)

    def _outputs(self, x: Any) -> Array:
        outputs = self.mixture.expert_outputs(x, batch_size=self.batch_size)
        return np.moveaxis(np.asarray(outputs), 1, 0)

    def _densities(self, outputs: Array, y: Any) -> Array:
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

    def restart(self, generator: np.random.Generator) -> None:
        """Re-initialises every expert."""
        bank = self.mixture.state.bank
        for expert in range(self.mixture.num_experts):
            bank.set_values(expert, fresh_weights(self.mixture.expert(expert), generator))

    def state(self) -> Any:
        """Returns all parameters."""
        bank = self.mixture.state.bank
        values = [
            [ops.convert_to_numpy(value) for value in bank.values(expert)]
            for expert in range(self.mixture.num_experts)
        ]
        return values, None if self.gaussian is None else self.gaussian.state()

    def set_state(self, state: Any) -> None:
        """Goes back to what `state` returned."""
        for expert, values in enumerate(state[0]):
            self.mixture.state.bank.set_values(expert, values)
        if self.gaussian is not None:
            self.gaussian.set_state(state[1])

    def on(self, x: Any, y: Any) -> Array:
        """Returns `log p_l(y | x)` of other data, `(n, e)`."""
        return self._densities(self._outputs(x), y)

    def write(self) -> None:
        """The experts hold their weights already."""

    def scales(self) -> Array | None:
        """Returns the learned scales, or `None`."""
        return None if self.gaussian is None else self.gaussian.scales

    def smallest_scale(self) -> float:
        """Returns the bound of the learned scales."""
        return 0.0 if self.gaussian is None else self.gaussian.smallest

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted."""
        mixture = self.mixture
        layers = mixture.owned_experts or mixture.experts
        variables = {id(v): v for layer in layers for v in layer.trainable_variables}
        sizes = sum(int(np.prod(variable.shape)) for variable in variables.values())
        return sizes + (0 if self.gaussian is None else self.gaussian.num_parameters())


def experts_of(
    mixture: "Mixture",
    family: Family,
    x: Any,
    y: Any,
    sample_weight: Array,
    batch_size: int | None,
) -> LinearExperts | KerasExperts:
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
            return LinearExperts(mixture, denses, form, x, y, sample_weight)  # type: ignore[arg-type]
    return KerasExperts(mixture, family, x, y, sample_weight, batch_size)
