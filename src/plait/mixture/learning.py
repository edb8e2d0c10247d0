"""How a mixture learns: objectives that see its parts, and what happens around training."""

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from plait.losses import MixtureObjective, ObjectiveState

if TYPE_CHECKING:
    from plait.mixture.forward import Parts


class PartsHolder:
    """Keeps the parts of one forward pass out of Keras' sight."""

    parts: "Parts | None" = None


class SeesParts:
    """A Keras model whose loss may be a `MixtureObjective`, which needs weights and outputs.

    A subclass sets `objective_state` and calls `attach_objective` once its weights' shape is known,
    and `note_parts` in each call.
    """

    objective_state: ObjectiveState
    objective: MixtureObjective | None = None
    _parts: PartsHolder

    def compile(
        self: Any,
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
        super().compile(  # type: ignore[misc]
            optimizer,
            loss=None if self.objective is not None else loss,
            loss_weights=loss_weights,
            metrics=metrics,
            **kwargs,
        )
        self.attach_objective()

    def attach_objective(self: Any) -> None:
        """Creates the objective's variables as the model's, once the weights' shape is known."""
        shape = self.weights_shape()
        if shape is not None:
            self.objective_state.hold(self.objective, shape)

    def weights_shape(self: Any) -> tuple[int | None, ...] | None:
        """Returns the shape of the mixing weights, `(b, …, e)`, or `None` before it is known."""
        raise NotImplementedError

    def note_parts(self: Any, parts: "Parts") -> None:
        """Keeps weights and outputs of this forward pass for the loss that follows it."""
        self._parts.parts = parts

    def compute_loss(
        self: Any,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the objective on the parts, or the compiled loss on the blended output."""
        if self.objective is None:
            return super().compute_loss(  # type: ignore[misc]
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
            )
        parts = self._parts.parts
        total = self.objective.mixture_loss(
            y, parts.weights, parts.outputs, sample_weight, parts.masks[0]
        )
        for loss in self.losses:
            total = total + ops.sum(ops.cast(loss, total.dtype))
        return total

    def get_compile_config(self: Any) -> dict[str, Any] | None:
        """Returns what `compile` was given, for a file."""
        config = super().get_compile_config()  # type: ignore[misc]
        if config and self.objective is not None:
            config = {**config, "loss": keras.saving.serialize_keras_object(self.objective)}
        return config

    def compile_from_config(self: Any, config: dict[str, Any]) -> None:
        """Compiles as the saved model was, with the optimizer's state ready to be loaded."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)


class Learning(SeesParts):
    """The part of `Mixture` that Keras calls around training."""

    def compile(self: Any, *args: Any, **kwargs: Any) -> None:
        """Configures training; see `SeesParts.compile`.

        Raises:
            ValueError: If some, not all, experts of one stack were frozen since they were stacked.
        """
        if self.built:
            self._about.bank.follow_trainable_flags()
        super().compile(*args, **kwargs)
        self._about.compiled_with = (args, kwargs)

    def get_compile_config(self: Any) -> dict[str, Any] | None:
        """Returns what `compile` was given, for a file that any backend may read.

        Keras writes what `jit_compile="auto"` stood for here; PyTorch would take a yes for Dynamo.
        """
        config = super().get_compile_config()
        if not config:
            return config
        return {**config, "jit_compile": self._about.compiled_with[1].get("jit_compile", "auto")}

    def compile_like(self: Any, other: keras.Model) -> None:
        """Compiles another model as this one is, with an optimizer of its own that starts anew."""
        args, kwargs = self._about.compiled_with
        optimizer = type(self.optimizer).from_config(self.optimizer.get_config())
        kwargs = {name: value for name, value in kwargs.items() if name != "optimizer"}
        other.compile(optimizer, *args[1:], **kwargs)

    def fit(self: Any, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains gate and experts jointly; see `keras.Model.fit`.

        The experts that were passed in hold the trained weights afterwards, also where training
        was interrupted.
        """
        try:
            return super().fit(*args, **kwargs)  # type: ignore[misc]
        finally:
            if self.built:
                self._about.bank.write_back()
