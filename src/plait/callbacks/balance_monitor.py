"""Watches how a mixture uses its experts while it trains."""

import warnings
from typing import Any

import keras

from plait.errors import message
from plait.metrics import DeadExperts, ExpertUsage, GateEntropy


class BalanceMonitor(keras.callbacks.Callback):
    """Logs each expert's share, the gate's entropy and the dead experts after every epoch.

    The logs hold `usage_0`, `usage_1`, …, `gate_entropy` and `dead_experts`, and so does the
    history; other callbacks, such as `keras.callbacks.TensorBoard`, see them where they come later
    in the list. If experts stay dead for some epochs, one warning says what to do.

    Args:
        x: Inputs on which the gate is looked at, as for `predict`; a part of the validation data
            will do.
        mixture: The mixture, where it is not the model itself.
        threshold: An expert is dead with less than `threshold / e` of all weight.
        patience: For how many epochs in a row experts are dead before the warning.
        batch_size: As in `predict`.

    Raises:
        ValueError: If `patience` is no positive integer.
        TypeError: If the model is no mixture and none was given.

    Example:
    >>> import keras, numpy as np, plait
    >>> mix = plait.Mixture([keras.layers.Dense(1), keras.layers.Dense(1)])
    >>> mix.compile("sgd", "mse")
    >>> x = np.ones((8, 2), "float32")
    >>> monitor = plait.callbacks.BalanceMonitor(x)
    >>> history = mix.fit(x, x[:, :1], verbose=0, callbacks=[monitor]).history
    >>> sorted(history)
    ['dead_experts', 'gate_entropy', 'loss', 'usage_0', 'usage_1']
    """

    def __init__(
        self,
        x: Any,
        mixture: Any = None,
        *,
        threshold: float = 0.01,
        patience: int = 1,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(patience, int) or patience < 1:
            raise ValueError(
                message(
                    "`patience` of BalanceMonitor must be an integer of at least 1",
                    f"patience={patience!r}",
                    "Use patience=1 to be warned at once",
                )
            )
        self.x = x
        self.mixture = mixture
        self.threshold = threshold
        self.patience = patience
        self.batch_size = batch_size
        self._warned = False
        self._dead_epochs = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks that there is a mixture to look at."""
        if not hasattr(self._watched(), "gate_weights"):
            raise TypeError(
                message(
                    "BalanceMonitor watches a plait.Mixture",
                    f"a model of type {type(self._watched()).__name__}",
                    "Pass the mixture inside it as BalanceMonitor(x, mixture=…)",
                )
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the gate and adds what it sees to the logs."""
        weights = self._watched().gate_weights(self.x, batch_size=self.batch_size)
        num_experts = weights.shape[-1]
        usage = ExpertUsage(num_experts)
        entropy, dead = GateEntropy(), DeadExperts(num_experts, self.threshold)
        for metric in (usage, entropy, dead):
            metric.update_state(weights)
        found = {**usage.result(), entropy.name: entropy.result(), dead.name: dead.result()}
        found = {key: float(value) for key, value in found.items()}
        if logs is not None:
            logs.update(found)
        self._dead_epochs = self._dead_epochs + 1 if found[dead.name] else 0
        if self._dead_epochs >= self.patience and not self._warned:
            self._warned = True
            self._warn(epoch, found, num_experts)

    def _warn(self, epoch: int, found: dict[str, float], num_experts: int) -> None:
        dead = [
            expert
            for expert in range(num_experts)
            if found[f"usage_{expert}"] * num_experts < self.threshold
        ]
        warnings.warn(
            f"Experts {dead} of {num_experts} are hardly used after epoch {epoch + 1}: the gate "
            "has collapsed onto the others. Give the router load_balance=0.01, or bias_update_rate="
            "0.001 under TopK; lower the learning rate of the start; or use fewer experts.",
            stacklevel=2,
        )

    def _watched(self) -> Any:
        return self.model if self.mixture is None else self.mixture
