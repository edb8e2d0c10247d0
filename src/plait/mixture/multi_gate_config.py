"""How a mixture of several gates is written to a config, and read from it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from plait.mixture import inputs
from plait.mixture.serialization import serialized, share_layers, shared_layers
from plait.typing import Config

if TYPE_CHECKING:
    from plait.mixture.multi_gate import MultiGateMixture


def config_of(mixture: "MultiGateMixture") -> Config:
    """Returns the arguments of the constructor, serialised.

    Layers stand in one list, so that what they share is found: experts, gates, towers.
    """
    state, arguments = mixture.state, mixture.arguments()
    layers = [*state.given, *_given_gates(mixture).values(), *mixture.towers.values()]
    private = arguments["private_experts"]
    by_task = isinstance(private, Mapping)
    gates = arguments["gates"]
    return {
        "layers": [serialized(layer) for layer in layers],
        "experts": len(state.given),
        "gate_layers": list(_given_gates(mixture)),
        "tower_layers": list(mixture.towers),
        "shared_layers": shared_layers(layers),
        "template": state.ownership == "template",
        "num_experts": arguments["num_experts"],
        "tasks": [name for name in mixture.task_names if name in arguments["tasks"]],
        "private_experts": {name: len(own) for name, own in private.items()}
        if by_task
        else private,
        "gates": _by_key(gates, _gate_config),
        "router": {
            name: keras.saving.serialize_keras_object(router)
            for name, router in mixture.routers.items()
        },
        "expert_inputs": _by_key(arguments["expert_inputs"], inputs.to_config),
        "gate_inputs": _by_key(arguments["gate_inputs"], inputs.to_config),
        "shared_output": mixture.shared_output,
        "execution": mixture.execution,
        "copy_experts": state.ownership == "copied",
    }


def arguments_of(config: Config, custom_objects: Mapping[str, Any] | None) -> Config:
    """Returns the constructor's arguments from what `config_of` gave."""
    config = dict(config)

    def revive(entry: Config) -> Any:
        return keras.saving.deserialize_keras_object(entry, custom_objects=custom_objects)

    layers = [revive(entry) for entry in config.pop("layers")]
    layers = share_layers(layers, config.pop("shared_layers"))
    count, template = config.pop("experts"), config.pop("template")
    gate_names, tower_names = config.pop("gate_layers"), config.pop("tower_layers")
    experts, others = layers[:count], iter(layers[count:])
    of_gates = {name: next(others) for name in gate_names}
    of_towers = {name: next(others) for name in tower_names}
    private = config["private_experts"]
    if isinstance(private, Mapping):
        count -= sum(private.values())
        own = iter(experts[count:])
        private = {name: [next(own) for _ in range(size)] for name, size in private.items()}
        experts = experts[:count]
    gates = config["gates"]
    if isinstance(gates, Mapping):
        gates = {**gates["by_key"], **of_gates}
    return {
        **config,
        "experts": experts[0] if template else experts,
        "tasks": {name: of_towers.get(name) for name in config["tasks"]},
        "private_experts": private,
        "gates": gates,
        "router": {name: revive(entry) for name, entry in config["router"].items()},
        "expert_inputs": _from_key(config["expert_inputs"]),
        "gate_inputs": _from_key(config["gate_inputs"]),
    }


def _given_gates(mixture: "MultiGateMixture") -> dict[str, keras.layers.Layer]:
    """Returns the gates that the caller passed in as layers."""
    gates = mixture.arguments()["gates"]
    if not isinstance(gates, Mapping):
        return {}
    return {name: gate for name, gate in gates.items() if isinstance(gate, keras.layers.Layer)}


def _gate_config(gate: Any) -> Any:
    """Returns a gate that is no layer in a form that JSON keeps."""
    if isinstance(gate, keras.layers.Layer):
        return None
    if isinstance(gate, (list, tuple, np.ndarray)):
        return [float(weight) for weight in gate]
    return gate


def _by_key(value: Any, convert: Any) -> Any:
    """Returns what was given for all, or by task, in a form that JSON keeps."""
    if isinstance(value, Mapping):
        return {"by_key": {key: convert(entry) for key, entry in value.items()}}
    return convert(value)


def _from_key(config: Any) -> Any:
    """Returns selectors that `_by_key` was given."""
    if isinstance(config, Mapping) and "by_key" in config:
        return {key: inputs.from_config(entry) for key, entry in config["by_key"].items()}
    return inputs.from_config(config)
