"""Finds every mixture in a model, and what its gate does while the model runs on data."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from plait.compat import UntrackedList, flat_layers
from plait.mixture.of_experts import OfExperts
from plait.mixture.watching import Call, watching
from plait.typing import Nested


class Look(NamedTuple):
    """What the gate of one mixture did with some rows.

    Attributes:
        name: Of the mixture, and of the task where it has several.
        experts: Numbers of the experts that the gate scores.
        weights: Array `(n, e)`, without rows that are masked.
        dropped: The share of choices that a capacity dropped, or `None` without a capacity.
    """

    name: str
    experts: list[int]
    weights: np.ndarray
    dropped: float | None


class _Gate(NamedTuple):
    """What is known of a call of a mixture without its tensors; see `Call`."""

    mixture: OfExperts
    task: str | None
    experts: list[int]


def mixtures_in(model: keras.layers.Layer) -> dict[str, OfExperts]:
    """Returns the mixtures that a model's layers hold, by a name of their own.

    Those inside experts that a mixture made of a template or of copies are not among them: these
    experts are layers of no model. `Looker` finds them too.

    Args:
        model: A Keras model; it may be a mixture.

    Example:
    >>> import keras
    >>> from plait import Mixture
    >>> from plait.callbacks.looking import mixtures_in
    >>> block = lambda: Mixture(keras.layers.Dense(4), num_experts=2, name="moe")
    >>> list(mixtures_in(keras.Sequential([keras.Sequential([block()]), block()])))
    ['moe', 'moe_1']
    """
    named: dict[str, OfExperts] = {}
    for layer in flat_layers(model):
        if isinstance(layer, OfExperts):
            name, number = layer.name, 0
            while name in named:
                number += 1
                name = f"{layer.name}_{number}"
            named[name] = layer
    return named


class Looker(keras.Model):
    """Runs a model and predicts what the gates of its mixtures do.

    Args:
        model: The model, at any depth of which there are mixtures. A mixture inside a layer that
            calls it in a loop, such as a recurrent one, cannot be seen.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__(autocast=False, name="looker")
        self.model = model
        self.calls = UntrackedList()
        self.names = {id(mixture): name for name, mixture in mixtures_in(model).items()}

    def call(self, inputs: Nested) -> Nested:
        """Returns of each call of a mixture the weights, and what else `looks` needs."""
        with watching() as calls:
            self.model(inputs, training=False)
        seen = [call for call in calls if id(call.mixture) in self.names]
        # Without their tensors, which mean nothing once a compiled step is traced.
        self.calls.data = [_Gate(call.mixture, call.task, call.experts) for call in seen]
        return [self._told(call) for call in seen]

    def _told(self, call: Call) -> dict[str, Nested]:
        found = {"weights": call.routing.weights}
        if call.mask is not None:
            rows = ops.cast(call.mask, "bool")
            shape = ops.shape(call.routing.weights)[:-1]
            rows = ops.reshape(rows, (*ops.shape(rows), *(1,) * (len(shape) - len(rows.shape))))
            found["mask"] = ops.broadcast_to(rows, shape)
        if _limited(call):
            found["indices"] = call.routing.indices
        if _nested(call):
            found["fed"] = call.mixture.fed(call.inputs, call.input_mask).inputs
        return found

    def looks(self, x: Any, batch_size: int | None = None) -> Iterator[Look]:
        """Yields what each mixture does with data, also those inside experts.

        Args:
            x: What `predict` of the model takes.
            batch_size: As in `predict`.
        """
        told = self.predict(x, batch_size=batch_size, verbose=0)
        gathered: dict[str, list[Look]] = {}
        for call, found in zip(self.calls, told, strict=True):
            name = self.names[id(call.mixture)]
            look = _look(name if call.task is None else f"{name}/{call.task}", call, found)
            gathered.setdefault(look.name, []).append(look)
        for looks in gathered.values():  # a mixture may be called several times
            yield _joined(looks)
        for call, found in zip(self.calls, told, strict=True):
            if "fed" in found:
                yield from _inside(self.names[id(call.mixture)], call, found, batch_size)


def _limited(call: Call) -> bool:
    """Whether the router drops choices over a capacity; those of `ExpertChoice` are not dropped."""
    router = _router(call)
    counted = getattr(router, "k", None) is not None and call.routing.indices is not None
    return counted and getattr(router, "capacity_factor", None) is not None


def _router(call: Call | _Gate) -> Any:
    mixture: Any = call.mixture
    return mixture.router if call.task is None else mixture.routers.get(call.task)


def _nested(call: Call) -> bool:
    """Whether experts of the mixture hold mixtures themselves; told once for several tasks."""
    mixture: Any = call.mixture
    first = call.task is None or call.task == mixture.task_names[0]
    return first and any(mixtures_in(expert) for expert in mixture.state.given)


def _look(name: str, call: _Gate, found: dict[str, Any]) -> Look:
    weights = found["weights"].reshape(-1, found["weights"].shape[-1])
    rows = found["mask"].reshape(-1) if "mask" in found else np.ones(len(weights), bool)
    dropped = None
    if "indices" in found:
        indices = found["indices"].reshape(len(weights), -1)[rows]
        dropped = float((indices >= weights.shape[-1]).mean()) if indices.size else 0.0
    return Look(name, call.experts, weights[rows], dropped)


def _joined(looks: list[Look]) -> Look:
    drops = [(look.dropped, len(look.weights)) for look in looks if look.dropped is not None]
    total = sum(size for _, size in drops)
    dropped = sum(share * size for share, size in drops) / max(total, 1) if drops else None
    return looks[0]._replace(
        weights=np.concatenate([look.weights for look in looks]), dropped=dropped
    )


def _inside(
    name: str, call: _Gate, found: dict[str, Any], batch_size: int | None
) -> Iterator[Look]:
    """Yields what the mixtures inside experts do with the rows that these experts run on."""
    mixture, fed = call.mixture, found["fed"]
    weights = found["weights"]
    by_row = mixture.state.dispatches
    if by_row:
        rank = weights.ndim - 1
        weights = weights.reshape(-1, weights.shape[-1])
        fed = tree.map_structure(lambda leaf: leaf.reshape(-1, *leaf.shape[rank:]), fed)
    for expert in range(mixture.num_experts):
        model = mixture.expert(expert)
        if not mixtures_in(model):
            continue
        rows = fed[0 if len(fed) == 1 else expert]
        if by_row and call.task is None:
            chosen = weights[:, expert] != 0
            if not chosen.any():
                continue
            rows = tree.map_structure(lambda leaf, chosen=chosen: leaf[chosen], rows)
        for look in Looker(model).looks(rows, batch_size):
            yield look._replace(name=f"{name}/expert_{expert}/{look.name}")
