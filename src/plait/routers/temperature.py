"""What routers with a temperature have in common."""

from typing import Any

import keras

from plait.routers.base import Router, check_positive
from plait.typing import Dtype, Shape, Tensor


class TemperatureRouter(Router):
    """A router whose temperature is state: changing it compiles nothing anew.

    Takes scores `(b, …, e)` and returns weights of the same shape.

    Args:
        temperature: Positive number, the value at the start.
        load_balance: See `Router`.
        importance: See `Router`.
        z_loss: See `Router`.
        from_logits: See `Router`.
        name: As in Keras.
        dtype: As in Keras.
        trainable: As in Keras.

    Raises:
        ValueError: If `temperature` is not a positive number.

    Example:
    >>> import plait
    >>> router = plait.routers.Softmax(temperature=2.0)  # `Gumbel` is the other one
    >>> router.temperature = 0.5
    >>> router.temperature
    0.5
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        load_balance: float = 0.0,
        importance: float = 0.0,
        z_loss: float = 0.0,
        from_logits: bool = True,
        name: str | None = None,
        dtype: Dtype | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(
            load_balance=load_balance,
            importance=importance,
            z_loss=z_loss,
            from_logits=from_logits,
            name=name,
            dtype=dtype,
            trainable=trainable,
        )
        self._start = check_positive(self, "temperature", temperature)
        self._variable: keras.Variable | None = None

    def build(self, input_shape: Shape) -> None:
        """Creates the temperature's variable."""
        super().build(input_shape)
        if self._variable is None:
            self._variable = self.add_state("temperature", (), self._start)

    @property
    def temperature(self) -> float:
        """The present temperature; assign a number to change it."""
        if self._variable is None:
            return self._start
        return float(keras.ops.convert_to_numpy(self._variable.value))

    @temperature.setter
    def temperature(self, value: float) -> None:
        value = check_positive(self, "temperature", value)
        if self._variable is None:
            self._start = value
        else:
            self._variable.assign(value)

    @property
    def temperature_value(self) -> Tensor:
        """The temperature as a scalar tensor, for use in `select`."""
        assert self._variable is not None  # `route` builds first
        return self._variable.value

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments; the present temperature is saved as a weight."""
        return {**super().get_config(), "temperature": self._start}
