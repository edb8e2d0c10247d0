"""Which experts are alike: one architecture, so that one vectorised call can run them all.

Experts are alike if nothing but names, initialisers and the values of variables differs. A
signature holds everything else: for each layer its class, config, dtype policy and flags, and the
plain attributes of layers that are not Keras' own, whose configs may not tell them.
"""

import functools
import json
from collections.abc import Hashable, Sequence
from typing import Any

import keras
import numpy as np

from plait.compat import flat_layers, without_other_backends
from plait.typing import Config

Signature = tuple[tuple[str, Hashable], ...]

# Initialisers and seeds have done their work once the variables exist; shared object ids number
# the objects of one file.
_IGNORED = ("name", "shared_object_id", "seed")
_LISTS_OF_LAYER_NAMES = ("input_layers", "output_layers")
# What a user's `get_config` raises where a layer has no config.
_NO_CONFIG = (NotImplementedError, TypeError, ValueError, AttributeError, KeyError)


def signature(expert: keras.layers.Layer) -> Signature | None:
    """Returns what is equal for alike experts, as pairs of a description and a value.

    Args:
        expert: A built Keras layer or model.

    Returns:
        The pairs, or `None` where the expert cannot share a vectorised call; see `why_alone`.
    """
    layers = flat_layers(expert)
    if _why_alone(expert, layers) is not None:
        return None
    try:
        config = _config_text(expert)
        inner = _untold_configs(layers)
    except _NO_CONFIG:
        return None
    trainable = {id(variable) for variable in expert.trainable_variables}
    pairs: list[tuple[str, Hashable]] = [
        ("the class", f"{type(expert).__module__}.{type(expert).__qualname__}"),
        ("the config", config),
        ("the variables", tuple((tuple(v.shape), str(v.dtype)) for v in expert.variables)),
        ("which variables are trainable", tuple(id(v) in trainable for v in expert.variables)),
    ]
    for number, layer in enumerate(layers):
        pairs += [
            (f"`trainable` of layer {number}", layer.trainable),
            (f"the dtype policy of layer {number}", layer.dtype_policy.name),
            (f"the activity regularizer of layer {number}", _token(layer.activity_regularizer)),
        ]
        if number in inner:
            pairs.append((f"the config of {type(layer).__name__} {number}", inner[number]))
        if not _is_library_layer(layer):
            pairs += [
                (f"the attribute {name!r} of {type(layer).__name__} {number}", _token(value))
                for name, value in own_attributes(layer)
            ]
    return tuple(pairs)


def differences(left: Signature, right: Signature) -> list[str]:
    """Returns what differs between two signatures in order, leaving out objects of unknown kind."""
    return [
        name
        for (name, one), (_, other) in zip(left, right, strict=False)
        if one != other and not (_is_identity(one) and _is_identity(other))
    ]


def _is_identity(token: Hashable) -> bool:
    return isinstance(token, tuple) and len(token) == 2 and token[0] == "object"


def alike(experts: Sequence[keras.layers.Layer]) -> list[list[int]]:
    """Returns the positions of experts that are alike, in the order of their first members.

    An expert that shares variables with another, or is given twice, is alike to none.

    Args:
        experts: Built Keras layers or models.
    """
    together: dict[Hashable, list[int]] = {}
    shared = shared_variables(experts)
    for position, expert in enumerate(experts):
        key: Hashable = None if position in shared else signature(expert)
        together.setdefault(position if key is None else key, []).append(position)
    return list(together.values())


def shared_variables(experts: Sequence[keras.layers.Layer]) -> set[int]:
    """Returns the positions of experts that own a variable together with another."""
    owners: dict[int, list[int]] = {}
    for position, expert in enumerate(experts):
        for variable in expert.variables:
            owners.setdefault(id(variable), []).append(position)
    shared = {position for found in owners.values() if len(found) > 1 for position in found}
    first: dict[int, int] = {}
    for position, expert in enumerate(experts):  # the same expert twice, without variables
        if first.setdefault(id(expert), position) != position:
            shared |= {first[id(expert)], position}
    return shared


def why_alone(expert: keras.layers.Layer) -> str | None:
    """Returns why an expert must run on its own, or `None` when it can share a call."""
    reason = _why_alone(expert, flat_layers(expert))
    if reason is None:
        try:
            _config_text(expert)
        except _NO_CONFIG as error:
            return f"it has no config ({type(error).__name__})"
    return reason


def _why_alone(expert: keras.layers.Layer, layers: Sequence[keras.layers.Layer]) -> str | None:
    for layer in layers:
        if isinstance(layer, keras.layers.TorchModuleWrapper):
            return f"its layer {layer.name!r} wraps a PyTorch module"
        if getattr(layer, "quantization_mode", None):
            return f"its layer {layer.name!r} is quantized"
        if getattr(layer, "stateful", False):
            return f"its layer {layer.name!r} keeps state between batches"
        for name, value in vars(layer).items():
            if _is_tensor(value):
                return f"its layer {layer.name!r} keeps state outside its variables ({name!r})"
        if any(isinstance(value, keras.metrics.Metric) for _, value in own_attributes(layer)):
            return f"its layer {layer.name!r} keeps metrics"
    return "it saves state in its own way" if saves_itself(layers) else None


def saves_itself(layers: Sequence[keras.layers.Layer]) -> bool:
    """Whether one of an expert's layers saves more than its variables, or in its own form.

    Vocabularies are saved as assets, statistics of `Normalization` come with constants made of
    them. Keras' other layers override saving for quantised weights alone.
    """
    base = keras.layers.Layer.load_own_variables
    return any(
        hasattr(layer, "save_assets")
        or isinstance(layer, keras.layers.Normalization)
        or (type(layer).load_own_variables is not base and not _is_library_layer(layer))
        for layer in layers
    )


def own_attributes(layer: keras.layers.Layer) -> list[tuple[str, Any]]:
    """Returns the attributes that a layer has beside those of every Keras layer, sorted."""
    ignored = _attributes_of_keras()
    return sorted(
        (name, value)
        for name, value in vars(layer).items()
        if name not in ignored and not name.startswith("_self_")
    )


def contents(layer: keras.layers.Layer) -> Hashable:
    """Returns what the lists, dicts and arrays of a user's layer hold: it may change in place."""
    if _is_library_layer(layer):
        return ()
    holders = (list, tuple, dict, set, np.ndarray)
    return tuple(_token(v) for _, v in own_attributes(layer) if isinstance(v, holders))


@functools.cache
def _attributes_of_keras() -> frozenset[str]:
    """Returns the attributes that Keras gives to every layer and to every model that is trained."""
    layer = keras.layers.Layer(name="any_layer")
    layer.build((None, 1))
    model = keras.Sequential([keras.Input((1,), name="any_input")], name="any_model")
    return frozenset({*vars(layer), *vars(model), *_OF_TRAINING})


# Set on a model once it is compiled, trained or evaluated.
_OF_TRAINING = (
    "_compile_config",
    "_compiled_trainable_state",
    "_epoch_iterator",
    "_eval_epoch_iterator",
    "_jax_state",
    "_jax_state_synced",
    "_torch_params",
    "history",
    "optimizer",
    "stop_evaluating",
    "stop_predicting",
    "stop_training",
)


def _untold_configs(layers: Sequence[keras.layers.Layer]) -> dict[int, str]:
    """Returns the configs of Keras' layers by number, where a user's layer may hold them.

    Its own config need not tell what its layers are made of.
    """
    if all(map(_is_library_layer, layers)):
        return {}
    return {
        number: _config_text(layer)
        for number, layer in enumerate(layers)
        if _is_library_layer(layer) and not hasattr(layer, "read_one")  # its mixture tells of it
    }


def _is_library_layer(layer: keras.layers.Layer) -> bool:
    """Whether a layer's config tells all that its call depends on, as Keras' own layers' do."""
    return type(layer).__module__.startswith(("keras.", "keras_hub.", "plait."))


def _is_tensor(value: object) -> bool:
    return keras.ops.is_tensor(value) and not isinstance(value, (keras.KerasTensor, keras.Variable))


def _token(value: Any) -> Hashable:
    """Returns a value that is equal where two attributes mean the same for a layer's call."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return type(value).__name__, repr(value)
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        return "array", array.shape, array.dtype.str, array.tobytes()
    if isinstance(value, (list, tuple)):
        return "list", tuple(_token(item) for item in value)
    if isinstance(value, (set, frozenset)):
        return "set", frozenset(_token(item) for item in value)
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: repr(item[0]))
        return "dict", tuple((repr(key), _token(item)) for key, item in items)
    if isinstance(
        value,
        (keras.layers.Layer, keras.Variable, keras.Initializer, keras.random.SeedGenerator),
    ):
        return type(value).__qualname__  # layers have entries of their own, the rest only values
    if hasattr(value, "get_config"):
        return type(value).__qualname__, _config_text(value)
    bound = getattr(value, "__self__", None)
    if bound is not None and isinstance(bound, keras.layers.Layer):
        return "method", getattr(value, "__name__", "")
    # An object whose class defines equality is compared by it, any other is itself alone.
    by_value = type(value).__eq__ is not object.__eq__ and type(value).__hash__ is not None
    return value if by_value else ("object", id(value))


def _config_text(thing: Any) -> str:
    """Returns the config of a Keras object as a text, without names."""
    with without_other_backends():
        config = thing.get_config()
    return json.dumps(_anonymous(config, names={}), sort_keys=True, default=_plain)


def _plain(value: Any) -> str:
    """Returns a text for what JSON does not know in a config."""
    return repr(_token(value))


def _anonymous(config: Any, names: dict[str, int], key: str = "") -> Config | list[Any] | Any:
    """Returns a config in which layers are numbered in order of appearance instead of named."""

    def number(name: str) -> int:
        return names.setdefault(name, len(names))

    if isinstance(config, dict):
        return {
            str(name): _anonymous(value, names, str(name))
            for name, value in config.items()
            if name not in _IGNORED and not str(name).endswith("_initializer")
        } | ({"name": number(config["name"])} if isinstance(config.get("name"), str) else {})
    if isinstance(config, (list, tuple)):
        if key == "keras_history" and config:
            return [number(config[0]), *config[1:]]
        if key in _LISTS_OF_LAYER_NAMES and config and isinstance(config[0], str):
            return [number(config[0]), *config[1:]]
        return [_anonymous(value, names, key) for value in config]
    return config
