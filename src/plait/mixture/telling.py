"""What a mixture tells about itself: weights, outputs, responsibilities, single experts."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops, tree

from plait.errors import message
from plait.experts import copy_of
from plait.losses import MixtureNLL, MixtureObjective, families
from plait.losses.families import Family
from plait.mixture import topology
from plait.mixture.specs import specs_of

_FAMILIES: dict[str, Callable[[], Family]] = {
    "binary_crossentropy": lambda: families.get("bernoulli"),
    "categorical_crossentropy": lambda: families.get("categorical"),
    "mean_squared_error": lambda: families.Gaussian(scale=0.5**0.5),
    "mse": lambda: families.Gaussian(scale=0.5**0.5),
    "poisson": lambda: families.get("poisson"),
    "sparse_categorical_crossentropy": lambda: families.get("categorical"),
}

if TYPE_CHECKING:
    from plait.mixture.model import Mixture


class _Probe(keras.Model):
    """Predicts what happens inside a mixture, through Keras' own data handling."""

    def __init__(self, mixture: "Mixture", what: str) -> None:
        super().__init__(autocast=False, name=f"{mixture.name}_{what}")
        self.mixture = mixture
        self.what = what

    def call(self, inputs: Any, mask: Any = None) -> Any:
        if not self.mixture.built:
            self.mixture(inputs)
        routing = self.mixture.route(inputs, False, mask)
        if self.what == "weights":
            return routing.weights
        parts = self.mixture._all_parts(routing, inputs, False, mask)
        routed = len(routing.weights.shape) - 1
        outputs = tree.map_structure(lambda leaf: ops.moveaxis(leaf, 0, routed), parts.outputs)
        return outputs if self.what == "outputs" else (routing.weights, outputs)


class Telling:
    """The part of `Mixture` that looks inside."""

    def gate_weights(self: Any, x: Any, batch_size: int | None = None) -> np.ndarray:
        """Returns the mixing weights for each example.

        Args:
            x: What `predict` takes.
            batch_size: As in `predict`.

        Returns:
            Array of shape `(b, …, e)`.
        """
        return self._predict_inside("weights", x, batch_size)

    def expert_outputs(self: Any, x: Any, batch_size: int | None = None) -> Any:
        """Returns every expert's output for each example.

        Args:
            x: What `predict` takes.
            batch_size: As in `predict`.

        Returns:
            Array of shape `(b, …, e, …, u)`: the expert axis stands right after the routed axes.
            Where the experts return a list or dict, such a structure of arrays.
        """
        return self._predict_inside("outputs", x, batch_size)

    def _predict_inside(self: Any, what: str, x: Any, batch_size: int | None) -> Any:
        probes = self._about.probes
        if what not in probes:
            probes[what] = _Probe(self, what)
        return probes[what].predict(x, batch_size=batch_size, verbose=0)

    def responsibilities(self: Any, x: Any, y: Any, batch_size: int | None = None) -> np.ndarray:
        """Returns the posterior weights, once the target is known: `h_l ∝ w_l(x) · p_l(y | x)`.

        The objective that the mixture is compiled with says what `p_l` is. Under another loss it
        follows from that: categorical and binary crossentropy, Poisson, mean squared error (a
        Gaussian of variance 1/2). A mixture that is not compiled is taken to be categorical.

        Args:
            x: Array or structure of arrays, as for `predict`.
            y: Target: class numbers `(b,)`, or an array of the output's shape.
            batch_size: As in `predict`.

        Returns:
            Array of shape `(b, …, e)`, which sums to one over the last axis.

        Raises:
            ValueError: If no family follows from the loss, or the target does not fit.

        References:
            Jordan, Jacobs (1994), Hierarchical mixtures of experts, eq. 16.
        """
        weights, outputs = self._predict_inside("parts", x, batch_size)
        routed = weights.ndim - 1
        stacked = ops.moveaxis(ops.convert_to_tensor(outputs), routed, 0)
        objective = self._posterior_objective()
        return ops.convert_to_numpy(objective.responsibilities(y, weights, stacked))

    def _posterior_objective(self: Any) -> MixtureObjective:
        if self.objective is not None:
            return self.objective
        if not self.compiled or self.loss is None:
            return MixtureNLL("categorical")
        loss = self.loss
        name = loss if isinstance(loss, str) else getattr(loss, "name", None) or loss.__name__
        if name not in _FAMILIES:
            raise ValueError(
                message(
                    "Responsibilities need a family of distributions",
                    f"a mixture compiled with loss {name!r}",
                    "Compile it with plait.losses.MixtureNLL(family)",
                )
            )
        return MixtureNLL(_FAMILIES[name]())

    def expert(self: Any, i: int) -> keras.Model:
        """Returns expert `i` as a stand-alone Keras model with its present weights.

        An expert that was passed in is returned itself, a bare layer as a model around it; an
        expert made of a template is a new model.

        Args:
            i: Position among the experts.

        Raises:
            IndexError: If there is no such expert.
            ValueError: If the mixture is not built.
        """
        if not 0 <= i < self.num_experts:
            raise IndexError(
                message(
                    f"The mixture has experts 0 to {self.num_experts - 1}",
                    f"i={i}",
                    "Ask for one of these",
                )
            )
        self._check_built("expert")
        about = self._about
        if about.bank.sources is not None:
            about.bank.write_back()
            layer = about.bank.sources[i]
            return layer if isinstance(layer, keras.Model) else self._as_model(layer, i)
        scaffold = about.bank.groups[0].runner.representative()
        layer = copy_of(scaffold)
        model = layer if isinstance(layer, keras.Model) else self._as_model(layer, i)
        if not layer.built:
            layer(self._input_specs_of(i))
        for variable, value in zip(layer.variables, about.bank.values()[i], strict=True):
            variable.assign(value)
        return model

    def _input_specs_of(self: Any, i: int) -> Any:
        about = self._about
        inputs = specs_of(about.input_shape, about.input_dtype)
        fed = topology.select_each(inputs, about.selectors)
        return fed[0 if len(fed) == 1 else i]

    def _as_model(self: Any, layer: keras.layers.Layer, i: int) -> keras.Model:
        inputs = tree.map_structure(
            lambda spec: keras.Input(spec.shape[1:], dtype=spec.dtype), self._input_specs_of(i)
        )
        return keras.Model(inputs, layer(inputs), name=layer.name)

    def _check_built(self: Any, method: str) -> None:
        if not self.built:
            raise ValueError(
                message(
                    f"`{method}` needs a mixture that is built",
                    f"{self.name!r}, which has seen no input yet",
                    "Call it on data once, or call build(input_shape)",
                )
            )
