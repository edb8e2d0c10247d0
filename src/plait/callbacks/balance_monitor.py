"""Watches how every mixture of a model uses its experts while it trains."""

import warnings
from typing import Any

import keras
from keras import ops

from plait.callbacks.looking import Look, Looker, mixtures_in
from plait.errors import message
from plait.ops.usage import gate_entropy, idle


class BalanceMonitor(keras.callbacks.Callback):
    """Logs what each mixture of a model does with its experts after every epoch.

    For a mixture named `moe_0` the logs hold `moe_0/usage_3`, expert 3's share of all weight;
    `moe_0/entropy`, the mean entropy of the weights in nats; `moe_0/dead`, how many experts are
    hardly used; and `moe_0/dropped`, the share of choices that a capacity drops, where there is
    one. A mixture of several gates has them for each task, `moe_0/income/usage_3`; a mixture that
    is part of an expert under `moe_0/expert_2/inner/usage_3`. Two mixtures of one name are told
    apart by a number.

    The model is run on `x` as it is when it predicts; mixtures are found at any depth. Rows that
    are masked do not count. The history holds the numbers, and callbacks that come later in the
    list, such as `keras.callbacks.TensorBoard` and `CSVLogger`, see them. If experts stay dead for
    some epochs, one warning says where and what to do.

    Args:
        x: Inputs of the model, `(b, …)` each, as for `predict`; a part of the validation data will
            do.
        threshold: An expert is dead with less than `threshold / e` of all weight.
        patience: For how many epochs in a row experts are dead before the warning.
        batch_size: As in `predict`.

    Raises:
        ValueError: If `patience` is no positive integer.
        TypeError: If there is no mixture in the model.

    Example:
    >>> import keras, numpy as np, plait
    >>> moe = plait.Mixture(keras.layers.Dense(4), num_experts=2, name="moe")
    >>> model = keras.Sequential([moe, keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((8, 2), "float32")
    >>> monitor = plait.callbacks.BalanceMonitor(x)
    >>> history = model.fit(x, x[:, :1], verbose=0, callbacks=[monitor]).history
    >>> sorted(history)
    ['loss', 'moe/dead', 'moe/entropy', 'moe/usage_0', 'moe/usage_1']
    """

    def __init__(
        self,
        x: Any,
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
        self.threshold = threshold
        self.patience = patience
        self.batch_size = batch_size
        self._looker: Looker | None = None
        self._warned = False
        self._dead_epochs: dict[str, int] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks that there is a mixture to look at."""
        if not mixtures_in(self.model):
            raise TypeError(
                message(
                    "BalanceMonitor watches the mixtures of a model",
                    f"the model {self.model.name!r} of type {type(self.model).__name__}, which "
                    "has no plait.Mixture among its layers",
                    "Keep the mixture in an attribute of the model, as Keras asks of any layer",
                )
            )
        self._looker = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Runs the model on `x` and adds what its gates do to the logs."""
        if self._looker is None:
            self._looker = Looker(self.model)
        collapsed = []
        for look in self._looker.looks(self.x, self.batch_size):
            dead = self._add(look, {} if logs is None else logs)
            self._dead_epochs[look.name] = self._dead_epochs.get(look.name, 0) + 1 if dead else 0
            if self._dead_epochs[look.name] >= self.patience:
                collapsed.append((look, dead))
        if collapsed and not self._warned:
            self._warned = True
            self._warn(epoch, collapsed)

    def _add(self, look: Look, logs: dict[str, Any]) -> list[int]:
        """Adds the numbers of one gate to the logs, and returns its dead experts."""
        total = look.weights.sum(axis=0)
        usage = total / max(total.sum(), 1e-30)
        dead = ops.convert_to_numpy(idle(usage, self.threshold)) & bool(total.sum() > 0)
        for expert, share in zip(look.experts, usage, strict=True):
            logs[f"{look.name}/usage_{expert}"] = float(share)
        entropies = ops.convert_to_numpy(gate_entropy(look.weights))
        logs[f"{look.name}/entropy"] = float(entropies.mean()) if len(entropies) else 0.0
        logs[f"{look.name}/dead"] = float(dead.sum())
        if look.dropped is not None:
            logs[f"{look.name}/dropped"] = look.dropped
        return [expert for expert, is_dead in zip(look.experts, dead, strict=True) if is_dead]

    def _warn(self, epoch: int, collapsed: list[tuple[Look, list[int]]]) -> None:
        said = "; ".join(
            f"experts {dead} of {len(look.experts)} in {look.name!r}" for look, dead in collapsed
        )
        warnings.warn(
            f"{said[0].upper()}{said[1:]} are hardly used after epoch {epoch + 1}: the gate "
            "has collapsed onto the others. Give the router load_balance=0.01, or bias_update_rate="
            "0.001 under TopK; lower the learning rate of the start; or use fewer experts.",
            stacklevel=2,
        )
