"""Cools a router while the model trains."""

from collections.abc import Callable
from typing import Any

import keras

from plait.errors import message
from plait.routers import TemperatureRouter


class TemperatureSchedule(keras.callbacks.Callback):
    """Sets the temperature of routers before every epoch, and logs it as `temperature`.

    The temperature of `Gumbel` is annealed so (Jang et al. 2017), that of `Softmax` likewise.

    From `start` to `end` in equal ratios over `epochs` epochs, then constant. The temperature is
    state of the router: nothing is compiled anew, and it is saved with the model.

    Args:
        start: Temperature of the first epoch.
        end: Temperature of epoch number `epochs`, and after.
        epochs: Length of the schedule.
        router: The router; `None` for every router with a temperature in the model.
        schedule: Function from the epoch's number, which starts at 0, to the temperature, in place
            of `start`, `end` and `epochs`.

    Raises:
        ValueError: If a temperature is not positive, `epochs` no positive integer, or the model has
            no router with a temperature.

    Example:
    >>> import plait
    >>> cool = plait.callbacks.TemperatureSchedule(4.0, 1.0, epochs=3)
    >>> [cool.schedule(epoch) for epoch in range(4)]
    [4.0, 2.0, 1.0, 1.0]
    """

    def __init__(
        self,
        start: float = 1.0,
        end: float = 0.1,
        epochs: int = 10,
        *,
        router: TemperatureRouter | None = None,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        if schedule is None and (
            not (start > 0 and end > 0) or not isinstance(epochs, int) or epochs < 1
        ):
            raise ValueError(
                message(
                    "TemperatureSchedule needs positive temperatures and at least one epoch",
                    f"start={start!r}, end={end!r}, epochs={epochs!r}",
                    "Use for example TemperatureSchedule(1.0, 0.1, epochs=10)",
                )
            )

        def geometric(epoch: int) -> float:
            part = min(epoch / max(epochs - 1, 1), 1.0) if epochs > 1 else 1.0
            return float(start * (end / start) ** part)

        self.schedule = schedule or geometric
        self.router = router
        self._routers: list[TemperatureRouter] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Finds the routers."""
        self._routers = [self.router] if self.router is not None else _routers_in(self.model)
        if not self._routers:
            raise ValueError(
                message(
                    "TemperatureSchedule needs a router with a temperature",
                    f"the model {self.model.name!r}, which has none within its layers",
                    "Use router=plait.routers.Softmax() or Gumbel(), or pass the router itself",
                )
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the temperature."""
        for router in self._routers:
            router.temperature = self.schedule(epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs the temperature."""
        if logs is not None:
            logs["temperature"] = self._routers[0].temperature


def _routers_in(layer: Any) -> list[TemperatureRouter]:
    """Returns the routers with a temperature among a model's layers and theirs."""
    if isinstance(layer, TemperatureRouter):
        return [layer]
    found: list[TemperatureRouter] = []
    for child in getattr(layer, "layers", []):
        found += [router for router in _routers_in(child) if router not in found]
    return found
