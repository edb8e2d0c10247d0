"""Routers: the rules that turn a gate's scores into mixing weights."""

from typing import Any

import keras

from plait.errors import choose_from, message
from plait.routers.base import Router
from plait.routers.entmax15 import Entmax15
from plait.routers.expert_choice import ExpertChoice
from plait.routers.gumbel import Gumbel
from plait.routers.softmax import Softmax
from plait.routers.sparsemax import Sparsemax
from plait.routers.temperature import TemperatureRouter
from plait.routers.top_k import TopK

_ROUTERS: dict[str, type[Router]] = {
    "entmax15": Entmax15,
    "expertchoice": ExpertChoice,
    "gumbel": Gumbel,
    "softmax": Softmax,
    "sparsemax": Sparsemax,
    "topk": TopK,
}


def get(identifier: Router | str | dict[str, Any] | None) -> Router | None:
    """Returns the router that a name, a config or an instance stands for.

    Args:
        identifier: `None`; a `Router`; a name such as `"softmax"`; or the dict that
            `keras.saving.serialize_keras_object` makes of a router.

    Raises:
        ValueError: If no router has that name.
        TypeError: If `identifier` is none of these.

    Example:
    >>> import plait
    >>> plait.routers.get("softmax").temperature
    1.0
    """
    if identifier is None or isinstance(identifier, Router):
        return identifier
    if isinstance(identifier, str):
        name = identifier.lower().replace("_", "").replace("-", "")
        if name not in _ROUTERS:
            raise ValueError(choose_from("router", identifier, _ROUTERS))
        return _ROUTERS[name]()
    router = (
        keras.saving.deserialize_keras_object(identifier)
        if isinstance(identifier, dict)
        else identifier
    )
    if not isinstance(router, Router):
        raise TypeError(
            message(
                "`router` must be None, a name, a config or a plait.routers.Router",
                f"{router!r} of type {type(router).__name__}",
                "Pass for example plait.routers.Softmax()",
            )
        )
    return router


__all__ = [
    "Entmax15",
    "ExpertChoice",
    "Gumbel",
    "Router",
    "Softmax",
    "Sparsemax",
    "TemperatureRouter",
    "TopK",
    "get",
]
