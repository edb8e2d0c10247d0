"""Where a mixture keeps the variables of the objective that it is compiled with."""

from typing import Any

import keras

from plait.losses.base import MixtureObjective


class ObjectiveState(keras.layers.Layer):
    """Holds the variables of an objective, such as learned scales, as part of a model.

    Keras takes no new sublayers once a model is built, and `compile` may come later. The model
    creates this layer early, and hands it the objective in `compile`: its variables are then
    trained, saved and loaded with the model.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Variables, not the layer that made them: Keras lets go of a variable, not of a layer. In a
        # list: where an attribute that is a variable is deleted, Keras runs `gc.collect()`.
        self.held: list[keras.Variable] = []

    def hold(self, objective: object, weights_shape: tuple[int | None, ...]) -> None:
        """Takes over the variables of an objective, and lets go of those of the last.

        Args:
            objective: A `MixtureObjective`; anything else has no variables.
            weights_shape: Shape of the mixing weights, `(b, …, e)`.
        """
        self.held.clear()
        if isinstance(objective, MixtureObjective) and objective.state is not None:
            objective.build(weights_shape)
            self.held.extend(objective.state.variables)
