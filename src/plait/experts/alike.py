"""Which experts are alike: one architecture, so that one vectorised call can run them all."""

import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

# The class that `keras.Model(inputs, outputs)` makes has no public name of its own. A layer stands
# between the two, since Keras before 3.14 refuses a model whose input is its output.
_INPUT = keras.Input((1,))
Functional: type[Any] = type(keras.Model(_INPUT, keras.layers.Identity(name="same")(_INPUT)))

# A name says nothing about what a layer computes. Initialisers and seeds have done their work
# once the variables exist; shared object ids number the objects of one file.
_IGNORED = ("name", "shared_object_id", "seed")
_LISTS_OF_LAYER_NAMES = ("input_layers", "output_layers")


def signature(expert: keras.layers.Layer) -> str | None:
    """Returns a text that is equal for experts of one architecture, whatever their names.

    Args:
        expert: A built Keras layer or model.

    Returns:
        The text, or `None` where the expert cannot share a vectorised call; see `why_alone`.
    """
    if why_alone(expert) is not None:
        return None
    config = _anonymous(expert.get_config(), names={})
    trainable = {id(variable) for variable in expert.trainable_variables}
    variables = [(tuple(v.shape), str(v.dtype), id(v) in trainable) for v in expert.variables]
    kind = f"{type(expert).__module__}.{type(expert).__qualname__}"
    return json.dumps([kind, config, variables], sort_keys=True, default=str)


def why_alone(expert: keras.layers.Layer) -> str | None:
    """Returns why an expert must run on its own, or `None` when it can be stacked."""
    try:
        keras.saving.serialize_keras_object(expert)
    except Exception as error:  # whatever a user's get_config raises, it has no config to compare
        return f"it has no config ({type(error).__name__})"
    for layer in flat_layers(expert):
        held = next((name for name, value in vars(layer).items() if _is_array(value)), None)
        if held is not None:
            return f"its layer {layer.name!r} keeps state outside its variables ({held!r})"
    if saves_itself(expert):
        return "it saves state in its own way"
    if expert.metrics_variables:
        return "it keeps metrics of its own"
    return None


def shares_variables(expert: keras.layers.Layer, others: Sequence[keras.layers.Layer]) -> bool:
    """Whether an expert and any of the others own a variable together, or it is there twice."""
    own = {id(variable) for variable in expert.variables}
    twice = sum(other is expert for other in others) > 1
    return twice or any(
        id(v) in own for other in others if other is not expert for v in other.variables
    )


def saves_itself(expert: keras.layers.Layer) -> bool:
    """Whether a layer of the expert saves more than its variables, or in its own form.

    Vocabularies are saved as assets, statistics of `Normalization` come with constants made of
    them. Keras' other layers override saving for quantised weights alone, and a mixture for the
    sake of its form: these are variables.
    """
    base = keras.layers.Layer.load_own_variables
    return any(
        hasattr(layer, "save_assets")
        or isinstance(layer, keras.layers.Normalization)
        or (
            type(layer).load_own_variables is not base
            and not type(layer).__module__.startswith(("keras.", "plait."))
        )
        for layer in flat_layers(expert)
    )


def flat_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns a layer and every layer that it holds, at any depth, each once."""
    found: dict[int, keras.layers.Layer] = {}
    seen: set[int] = set()

    def visit(value: Any) -> None:
        if isinstance(value, keras.layers.Layer):
            if id(value) not in found:
                found[id(value)] = value
                for child in vars(value).values():
                    visit(child)
        elif isinstance(value, (list, tuple, dict)) and id(value) not in seen:
            seen.add(id(value))
            for child in value.values() if isinstance(value, dict) else value:
                visit(child)

    visit(layer)
    return list(found.values())


def refresh_adapted(layer: keras.layers.Layer) -> None:
    """Lets adapted layers compute anew what they keep beside their weights, once these are set."""
    for inner in flat_layers(layer):
        if isinstance(inner, keras.layers.Normalization):
            inner.finalize_state()


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or (
        keras.ops.is_tensor(value) and not isinstance(value, (keras.KerasTensor, keras.Variable))
    )


def _anonymous(config: Any, names: dict[str, int], key: str = "") -> Any:
    """Returns a config in which layers are numbered in order of appearance instead of named."""

    def number(name: str) -> int:
        return names.setdefault(name, len(names))

    if isinstance(config, dict):
        return {
            name: _anonymous(value, names, name)
            for name, value in config.items()
            if name not in _IGNORED and not name.endswith("_initializer")
        } | ({"name": number(config["name"])} if isinstance(config.get("name"), str) else {})
    if isinstance(config, (list, tuple)):
        if key == "keras_history" and config:
            return [number(config[0]), *config[1:]]
        if key in _LISTS_OF_LAYER_NAMES and config and isinstance(config[0], str):
            return [number(config[0]), *config[1:]]
        return [_anonymous(value, names, key) for value in config]
    return config
