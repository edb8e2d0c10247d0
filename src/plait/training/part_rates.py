"""Learning rates per part: gate and experts of one model, each at its own pace."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from plait.errors import message
from plait.typing import Config, Tensor

Parts = Sequence[tuple[keras.layers.Layer, float]]
"""Pairs of a layer and what its learning rate is multiplied by."""


@keras.saving.register_keras_serializable("plait")
class PartRates(keras.optimizers.Optimizer):
    """An optimizer whose learning rate is another one for some parts of a model.

    Learning rates that differ by layer are those of Howard and Ruder (2018). Parts are layers or
    models, as objects: the gate, an expert. Each factor has an optimizer of its own, of the given
    one's class and settings. A learning rate that is set on this one, also by a
    callback, or its schedule, is that of what is in no part.

    Args:
        optimizer: A Keras optimizer, its name or config, which is copied.
        parts: Pairs `(layer, factor)`; a factor of zero leaves the part where it is. A variable in
            several parts follows the first.
        factors: Instead of `parts`, the factor of each trainable variable, in a model's order: what
            a file holds.
        name: As in Keras.

    Raises:
        TypeError: If a part is no pair of a layer and a number.
        ValueError: If a factor is negative, or the optimizer clips by the norm of all gradients,
            which are split here, or keeps moving averages.

    Example:
    >>> import keras, numpy as np, plait
    >>> mix = plait.Mixture([keras.layers.Dense(1), keras.layers.Dense(1)])
    >>> mix.compile(plait.training.PartRates("sgd", [(e, 0.0) for e in mix.experts]), "mse")
    >>> x = np.ones((4, 2), "float32")
    >>> before = mix.expert_outputs(x)
    >>> history = mix.fit(x, np.zeros((4, 1)), verbose=0)
    >>> bool((mix.expert_outputs(x) == before).all())
    True
    """

    one_for_each_rate = True

    def __init__(
        self,
        optimizer: Any = "adam",
        parts: Parts = (),
        *,
        factors: Sequence[float] | None = None,
        name: str = "part_rates",
    ) -> None:
        _check_parts(parts)
        given = keras.optimizers.get(optimizer)
        config = given.get_config()
        rate = config["learning_rate"]
        super().__init__(
            keras.saving.deserialize_keras_object(rate) if isinstance(rate, dict) else rate,
            loss_scale_factor=given.loss_scale_factor,
            name=name,
        )
        self.inside = _Inside(given, [(layer, float(factor)) for layer, factor in parts])
        # Read now: inside a traced step TensorFlow cannot read the learning rate.
        self.inside.config = {**config, "learning_rate": 0.0}
        self.inside.factors = None if factors is None else [float(factor) for factor in factors]
        if given.global_clipnorm or given.use_ema:
            raise ValueError(
                message(
                    "PartRates splits the gradients, so none can be clipped by the norm of all, "
                    "and keeps no moving averages",
                    f"global_clipnorm={given.global_clipnorm}, use_ema={given.use_ema}",
                    "Use clipnorm or clipvalue, and no EMA",
                )
            )
        for factor in self.inside.factors or [factor for _, factor in self.inside.parts]:
            if not (factor >= 0.0 and np.isfinite(factor)):
                raise ValueError(
                    message(
                        "A factor of PartRates must be a finite number, not negative",
                        f"{factor}",
                        "Use 0.1 for a tenth of the learning rate",
                    )
                )

    @property
    def given(self) -> keras.optimizers.Optimizer:
        """The optimizer whose class and settings all parts share."""
        return self.inside.given

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes an optimizer for each factor, and gives it its variables."""
        if self.built:
            return
        inside = self.inside
        factors = _factors(inside.parts, variables) if inside.parts else inside.factors
        if factors is None:
            factors = [1.0] * len(variables)
        if len(factors) != len(variables):
            raise ValueError(
                message(
                    f"PartRates has a factor for each of {len(factors)} trained variables",
                    f"a model with {len(variables)}",
                    "Make it anew of the model's parts",
                )
            )
        super().build(list(variables))
        inside.factors, inside.variables = factors, list(variables)
        for factor in sorted(set(factors) - {0.0}):
            config = {**inside.config, "name": f"{self.name}_{factor:g}"}
            inner = type(self.given).from_config(config)
            inner.build([v for v, own in zip(variables, factors, strict=True) if own == factor])
            inside.groups.append((factor, inner))

    def apply(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Updates the variables of each part by its own optimizer."""
        if not self.built and trainable_variables is not None:
            self.build(list(trainable_variables))
        inside = self.inside
        variables = list(trainable_variables or inside.variables)
        assert inside.factors is not None  # it is built
        of = {id(v): factor for v, factor in zip(inside.variables, inside.factors, strict=True)}
        rate = self.learning_rate
        for factor, inner in inside.groups:
            pairs = [
                (gradient, variable)
                for gradient, variable in zip(grads, variables, strict=True)
                if of[id(variable)] == factor and gradient is not None
            ]
            inner.learning_rate = rate * factor
            if pairs:
                inner.apply([gradient for gradient, _ in pairs], [v for _, v in pairs])
        self.iterations.assign_add(1)

    def anew(self) -> "PartRates":
        """Returns an optimizer of the same parts that starts anew, on any model that has some."""
        given = type(self.given).from_config(self.given.get_config())
        factors = None if self.inside.parts else self.inside.factors
        return PartRates(given, self.inside.parts, factors=factors)

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of this optimizer and of those inside."""
        if not hasattr(self, "inside"):
            return super().variables
        inner = [v for _, optimizer in self.inside.groups for v in optimizer.variables]
        return [*super().variables, *inner]

    def get_config(self) -> Config:
        """Returns the given optimizer and the factor of each variable, in the model's order.

        Raises:
            ValueError: If the variables of the parts are not known yet.
        """
        if self.inside.parts and not self.built:
            raise ValueError(
                message(
                    "PartRates can be written once it is built, as a file knows parts by the order "
                    "of the model's variables",
                    "one that is not built",
                    "Train a step, or call optimizer.build(model.trainable_variables)",
                )
            )
        return {
            "optimizer": keras.optimizers.serialize(self.given),
            "factors": self.inside.factors,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: Any = None) -> "PartRates":
        """Returns an optimizer of what `get_config` gave."""
        given = keras.optimizers.deserialize(config["optimizer"], custom_objects)
        return cls(given, factors=config["factors"], name=config["name"])


def _check_parts(parts: Any) -> None:
    """Checks that parts are pairs of a layer and a number.

    Raises:
        TypeError: If one is not.
    """
    for part in parts:
        pair = isinstance(part, (tuple, list)) and len(part) == 2
        if not (
            pair and isinstance(part[0], keras.layers.Layer) and isinstance(part[1], (int, float))
        ):
            raise TypeError(
                message(
                    "Each part of PartRates is a pair of a layer, as an object, and a number",
                    f"{part!r}",
                    "Use for example PartRates('adam', [(mix.gate, 0.1)])",
                )
            )


class _Inside:
    """What Keras must not track: the optimizers of the parts, and the parts."""

    def __init__(
        self,
        given: keras.optimizers.Optimizer,
        parts: list[tuple[keras.layers.Layer, float]],
    ) -> None:
        self.given = given
        self.parts = parts
        self.config: Config = {}
        self.factors: list[float] | None = None
        self.variables: list[keras.Variable] = []
        self.groups: list[tuple[float, keras.optimizers.Optimizer]] = []


def _factors(
    parts: list[tuple[keras.layers.Layer, float]], variables: Sequence[keras.Variable]
) -> list[float]:
    """Returns the factor of each variable; one in several parts follows the first."""
    of_part: dict[int, float] = {}
    for layer, factor in parts:
        for variable in layer.trainable_variables:
            of_part.setdefault(id(variable), factor)
    return [of_part.get(id(variable), 1.0) for variable in variables]


__all__ = ["PartRates"]
