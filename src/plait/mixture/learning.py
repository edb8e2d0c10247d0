"""How a mixture learns: what happens around Keras' own training."""

from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from plait.mixture.model import Mixture


class Learning:
    """The part of `Mixture` that Keras calls around training."""

    def compile(self: "Mixture", *args: Any, **kwargs: Any) -> None:
        """Configures training; see `keras.Model.compile`.

        Raises:
            ValueError: If some, not all, experts of one stack were frozen since they were stacked.
        """
        if self.built:
            self._about.bank.follow_trainable_flags()
        super().compile(*args, **kwargs)  # type: ignore[misc]

    def compile_from_config(self: "Mixture", config: dict[str, Any]) -> None:
        """Compiles as the saved mixture was compiled, with the optimizer's state to be loaded."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self: "Mixture", *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains gate and experts jointly; see `keras.Model.fit`.

        The experts that were passed in hold the trained weights afterwards, also where training
        was interrupted.
        """
        try:
            return super().fit(*args, **kwargs)  # type: ignore[misc]
        finally:
            if self.built:
                self._about.bank.write_back()
