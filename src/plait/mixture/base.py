"""What the models of plait share: whether a call predicts, and how a file compiles them."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import keras

from plait.compat import register_optimizers, with_public_optimizers
from plait.typing import Config, Nested

_predicts = ContextVar("whether a call is part of a prediction", default=False)


class BaseModel(keras.Model):
    """A Keras model that knows whether a call is part of `predict`.

    Args:
        **kwargs: `name`, `dtype` and `trainable` of a Keras model. Its inputs are not cast.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        register_optimizers()  # before a model around this one is saved, or compiled from a file

    def predict_step(self, *args: Any, **kwargs: Any) -> Nested:
        """Predicts one batch; no loss follows, so that experts may run on their own rows alone."""
        with _predicting():
            return super().predict_step(*args, **kwargs)

    def predicts(self) -> bool:
        """Whether this call is part of `predict`, which no loss follows."""
        return _predicts.get()

    def needs_parts(self) -> bool:
        """Whether a loss may follow this call that needs the outputs of every expert; here not."""
        return False

    def get_compile_config(self) -> Config | None:
        """Returns what `compile` was given, for a file that any backend may read."""
        config = super().get_compile_config()
        return config and with_public_optimizers(config)

    def compile_from_config(self, config: Config) -> None:
        """Compiles as the saved model was, with the optimizer's state ready to be loaded."""
        # A file may name classes of one backend where an earlier version wrote it.
        self.compile(**keras.saving.deserialize_keras_object(with_public_optimizers(config)))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)


@contextlib.contextmanager
def _predicting() -> Iterator[None]:
    token = _predicts.set(True)
    try:
        yield
    finally:
        _predicts.reset(token)
