"""How a mixture is trained: losses that use its parts, and what `compile` checks."""

from typing import Any

import keras
from keras import ops

from plait.losses import MixtureObjective
from plait.losses.state import ObjectiveState
from plait.mixture.base import BaseModel
from plait.mixture.forward import Parts
from plait.typing import Config, Nested, Shape, Tensor


class PartsHolder:
    """Keeps the parts of one forward pass where Keras does not track it."""

    parts: Parts | None = None


class PartsModel(BaseModel):
    """A Keras model whose loss may be a `MixtureObjective`, which needs weights and outputs.

    A subclass calls `attach_objective` once its weights' shape is known, and `note_parts` in each
    call that a loss follows.
    """

    objective_state: ObjectiveState
    objective: MixtureObjective | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.objective_state = ObjectiveState(name="objective")
        self.objective_state.built = True
        self._parts = PartsHolder()

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures training; see `keras.Model.compile`.

        Args:
            optimizer: As in Keras.
            loss: Any Keras loss, on the blended output; or a `plait.losses.MixtureObjective`.
            loss_weights: As in Keras.
            metrics: As in Keras, on the blended output.
            **kwargs: The other arguments of `keras.Model.compile`.
        """
        self.objective = loss if isinstance(loss, MixtureObjective) else None
        super().compile(
            optimizer,
            loss=None if self.objective is not None else loss,
            loss_weights=loss_weights,
            metrics=metrics,
            **kwargs,
        )
        self.attach_objective()

    def attach_objective(self) -> None:
        """Creates the objective's variables as the model's, once the weights' shape is known."""
        shape = self.weights_shape()
        if shape is not None:
            self.objective_state.hold(self.objective, shape)

    def weights_shape(self) -> Shape | None:
        """Returns the shape of the mixing weights, `(b, …, e)`, or `None` before it is known."""
        raise NotImplementedError(f"{type(self).__name__} must implement `weights_shape`.")

    def note_parts(self, parts: Parts) -> None:
        """Keeps weights and outputs of this forward pass for the loss that follows it."""
        self._parts.parts = parts

    def compute_loss(
        self,
        x: Nested = None,
        y: Nested = None,
        y_pred: Nested = None,
        sample_weight: Nested = None,
        training: bool = True,
    ) -> Tensor:
        """Returns the objective on the parts, or the compiled loss on the blended output."""
        if self.objective is None:
            return super().compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
            )
        parts, self._parts.parts = self._parts.parts, None
        assert parts is not None  # a call precedes the loss
        total = self.objective.mixture_loss(
            y, parts.weights, parts.outputs, sample_weight, parts.masks[0]
        )
        for loss in self.losses:
            total = total + ops.sum(ops.cast(loss, total.dtype))
        return total

    def needs_parts(self) -> bool:
        """Whether a loss may follow this call that needs the outputs of every expert."""
        return self.objective is not None and not self.predicts()

    def get_compile_config(self) -> Config | None:
        """Returns what `compile` was given, for a file."""
        config = super().get_compile_config()
        if config and self.objective is not None:
            config = {**config, "loss": keras.saving.serialize_keras_object(self.objective)}
        return config
