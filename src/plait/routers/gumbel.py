"""The Gumbel router: one expert, drawn at random in training, with a gradient for all."""

from typing import Any

import keras
from keras import ops

from plait.ops.routing import Routing, softmax, straight_through
from plait.routers.temperature import TemperatureRouter


@keras.saving.register_keras_serializable("plait")
class Gumbel(TemperatureRouter):
    """Draws one expert with the probabilities softmax(s); at inference, takes the likeliest.

    In training the weights are the one-hot of `argmax(s + g)` with Gumbel noise `g`, and their
    gradient is that of `softmax((s + g) / T)`: the straight-through estimator. That gradient needs
    the outputs of all experts, so all of them are run in training, and only one at inference.

    Args:
        temperature: `T`, positive; small values give a gradient of little bias and much variance.
        seed: Seed of the noise; its state is saved with the router, so that training resumes
            exactly.
        **kwargs: `load_balance`, `importance`, `z_loss` and `from_logits` of `Router`; `name` and
            `dtype` of a Keras layer.

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

    def __init__(self, temperature: float = 1.0, *, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(temperature, **kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def select(self, logits: Any, training: bool) -> Routing:
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
        everyone = ops.arange(self.num_experts, dtype="int32")
        return Routing(weights, ops.broadcast_to(everyone, ops.shape(weights)))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "seed": self.seed}
