"""The Gaussian family."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from plait.errors import message
from plait.losses.families.base import Family
from plait.ops.likelihood import gaussian, scale_of
from plait.typing import Config, Tensor


@keras.saving.register_keras_serializable("plait")
class Gaussian(Family):
    """`y ~ N(f_l(x), σ_l²)`, independent over the units.

    The target is `(b, …, u)`, as is an expert's output; with predicted scales that is `(b, …, 2u)`.
    With these, a mixture is a mixture density network (Bishop 1994).

    Args:
        scale: `"learned"`, one `σ_l` per expert, trained with the rest; `"predicted"`, where an
            expert's last axis holds first the means, then as many numbers `r` whose
            `softplus(r) + 1e-6` are the scales; or given, a number or one per expert.
        initial_scale: Where learned scales start.
        **kwargs: `name` and `dtype` of a Keras layer.

    Raises:
        ValueError: If a scale is not positive, or they do not count the experts.

    Example:
    >>> import plait
    >>> plait.losses.families.Gaussian(scale=[0.5, 2.0]).scale
    [0.5, 2.0]
    """

    def __init__(
        self,
        scale: str | float | Sequence[float] = "learned",
        initial_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.scale = scale if isinstance(scale, (str, int, float)) else [float(s) for s in scale]
        self.initial_scale = initial_scale
        self.log_scale: Tensor = None
        if isinstance(scale, str) and scale not in ("learned", "predicted"):
            raise ValueError(
                message(
                    "`scale` of Gaussian must be 'learned', 'predicted' or numbers, one per expert",
                    repr(scale),
                    "Use scale='learned'",
                )
            )
        given = initial_scale if isinstance(scale, str) else scale
        if not np.all(np.asarray(given, "float64") > 0):
            raise ValueError(
                message("Scales of Gaussian must be positive", repr(given), "Use scale='learned'")
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the learned scales, or checks those given."""
        num_experts = int(input_shape[-1] or 1)
        if self.scale == "learned":
            self.log_scale = self.add_weight(
                name="log_scale",
                shape=(num_experts,),
                initializer=keras.initializers.Constant(math.log(self.initial_scale)),
                dtype="float32",
                autocast=False,
            )
        elif self.scale != "predicted":
            given = np.ravel(np.asarray(self.scale, "float64"))
            if given.size not in (1, num_experts):
                raise ValueError(
                    message(
                        f"`scale` of Gaussian must be one number or {num_experts}, one per expert",
                        f"{self.scale}",
                        "Give as many scales as there are experts",
                    )
                )
            self.log_scale = np.log(np.broadcast_to(given, (num_experts,)))

    def log_density(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Returns the log-density, element by element."""
        if self.scale == "predicted":
            mean, raw = ops.split(outputs, 2, axis=-1)
            return gaussian(y, mean, ops.log(scale_of(raw)))
        scales = ops.cast(ops.convert_to_tensor(self.log_scale), outputs.dtype)
        return gaussian(y, outputs, ops.reshape(scales, (-1, *(1,) * (len(outputs.shape) - 1))))

    def mean(self, outputs: Tensor) -> Tensor:
        """Returns the output, or its first half where it holds scales too."""
        if self.scale != "predicted":
            return outputs
        if outputs.shape[-1] % 2:
            raise ValueError(
                message(
                    "With scale='predicted' an expert's last axis holds means, then as many scales",
                    f"outputs with {outputs.shape[-1]} units",
                    "End the experts in an even number of units",
                )
            )
        return outputs[..., : outputs.shape[-1] // 2]

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "scale": self.scale,
            "initial_scale": self.initial_scale,
        }
