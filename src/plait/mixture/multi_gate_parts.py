"""The posterior weights of each task of a mixture of several gates."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops, tree

from plait.errors import choose_from, message
from plait.losses import MixtureNLL
from plait.mixture.introspection import family_of, predict_inside
from plait.mixture.tasks import Task
from plait.typing import Tensor

if TYPE_CHECKING:
    from plait.mixture.multi_gate import MultiGateMixture


def responsibilities(
    mixture: "MultiGateMixture", x: Any, y: Mapping[str, Any], batch_size: int | None
) -> dict[str, np.ndarray]:
    """Returns the posterior weights by task; see `MultiGateMixture.responsibilities`."""
    names = mixture.task_names
    if not isinstance(y, Mapping):
        raise ValueError(
            message(
                "Targets must be a dict by task",
                f"{type(y).__name__}",
                f"Pass for example y={{{names[0]!r}: array}}",
            )
        )
    for name in y:
        if name not in names:
            raise ValueError(choose_from("a key of y", name, names))
    weights, outputs = predict_inside(mixture, "parts", x, batch_size)
    if len(tree.flatten(outputs)) > 1:
        raise ValueError(
            message(
                "Responsibilities need experts with one output, whose distribution is known",
                f"{len(tree.flatten(outputs))} outputs",
                "Make a mixture of models that return one of these outputs",
            )
        )
    (outputs,) = tree.flatten(outputs)
    # Weights `(b, …, t, e)` have one axis more than those of one task.
    stacked = np.moveaxis(outputs, weights.ndim - 2, 0)
    found = {}
    for number, task in enumerate(mixture.tasks()):
        if task.name in y:
            found[task.name] = _of_task(
                mixture, task, y[task.name], weights[..., number, :], stacked
            )
    return found


def _of_task(
    mixture: "MultiGateMixture", task: Task, y: Any, weights: np.ndarray, stacked: np.ndarray
) -> np.ndarray:
    """Returns the posterior weights `(b, …, e)` of one task, zero where its gate sees nothing."""
    loss = mixture.loss if mixture.compiled else None
    objective = MixtureNLL(family_of(loss.get(task.name) if isinstance(loss, Mapping) else loss))
    own = task.experts

    def seen(expert: int) -> Tensor:
        output = ops.convert_to_tensor(stacked[expert])
        return output if task.tower is None else task.tower(output, training=False)

    outputs = ops.stack([seen(expert) for expert in own])
    posterior = np.zeros_like(weights)
    posterior[..., own] = ops.convert_to_numpy(
        objective.responsibilities(y, ops.convert_to_tensor(weights[..., own]), outputs)
    )
    return posterior
