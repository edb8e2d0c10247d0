"""What happens inside a mixture: weights, outputs, responsibilities, single experts."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops, tree

from plait.errors import message
from plait.experts.initialization import copy_of
from plait.experts.runner import input_of
from plait.losses import MixtureNLL, MixtureObjective, families
from plait.losses.families import Family
from plait.mixture.inputs import select_each
from plait.mixture.specs import specs_of
from plait.typing import Nested

if TYPE_CHECKING:
    from plait.mixture.model import Mixture
    from plait.mixture.of_experts import OfExperts

_FAMILIES: dict[str, Callable[[bool], Family]] = {
    "binary_crossentropy": lambda logits: families.Bernoulli(from_logits=logits),
    "categorical_crossentropy": lambda logits: families.Categorical(from_logits=logits),
    "mean_squared_error": lambda _: families.Gaussian(scale=0.5**0.5),
    "mse": lambda _: families.Gaussian(scale=0.5**0.5),
    "poisson": lambda _: families.get("poisson"),
    "sparse_categorical_crossentropy": lambda logits: families.Categorical(from_logits=logits),
}


class _Inside(keras.Model):
    """Predicts what happens inside a mixture, through Keras' own data handling."""

    def __init__(self, mixture: "OfExperts", what: str) -> None:
        super().__init__(autocast=False, name=f"{mixture.name}_{what}")
        self.mixture = mixture
        self.what = what

    def call(self, inputs: Nested, mask: Nested = None) -> Nested:
        if not self.mixture.built:
            self.mixture(inputs)
        weights, outputs = self.mixture.parts_inside(inputs, mask, self.what != "weights")
        if self.what == "weights":
            return weights
        return outputs if self.what == "outputs" else (weights, outputs)


def predict_inside(mixture: "OfExperts", what: str, x: Any, batch_size: int | None) -> Any:
    """Returns the `"weights"`, the `"outputs"` or both (`"parts"`) for data, in batches."""
    probes = mixture.state.probes
    if what not in probes:
        probes[what] = _Inside(mixture, what)
    return probes[what].predict(x, batch_size=batch_size, verbose=0)


def responsibilities(mixture: "Mixture", x: Any, y: Any, batch_size: int | None) -> np.ndarray:
    """Returns the posterior weights; see `Mixture.responsibilities`."""
    if mixture.built and len(tree.flatten(mixture.state.output_specs)) > 1:
        raise ValueError(
            message(
                "Responsibilities need experts with one output, whose distribution is known",
                f"{len(tree.flatten(mixture.state.output_specs))} outputs",
                "Make a mixture of models that return one of these outputs",
            )
        )
    objective = _posterior_objective(mixture)
    weights, outputs = predict_inside(mixture, "parts", x, batch_size)
    (outputs,) = tree.flatten(outputs)
    stacked = ops.moveaxis(ops.convert_to_tensor(outputs), weights.ndim - 1, 0)
    return ops.convert_to_numpy(objective.responsibilities(y, weights, stacked))


def _posterior_objective(mixture: "Mixture") -> MixtureObjective:
    """Returns the objective that says how the target is distributed around an expert's output."""
    if mixture.objective is not None:
        return mixture.objective
    return MixtureNLL(family_of(mixture.loss if mixture.compiled else None))


def family_of(loss: Any) -> Family:
    """Returns the family of distributions that a Keras loss stands for.

    Args:
        loss: What `compile` was given, or `None`.

    Raises:
        ValueError: If none follows from it.
    """
    if loss is None:
        received = "a mixture that is not compiled with a loss"
    else:
        name = loss if isinstance(loss, str) else getattr(loss, "name", None)
        name = name or getattr(loss, "__name__", type(loss).__name__)
        if name in _FAMILIES:
            config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
            return _FAMILIES[name](bool(config.get("from_logits", False)))
        received = f"a mixture compiled with loss {name!r}"
    raise ValueError(
        message(
            "Responsibilities need a family of distributions",
            received,
            "Compile it with plait.losses.MixtureNLL(family)",
        )
    )


def expert(mixture: "OfExperts", i: int) -> keras.Model:
    """Returns one expert as a Keras model; see `Mixture.expert`."""
    if not isinstance(i, (int, np.integer)) or not 0 <= i < mixture.num_experts:
        raise IndexError(
            message(
                f"The mixture has experts 0 to {mixture.num_experts - 1}",
                f"i={i}",
                "Ask for one of these",
            )
        )
    state = mixture.state
    if state.ownership == "shared":
        given = state.given[i]
        if isinstance(given, keras.Model):
            return given
        _check_built(mixture)
        if i not in state.models:
            state.models[i] = _as_model(mixture, given, i)
        return state.models[i]
    _check_built(mixture)
    layer = copy_of(state.bank.representative(i))
    model = layer if isinstance(layer, keras.Model) else _as_model(mixture, layer, i)
    if not layer.built:
        layer(_input_specs(mixture, i))
    for variable, value in zip(layer.variables, state.bank.values(i), strict=True):
        variable.assign(ops.copy(value))  # JAX deletes arrays of a model that is trained
    return model


def _input_specs(mixture: "OfExperts", i: int) -> Nested:
    state = mixture.state
    fed = select_each(specs_of(state.input_shape, state.input_dtype), state.selectors)
    return input_of(fed, i)


def _as_model(mixture: "OfExperts", layer: keras.layers.Layer, i: int) -> keras.Model:
    inputs = tree.map_structure(
        lambda spec: keras.Input(spec.shape[1:], dtype=spec.dtype), _input_specs(mixture, i)
    )
    return keras.Model(inputs, layer(inputs), name=layer.name)


def _check_built(mixture: "OfExperts") -> None:
    if not mixture.built:
        raise ValueError(
            message(
                "`expert` needs a mixture that is built",
                f"{mixture.name!r}, which has seen no input yet",
                "Call it on data once, or call build(input_shape)",
            )
        )
