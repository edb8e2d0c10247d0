"""Families: how the target is distributed around an expert's output."""

from typing import Any

import keras

from plait.errors import choose_from, message
from plait.losses.families.base import Family
from plait.losses.families.bernoulli import Bernoulli
from plait.losses.families.categorical import Categorical
from plait.losses.families.gaussian import Gaussian
from plait.losses.families.poisson import Poisson

_FAMILIES: dict[str, type[Family]] = {
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "gaussian": Gaussian,
    "poisson": Poisson,
}


def get(identifier: Any) -> Family:
    """Returns the family that a name, a config or an instance stands for.

    Args:
        identifier: A `Family`; a name such as `"gaussian"`; or the dict that
            `keras.saving.serialize_keras_object` makes of a family.

    Raises:
        ValueError: If no family has that name.
        TypeError: If `identifier` is none of these.

    Example:
    >>> import plait
    >>> plait.losses.families.get("gaussian").scale
    'learned'
    """
    if isinstance(identifier, str):
        name = identifier.lower()
        if name not in _FAMILIES:
            raise ValueError(choose_from("family", identifier, _FAMILIES))
        return _FAMILIES[name]()
    family = (
        keras.saving.deserialize_keras_object(identifier)
        if isinstance(identifier, dict)
        else identifier
    )
    if not isinstance(family, Family):
        raise TypeError(
            message(
                "`family` must be a name, a config or a plait.losses.families.Family",
                f"{family!r} of type {type(family).__name__}",
                "Use for example 'gaussian'",
            )
        )
    return family


__all__ = ["Bernoulli", "Categorical", "Family", "Gaussian", "Poisson", "get"]
