"""A mixture that also returns its weights and the outputs of its experts."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import tree

from plait.mixture.base import BaseModel
from plait.mixture.of_experts import OfExperts
from plait.mixture.specs import first_of
from plait.typing import Config, Nested, Shapes


@keras.saving.register_keras_serializable("plait")
class WithParts(BaseModel):
    """A mixture whose call returns `{"output": …, "weights": …, "experts": …}`.

    Made by `plait.Mixture.with_parts`. It holds the mixture itself, not a copy.

    Args:
        mixture: A `plait.Mixture` or `plait.MultiGateMixture`.
        **kwargs: `name`, `dtype` and `trainable` of a Keras model.

    Call arguments:
        inputs: As for the mixture.
        training: As in Keras.
        mask: As in Keras.

    Returns:
        A dict: the mixture's output; the weights `(b, …, e)`, or `(b, …, t, e)` of several tasks;
        the experts' outputs `(b, …, e, …, u)`. Every expert runs on every row. In training they are
        those of a call of their own, with other random numbers than the output where the experts
        or the router draw some.
    """

    def __init__(self, mixture: OfExperts, **kwargs: Any) -> None:
        kwargs = {"name": f"{mixture.name}_with_parts", **kwargs}
        super().__init__(**kwargs)
        self.mixture = mixture
        self.supports_masking = True
        self.supports_jit = mixture.supports_jit
        if mixture.built:
            self.build(mixture.state.input_shape)

    @property
    def input(self) -> Nested:
        """As of the mixture: the symbolic inputs of the first call, without masks."""
        given, shapes = super().input, self.mixture.state.input_shape
        return given if shapes is None else first_of(given, shapes)

    def build(self, input_shape: Shapes) -> None:
        """Builds the mixture."""
        if not self.mixture.built:
            self.mixture.build(input_shape)

    def call(self, inputs: Nested, training: bool | None = None, mask: Nested = None) -> Nested:
        """Returns output, weights and experts' outputs."""
        if not self.mixture.built:
            self.mixture(inputs)
        output = self.mixture(inputs, training=training, mask=mask)
        weights, experts = self.mixture.parts_inside(inputs, mask, True)
        return {"output": output, "weights": weights, "experts": experts}

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> None:
        """The mixture attaches the masks of its output."""
        del inputs, mask

    def compute_output_spec(
        self, inputs: Nested, training: bool | None = None, mask: Nested = None
    ) -> Nested:
        """Returns shapes and dtypes of output, weights and experts' outputs."""
        output = self.mixture.compute_output_spec(inputs, training=training, mask=mask)
        weights, experts = self.mixture.parts_specs(inputs)
        return {"output": output, "weights": weights, "experts": experts}

    def compute_output_shape(self, input_shape: Shapes) -> Shapes:
        """Returns the shapes of output, weights and experts' outputs."""
        inputs = self.mixture.input_specs(input_shape)
        specs = self.compute_output_spec(inputs)
        return tree.map_structure_up_to(specs, lambda leaf: tuple(leaf.shape), specs)

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "mixture": keras.saving.serialize_keras_object(self.mixture),
        }

    @classmethod
    def from_config(
        cls, config: Config, custom_objects: Mapping[str, Any] | None = None
    ) -> "WithParts":
        """Returns a model of what `get_config` gave."""
        mixture = keras.saving.deserialize_keras_object(
            config["mixture"], custom_objects=custom_objects
        )
        return cls(**{**config, "mixture": mixture})

    def get_build_config(self) -> Config:
        """Returns what `build` needs: the inputs' shapes and dtypes."""
        return self.mixture.get_build_config()

    def build_from_config(self, config: Config) -> None:
        """Builds the mixture as it was built when it was saved."""
        self.mixture.build_from_config(config)
        self.built = self.mixture.built
