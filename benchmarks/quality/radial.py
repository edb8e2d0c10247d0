"""Locally tuned hidden units."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("plait_benchmarks")
class Radial(keras.layers.Layer):
    """`3 · exp(−|x − c_u|² / 10)` with learned centres `c_u` (Moody and Darken 1989).

    Args:
        units: Number of centres, `u`.
        **kwargs: `name` and `dtype` of a Keras layer.

    Call arguments:
        inputs: Standardised features `(b, d)`.

    Returns:
        Tensor of shape `(b, u)`.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Draws the centres as standardised features are spread."""
        initializer = keras.initializers.RandomNormal(stddev=1.0)
        self.centres = self.add_weight(
            shape=(input_shape[-1], self.units), initializer=initializer, name="centres"
        )

    def call(self, inputs: Any) -> Any:
        """Returns how near the rows are to the centres."""
        distance = (
            ops.sum(inputs**2, axis=-1, keepdims=True)
            - 2 * ops.matmul(inputs, self.centres)
            + ops.sum(self.centres**2, axis=0)
        )
        return 3.0 * ops.exp(-0.1 * distance)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple:
        """One value per centre."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "units": self.units}
