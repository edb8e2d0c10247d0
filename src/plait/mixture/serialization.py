"""How a mixture is saved: its config, and a table of its experts that a file is checked against."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from plait.compat import is_functional
from plait.errors import message
from plait.experts.seeds import seed_positions
from plait.mixture import inputs
from plait.typing import Config

if TYPE_CHECKING:
    from plait.mixture.model import Mixture
    from plait.mixture.of_experts import OfExperts

_EXPERTS = "experts"


def config_of(mixture: "Mixture") -> Config:
    """Returns the arguments of a mixture's constructor, serialised."""
    state = mixture.state
    many = [serialized(expert) for expert in state.given]
    template = state.ownership == "template"
    gate = state.gate
    if isinstance(gate, keras.layers.Layer):
        gate = serialized(gate)
    elif isinstance(gate, (list, tuple, np.ndarray)):
        gate = [float(weight) for weight in gate]
    router = keras.saving.serialize_keras_object(mixture.router)
    return {
        "experts": many[0] if template else many,
        "num_experts": mixture.num_experts if template else None,
        "gate": gate,
        "router": router,
        "expert_inputs": inputs.to_config(mixture.expert_inputs),
        "gate_inputs": inputs.to_config(mixture.gate_inputs),
        "present": inputs.to_config(mixture.present),
        "combination": mixture.combination,
        "execution": mixture.execution,
        "copy_experts": state.ownership == "copied",
        "shared_layers": shared_layers([*state.given, mixture.gate]),
    }


def arguments_of(config: Config, custom_objects: Mapping[str, Any] | None) -> Config:
    """Returns the constructor's arguments from what `config_of` gave."""

    def revive(entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        return keras.saving.deserialize_keras_object(entry, custom_objects=custom_objects)

    config = dict(config)
    shared = config.pop("shared_layers")
    experts = config["experts"]
    many = isinstance(experts, (list, tuple))
    parts = [*(experts if many else [experts]), config["gate"]]
    *made, gate = share_layers([revive(part) for part in parts], shared)
    return {
        **config,
        "experts": made if many else made[0],
        "gate": gate,
        "router": revive(config["router"]),
        "expert_inputs": inputs.from_config(config["expert_inputs"]),
        "gate_inputs": inputs.from_config(config["gate_inputs"]),
        "present": inputs.from_config(config.get("present")),
    }


def serialized(layer: keras.layers.Layer) -> Config:
    """Returns a layer's config, marked as one object where a file holds it more than once.

    Keras writes the mark from the second time on, hence it is serialised twice. Layers inside
    a graph are not marked: a layer that is shared by two graphs would be taken out of the first.
    """
    keras.saving.serialize_keras_object(layer)
    config = keras.saving.serialize_keras_object(layer)
    return {**config, "config": _unmarked(config["config"])} if _is_graph(layer) else config


def _unmarked(config: Any) -> Config | list[Any] | Any:
    if isinstance(config, dict):
        return {k: _unmarked(v) for k, v in config.items() if k != "shared_object_id"}
    return [_unmarked(item) for item in config] if isinstance(config, list) else config


def shared_layers(experts: list[keras.layers.Layer]) -> list[list[Any]]:
    """Returns which layers of graphs are layers of an earlier expert too.

    Keras' config of a functional model does not say what it shares with another model.

    Returns:
        Quadruples: expert, name of its layer, earlier expert, name of the layer there.
    """
    owners: dict[int, tuple[int, str]] = {}
    entries = []
    for position, expert in enumerate(experts):
        if not _is_graph(expert) or any(expert is other for other in experts[:position]):
            continue
        for layer in expert.layers:
            first = owners.setdefault(id(layer), (position, layer.name))
            if first[0] != position and layer.variables:
                entries.append([position, layer.name, *first])
    return entries


def share_layers(
    experts: list[keras.layers.Layer], shared: list[list[Any]]
) -> list[keras.layers.Layer]:
    """Returns experts whose layers are one again as `shared_layers` lists them."""
    made = list(experts)
    for position in sorted({entry[0] for entry in shared}):
        of_expert = {
            name: made[earlier].get_layer(there)
            for expert, name, earlier, there in shared
            if expert == position
        }

        def same(layer: keras.layers.Layer, of_expert: dict = of_expert) -> keras.layers.Layer:
            return of_expert.get(layer.name, layer)

        made[position] = keras.models.clone_model(made[position], clone_function=same)
    return made


def _is_graph(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.Sequential) or is_functional(layer)


def save_table(mixture: "OfExperts", store: Any) -> None:
    """Writes names and shapes of the experts, in order, and the seeds of those that are shared.

    Keras saves no seeds of dropout; with them training resumes exactly.
    """
    text = json.dumps(_table(mixture))
    store[_EXPERTS] = np.frombuffer(text.encode(), "uint8")
    for key, seed in _seeds(mixture).items():
        store[key] = ops.convert_to_numpy(seed.value)


def check_table(mixture: "OfExperts", store: Any) -> None:
    """Checks a file's experts against a mixture's.

    Raises:
        ValueError: If their number, order or shapes differ.
    """
    if _EXPERTS not in store.keys():  # noqa: SIM118 (an h5 group, not a dict)
        raise ValueError(
            message(
                f"The file must hold the weights of the mixture {mixture.name!r}",
                "a file without a table of experts",
                "Load a file that save_weights of a plait.Mixture wrote",
            )
        )
    in_file = json.loads(np.asarray(store[_EXPERTS]).tobytes().decode())
    wanted = _table(mixture)
    if len(in_file) != len(wanted):
        raise _mismatch(f"{len(wanted)} experts", f"a file of {len(in_file)} experts")
    names, present = [e["name"] for e in in_file], [e["name"] for e in wanted]
    if names != present and sorted(names) == sorted(present) and len(set(names)) == len(names):
        raise _mismatch(f"experts in the order {present}", f"a file with the order {names}")
    for position, (theirs, ours) in enumerate(zip(in_file, wanted, strict=True)):
        if theirs["shapes"] != ours["shapes"]:
            raise _mismatch(
                f"expert {position} ({ours['name']!r}) with variables of shapes {ours['shapes']}",
                f"a file whose expert {position} ({theirs['name']!r}) has {theirs['shapes']}",
            )


def load_seeds(mixture: "OfExperts", store: Any) -> None:
    """Sets the seeds that a file holds."""
    for key, seed in _seeds(mixture).items():
        if key in store.keys():  # noqa: SIM118 (an h5 group, not a dict)
            seed.assign(np.asarray(store[key]))


def _seeds(mixture: "OfExperts") -> dict[str, keras.Variable]:
    """Returns the seeds of experts that keep their own variables, by a key in a file."""
    owned = [layer for layer in mixture.owned_experts if not hasattr(layer, "read_one")]
    shared = mixture.state.given if mixture.state.ownership == "shared" else owned
    return {
        f"seed_{position}_{number}": expert.variables[number]
        for position, expert in enumerate(shared)
        for number in seed_positions(expert.variables)
    }


def _mismatch(rule: str, received: str) -> ValueError:
    return ValueError(
        message(
            f"The file must hold {rule}",
            received,
            "Build the mixture of the same experts, in the same order, as the one that was saved",
        )
    )


def _table(mixture: "OfExperts") -> list[dict[str, Any]]:
    """Returns name and shapes of each expert."""
    state = mixture.state
    given = state.given if state.ownership != "template" else state.given * mixture.num_experts
    representatives = (state.bank.representative(i) for i in range(mixture.num_experts))
    return [
        {
            "name": expert.name,
            "shapes": [list(variable.shape) for variable in layer.variables],
        }
        for expert, layer in zip(given, representatives, strict=True)
    ]
