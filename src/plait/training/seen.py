"""Whether the rows of a gate were seen when its experts were trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops, tree

from plait.errors import message
from plait.losses import ExpertMean, MixtureNLL
from plait.typing import Nested

if TYPE_CHECKING:
    from plait.mixture import Mixture

_CHUNK = 8192
# Standard errors by which a loss must be lower on the gate's rows than on new ones.
_CLEAR = 4.0


def seen_in_training(
    names: Sequence[str], on_gate: np.ndarray, on_new: np.ndarray, remedy: str
) -> str | None:
    """Returns one line that says which experts have seen the gate's rows, or `None`.

    An expert has, as far as losses tell, where its mean loss on these is lower than on new rows by
    more than four standard errors of the difference.

    Args:
        names: What to call each expert.
        on_gate: Losses `(n, e)` on the gate's rows.
        on_new: Losses `(m, e)` on rows that are known to be new.
        remedy: What to do about it.

    Example:
    >>> import numpy as np
    >>> from plait.training.seen import seen_in_training
    >>> new = np.linspace(0.0, 1.0, 100)[:, None]
    >>> seen_in_training(["forest"], new, new, "Use others") is None
    True
    >>> seen_in_training(["forest"], 0.1 * new, new, "Use others")[:56]
    "The gate's rows were seen in training: forest has loss 0"
    """
    on_gate, on_new = (np.asarray(losses, "float64") for losses in (on_gate, on_new))
    gap = on_new.mean(axis=0) - on_gate.mean(axis=0)
    error = np.sqrt(on_new.var(axis=0) / len(on_new) + on_gate.var(axis=0) / len(on_gate))
    found = [
        f"{name} has loss {on_gate[:, i].mean():.4g} on them and {on_new[:, i].mean():.4g} on new "
        "rows"
        for i, name in enumerate(names)
        if gap[i] > _CLEAR * error[i]
    ]
    if not found:
        return None
    return (
        f"The gate's rows were seen in training: {'; '.join(found)}. A gate that is fitted on them "
        f"trusts whoever memorised them. {remedy}."
    )


def losses_of_experts(mixture: "Mixture", y: Nested, outputs: Nested) -> np.ndarray:
    """Returns the loss of each expert on each row, by the loss that the mixture is compiled with.

    Args:
        mixture: A compiled, built mixture.
        y: Target of `n` rows.
        outputs: `(n, …, e, …, u)`, as `Mixture.expert_outputs` gives them.

    Returns:
        Array `(n, e)`.

    Raises:
        ValueError: If there are several outputs, or no one loss.
    """
    objective = mixture.objective
    loss: Any = objective.loss if isinstance(objective, ExpertMean) else mixture.loss
    leaves = tree.flatten(outputs)
    plain = isinstance(loss, (str, keras.losses.Loss)) or callable(loss)
    if len(leaves) != 1 or not (isinstance(objective, MixtureNLL) or plain):
        raise ValueError(
            message(
                "`holdout` compares the loss of each expert, of one output and one loss",
                f"{len(leaves)} outputs, loss {loss!r}",
                "Leave `holdout` out",
            )
        )
    measure = objective if isinstance(objective, MixtureNLL) else ExpertMean(loss, weighted=True)
    shape = mixture.weights_shape()
    assert shape is not None  # the mixture is built
    routed, found = len(shape) - 1, []
    (values,), (target,) = leaves, tree.flatten(y)
    for start in range(0, len(values), _CHUNK):
        part = np.asarray(values[start : start + _CHUNK])
        stacked = ops.moveaxis(ops.convert_to_tensor(part), routed, 0)
        column = []
        for expert in range(mixture.num_experts):
            weights = np.zeros(part.shape[: routed + 1], "float32")
            weights[..., expert] = 1.0
            rows = measure.per_example(target[start : start + _CHUNK], weights, stacked)
            rows = ops.convert_to_numpy(rows)
            column.append(rows.reshape(len(rows), -1).mean(axis=1))
        found.append(np.stack(column, axis=1))
    return np.concatenate(found)


__all__ = ["losses_of_experts", "seen_in_training"]
