"""How a mixture is kept: its config, and its experts' state in one form for all executions."""

from typing import TYPE_CHECKING, Any

import keras

from plait.mixture import topology
from plait.ops.shapes import map_shapes

if TYPE_CHECKING:
    pass

_OBJECTS = ("gate", "router")


class Persistence:
    """The part of `Mixture` that Keras calls when it saves and loads."""

    def get_config(self: Any) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        about = self._about
        serialize = keras.saving.serialize_keras_object
        if about.template is not None:
            experts, num_experts = serialize(about.template), self.num_experts
        else:
            experts, num_experts = [serialize(expert) for expert in about.experts], None
        return {
            **super().get_config(),  # type: ignore[misc]
            "experts": experts,
            "num_experts": num_experts,
            "gate": serialize(self.gate) if about.brought_by_user else about.gate,
            "router": None if self.router is None else serialize(self.router),
            "expert_inputs": topology.to_config(self.expert_inputs),
            "gate_inputs": topology.to_config(self.gate_inputs),
            "execution": self.execution,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Returns a mixture of what `get_config` gave."""
        config = dict(config)

        def revive(entry: Any) -> Any:
            if not isinstance(entry, dict):
                return entry
            return keras.saving.deserialize_keras_object(entry, custom_objects=custom_objects)

        experts = config.pop("experts")
        many = isinstance(experts, (list, tuple))
        config["experts"] = [revive(expert) for expert in experts] if many else revive(experts)
        for name in _OBJECTS:
            config[name] = revive(config[name])
        for name in ("expert_inputs", "gate_inputs"):
            config[name] = topology.from_config(config[name])
        return cls(**config)

    def get_build_config(self: Any) -> dict[str, Any]:
        """Returns what `build` needs: the inputs' shapes and dtypes."""
        about = self._about
        return {"input_shape": about.input_shape, "input_dtype": about.input_dtype}

    def build_from_config(self: Any, config: dict[str, Any]) -> None:
        """Builds the mixture as it was built when it was saved."""
        if self.built or config["input_shape"] is None:
            return
        self._about.input_dtype = config["input_dtype"]
        self.build(map_shapes(tuple, config["input_shape"]))

    @property
    def expert_assets(self: Any) -> list[keras.layers.Layer]:
        """The experts whose state Keras must save, for it walks attributes, in their order."""
        return self._about.bank.saving_themselves if self.built else []

    def save_own_variables(self: Any, store: Any) -> None:
        """Writes the experts' variables; gate and router are saved as layers."""
        if self.built:
            for key, value in self._about.bank.state().items():
                store[key] = value

    def load_own_variables(self: Any, store: Any) -> None:
        """Reads the experts' variables, into the experts that were passed in as well."""
        if self.built:
            self._about.bank.load_state(store)
