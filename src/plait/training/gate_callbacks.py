"""Callbacks of `fit_gate`: they see the mixture while its gate is trained by another model."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import keras
from keras import ops, tree

from plait.errors import message

_RARE = (
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_test_begin",
    "on_test_end",
)
_BATCHES = (
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_batch_begin",
    "on_test_batch_end",
)

Callbacks: TypeAlias = keras.callbacks.Callback | Sequence[keras.callbacks.Callback] | None
"""What `callbacks` may be, as in Keras."""


class _Around(keras.callbacks.Callback):
    """Calls a function whenever one of the given hooks is called."""

    def __init__(self, hooks: Sequence[str], function: Callable[[], object]) -> None:
        super().__init__()
        for hook in hooks:
            setattr(self, hook, lambda *args, **kwargs: function())


@contextlib.contextmanager
def of_mixture(
    callbacks: Callbacks,
    mixture: keras.Model,
    trainer: keras.Model,
    *,
    verbose: int | str,
    epochs: int,
    steps: int,
) -> Iterator[keras.callbacks.CallbackList]:
    """Gives callbacks whose `model` is the mixture, for `fit` of the model that trains its gate.

    `stop_training` and the optimizer's learning rate, set on the mixture, reach the trainer; the
    mixture's own optimizer is left as it was.

    Args:
        callbacks: As in `fit`.
        mixture: The compiled mixture.
        trainer: The compiled model that trains its gate, with an optimizer like the mixture's.
        verbose: As in `fit`.
        epochs: As in `fit`.
        steps: Batches of one epoch.

    Raises:
        ValueError: If one is `BackupAndRestore`.
    """
    given = list(getattr(callbacks, "callbacks", None) or tree.flatten(callbacks or []))
    if any(isinstance(callback, keras.callbacks.BackupAndRestore) for callback in given):
        raise ValueError(
            message(
                "`callbacks` of fit_gate must not resume a training, whose optimizer is not the "
                "mixture's",
                "BackupAndRestore",
                "Use keras.callbacks.ModelCheckpoint",
            )
        )
    of_trainer = keras.callbacks.Callback()
    of_trainer.set_model(trainer)
    hooks = _RARE + (_BATCHES if any(map(_sees_batches, given)) else ())
    rate = _learning_rate(mixture)
    seen = [rate]

    def follow() -> None:
        trainer.stop_training = trainer.stop_training or mixture.stop_training
        if _learning_rate(mixture) != seen[0]:
            seen[0] = _learning_rate(mixture)
            trainer.optimizer.learning_rate = seen[0]

    # `Callback.model` brings a model's variables up to date, which JAX keeps elsewhere in `fit`.
    before = _Around(hooks, lambda: of_trainer.model)
    after = _Around(hooks, follow)
    mixture.stop_training = False
    made = keras.callbacks.CallbackList(
        [before, *given, after],
        add_history=True,
        add_progbar=verbose != 0,
        model=mixture,
        verbose=verbose,
        epochs=epochs,
        steps=steps,
    )
    trainer.history = mixture.history
    try:
        yield made
    finally:
        if seen[0] != rate:
            mixture.optimizer.learning_rate = rate


def _learning_rate(model: keras.Model) -> float:
    return float(ops.convert_to_numpy(model.optimizer.learning_rate))


def _sees_batches(callback: keras.callbacks.Callback) -> bool:
    base = keras.callbacks.Callback
    return any(
        getattr(getattr(callback, hook), "__func__", None) is not getattr(base, hook)
        for hook in (*_BATCHES, "on_batch_begin", "on_batch_end")
    )
