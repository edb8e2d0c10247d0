"""Where a mixture keeps the variables of the objective that it is compiled with."""

import keras

from plait.losses.base import MixtureObjective


class ObjectiveState(keras.layers.Layer):
    """Holds the variables of an objective, such as learned scales, as part of a model.

    Keras takes no new sublayers once a model is built, and `compile` may come later. The model
    creates this layer early, and hands it the objective in `compile`: its variables are then
    trained, saved and loaded with the model.
    """

    def hold(self, objective: object, weights_shape: tuple[int | None, ...]) -> None:
        """Takes over the variables of an objective, and lets go of those of the last.

        Args:
            objective: A `MixtureObjective`; anything else has no variables.
            weights_shape: Shape of the mixing weights, `(b, …, e)`.
        """
        for name in [name for name in vars(self) if name.startswith("held_")]:
            delattr(self, name)
        if isinstance(objective, MixtureObjective) and objective.state is not None:
            objective.build(weights_shape)
            # Variables, not the layer that made them: Keras lets go of a variable, not of a layer.
            for position, variable in enumerate(objective.state.variables):
                setattr(self, f"held_{position}", variable)
