"""The Gumbel router: one expert, drawn at random in training, with a gradient for all."""

from typing import Any

import keras
from keras import ops

from plait.ops.routing import Routing, excluded, softmax, straight_through
from plait.routers.temperature import TemperatureRouter
from plait.typing import Dtype, Tensor


@keras.saving.register_keras_serializable("plait")
class Gumbel(TemperatureRouter):
    """Draws one expert with the probabilities softmax(s); at inference, takes the likeliest.

    In training the weights are the one-hot of `argmax(s + g)` with Gumbel noise `g`, and their
    gradient is that of `softmax((s + g) / T)`: the straight-through estimator. That gradient needs
    the outputs of all experts, so all of them are run in training, and only one at inference.

    Takes scores `(b, …, e)` and returns weights of the same shape.

    Args:
        temperature: `T`, positive; small values give a gradient of little bias and much variance.
        seed: Seed of the noise; its state is saved with the router, so that training resumes
            exactly.
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
    >>> import numpy as np
    >>> import plait
    >>> weights = plait.routers.Gumbel()(np.log([[0.2, 0.5, 0.3]]))
    >>> [float(w) for w in weights[0]]
    [0.0, 1.0, 0.0]

    References:
        Jang, Gu, Poole (2017), Categorical reparameterization with Gumbel-softmax, eq. 1 and 2.
    """

    sparse = True

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        seed: int | None = None,
        load_balance: float = 0.0,
        importance: float = 0.0,
        z_loss: float = 0.0,
        from_logits: bool = True,
        name: str | None = None,
        dtype: Dtype | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(
            temperature,
            load_balance=load_balance,
            importance=importance,
            z_loss=z_loss,
            from_logits=from_logits,
            name=name,
            dtype=dtype,
            trainable=trainable,
        )
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def select(self, logits: Tensor, training: bool) -> Routing:
        """One expert is chosen; in training, every expert's output is needed for the gradient."""
        if not training:
            return straight_through(softmax(logits))
        uniform = keras.random.uniform(
            ops.shape(logits), dtype=logits.dtype, seed=self.seed_generator
        )
        # Bounded away from 0 and 1, where the double logarithm is infinite.
        uniform = ops.clip(uniform, 1e-20, 1.0 - 1e-7)
        noisy = logits - ops.log(-ops.log(uniform))
        weights = straight_through(softmax(noisy, self.temperature_value)).weights
        experts = ops.arange(self.num_experts, dtype="int32")
        return Routing(weights, ops.where(excluded(logits), self.num_experts, experts))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "seed": self.seed}
