"""Pruning: a mixture without some of its experts."""

from collections.abc import Iterable

import keras
from keras import ops

from plait.compat import is_functional, refresh_adapted
from plait.errors import message
from plait.experts.initialization import copy_of
from plait.mixture import Mixture
from plait.mixture.gates import GateSpec


def _is_graph(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.Sequential) or is_functional(layer)


# Layers that may follow, in a gate, the one that scores the experts.
_AFTER_SCORES = (keras.layers.Activation, keras.layers.Softmax)


def prune(mixture: Mixture, experts: Iterable[int]) -> Mixture:
    """Returns a mixture without some experts, such as those that `EMResult.dead` lists.

    The others keep their values and their scores. Under a softmax their new weights are the old
    ones divided by their sum,

        w'_l(x) = w_l(x) / Σ_{j kept} w_j(x).

    The gate is a new one without the columns of the pruned experts; the router is a copy. Models
    that were passed to the mixture in a list are the experts of both mixtures; experts of a
    template are copied. The mixture itself is left as it is.

    The new mixture is not compiled. Learned scales of `MixtureNLL("gaussian")` belong to what was
    compiled: `fit_em` learns them anew, or compile with those that remain,
    `MixtureNLL(plait.losses.families.Gaussian(scale=found.scales[kept]))`.

    Args:
        mixture: A built mixture. Its gate is constant or linear, a `Dense` layer, or a functional
            or Sequential model that ends in one, a softmax or another activation behind it or not.
        experts: Positions of the experts to leave out.

    Returns:
        The new mixture.

    Raises:
        ValueError: If the mixture is not built, has no such expert, or none would remain; if the
            router needs more experts than remain.
        TypeError: If the gate is of another kind.

    Example:
    >>> import keras, numpy as np, plait
    >>> mix = plait.Mixture(keras.layers.Dense(1), num_experts=3)
    >>> x = np.ones((2, 4))
    >>> tuple(mix(x).shape)
    (2, 1)
    >>> pruned = plait.training.prune(mix, [1])
    >>> pruned.num_experts, pruned.gate_weights(x).shape
    (2, (2, 2))
    """
    kept = _remaining(mixture, experts)
    state = mixture.state
    template = state.ownership == "template"
    router, inputs = mixture.router, mixture.expert_inputs
    new = Mixture(
        state.first if template else [state.given[i] for i in kept],
        _gate_for(mixture, kept),
        num_experts=len(kept) if template else None,
        router=None if router is None else type(router).from_config(router.get_config()),
        expert_inputs=[inputs[i] for i in kept] if isinstance(inputs, list) else inputs,
        gate_inputs=mixture.gate_inputs,
        execution=mixture.execution,
        copy_experts=state.ownership == "copied",
        name=mixture.name,
        trainable=mixture.trainable,
        dtype=mixture.dtype_policy,
    )
    new.build_from_config(mixture.get_build_config())
    if state.ownership != "shared":
        new.state.bank.set_all([state.bank.values(expert) for expert in kept])
    _carry_over(mixture.gate, new.gate, kept)
    if router is not None:
        _carry_over(router, new.router, kept)
    return new


def _gate_for(mixture: Mixture, kept: list[int]) -> GateSpec:
    """Returns what the new mixture is given as its gate."""
    gate = mixture.state.gate
    if isinstance(gate, keras.layers.Layer):
        return _narrowed(mixture.gate, len(kept))
    if gate is None or isinstance(gate, str):
        return gate
    return [gate[i] for i in kept]


def _remaining(mixture: Mixture, experts: Iterable[int]) -> list[int]:
    """Returns the positions of the experts that stay."""
    if not mixture.built:
        raise ValueError(
            message(
                "`prune` needs a mixture that is built",
                f"{mixture.name!r}, which has seen no input yet",
                "Call it on data once, or call build(input_shape)",
            )
        )
    gone = set()
    for expert in experts:
        if expert not in range(mixture.num_experts):
            raise ValueError(
                message(
                    f"The mixture has experts 0 to {mixture.num_experts - 1}",
                    f"{expert!r} among the experts to prune",
                    "Name some of these",
                )
            )
        gone.add(expert)
    kept = [i for i in range(mixture.num_experts) if i not in gone]
    if not kept:
        raise ValueError(
            message(
                "One expert at least must remain after `prune`",
                f"all of the {mixture.num_experts} experts",
                "Keep one of them",
            )
        )
    return kept


def _narrowed(gate: keras.layers.Layer, num_experts: int) -> keras.layers.Layer:
    """Returns a gate like the given one, not yet with its weights, for fewer experts.

    Raises:
        TypeError: If it is not known which of the gate's weights belong to which expert.
    """
    if isinstance(gate, keras.layers.Dense):
        return type(gate).from_config({**gate.get_config(), "units": num_experts})
    if _is_graph(gate):
        scores = [layer for layer in gate.layers if not isinstance(layer, _AFTER_SCORES)][-1:]
        if scores:
            return keras.models.clone_model(
                gate,
                clone_function=lambda layer: (
                    _narrowed(layer, num_experts) if layer is scores[0] else copy_of(layer)
                ),
            )
    raise TypeError(
        message(
            "`prune` narrows gates that are constant or linear, a Dense layer, or a functional or "
            "Sequential model that ends in one",
            f"{gate.name!r} of type {type(gate).__name__}",
            "Make a plait.Mixture of the experts that remain, mixture.expert(i), with a new gate",
        )
    )


def _carry_over(old: keras.layers.Layer, new: keras.layers.Layer, kept: list[int]) -> None:
    """Gives a gate or router the weights that the wider one has for the experts that remain."""
    for before, after in zip(old.variables, new.variables, strict=True):
        value = ops.convert_to_numpy(before.value)
        after.assign(value if value.shape == tuple(after.shape) else value[..., kept])
    refresh_adapted(new)
