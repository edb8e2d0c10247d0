"""Puts a mixture's experts together: checks what was passed, builds what is not built."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import tree

from plait.errors import choose_from, message
from plait.experts import (
    ExpertBank,
    FreshValues,
    Placed,
    SharedBank,
    SingleExpert,
    StackedExperts,
    StackedRunner,
    alike,
    check_same,
    copy_of,
    copy_with_weights,
    shared_variables,
    stack_many,
    why_alone,
)
from plait.mixture.specs import output_specs
from plait.mixture.state import MixtureState
from plait.typing import Nested

EXECUTIONS = ("auto", "loop", "stacked")


def check_experts(experts: Any, num_experts: int | None) -> tuple[list[Any], int]:
    """Returns the experts as a list (of one template) and their number.

    Raises:
        ValueError: If there are none, or their number is contradicted or missing.
        TypeError: If one is no Keras model or layer.
    """
    if num_experts is not None and (
        not isinstance(num_experts, int) or isinstance(num_experts, bool) or num_experts < 1
    ):
        raise ValueError(
            message(
                "`num_experts` must be an integer of at least 1",
                f"num_experts={num_experts!r}",
                "Say how many copies of the template the mixture has",
            )
        )
    if isinstance(experts, keras.layers.Layer):
        if num_experts is None:
            raise ValueError(
                message(
                    "One template needs `num_experts`",
                    f"the template {experts.name!r} and num_experts=None",
                    "Say how many, as in Mixture(template, num_experts=8), or pass a list",
                )
            )
        return [experts], num_experts
    if not isinstance(experts, (list, tuple)) or not experts:
        raise ValueError(
            message(
                "A mixture needs at least one expert",
                f"experts={experts!r}",
                "Pass a list of Keras models or layers, or one template with `num_experts`",
            )
        )
    for position, expert in enumerate(experts):
        if not isinstance(expert, keras.layers.Layer):
            raise TypeError(
                message(
                    f"Expert {position} must be a Keras model or layer",
                    f"{expert!r} of type {type(expert).__name__}",
                    "Wrap a function in keras.layers.Lambda, or write a layer",
                )
            )
    if num_experts not in (None, len(experts)):
        raise ValueError(
            message(
                "`num_experts` goes with one template; a list counts itself",
                f"{len(experts)} experts and num_experts={num_experts}",
                "Leave `num_experts` out",
            )
        )
    return list(experts), len(experts)


def check_execution(execution: str) -> str:
    """Returns `execution` when it is a known one, and raises `ValueError` otherwise."""
    if execution not in EXECUTIONS:
        raise ValueError(choose_from("execution", execution, EXECUTIONS))
    return execution


class Made(NamedTuple):
    """The experts of a mixture, ready to run.

    Attributes:
        bank: What runs them.
        owned: The layers that own their variables, where the mixture does.
    """

    bank: ExpertBank
    owned: list[keras.layers.Layer]


def make_experts(
    state: MixtureState, num_experts: int, inputs: Sequence[Nested], execution: str
) -> Made:
    """Makes what runs a mixture's experts, and builds those that are not built.

    Args:
        state: Of the mixture.
        num_experts: Number of experts, `e`.
        inputs: The input specs that all experts share, or of each.
        execution: `"auto"`, `"loop"` or `"stacked"`.
    """
    if state.ownership == "template":
        return _of_template(state.first, num_experts, inputs, execution)
    if state.ownership == "copied":
        return _of_copies(state.given, inputs, execution)
    for position, expert in enumerate(state.given):
        if not expert.built:
            output_specs(expert, _of(inputs, position))
    bank = SharedBank(state.given, execution, inputs)
    if execution == "stacked" and len(bank.groups(True)) == num_experts > 1:
        _warn_of_nothing_to_stack(bank)
    return Made(bank, [])


def _of(inputs: Sequence[Nested], position: int) -> Nested:
    return inputs[0 if len(inputs) == 1 else position]


def _warn_of_nothing_to_stack(bank: SharedBank) -> None:
    shared = shared_variables(bank.experts)
    reasons = {
        "it shares variables with another"
        if position in shared
        else why_alone(expert) or bank.why_single(position) or "its architecture differs"
        for position, expert in enumerate(bank.experts)
    }
    warnings.warn(
        f"execution='stacked' found no experts to stack: {'; '.join(sorted(reasons))}. "
        "They run one after another.",
        stacklevel=4,
    )


def _of_template(
    template: keras.layers.Layer, num_experts: int, inputs: Sequence[Nested], execution: str
) -> Made:
    """Makes fresh experts of a template, which is left as it is."""

    def copy(offset: int) -> keras.layers.Layer:
        made = copy_of(template, offset)
        if not template.built:
            check_same(made, template)
        if not made.built:
            output_specs(made, _of(inputs, offset))
        return made

    first = copy(0)
    if template.built:
        check_same(first, template)
    alone = why_alone(first)
    if alone is None:
        stack = StackedExperts(
            first,
            num_experts,
            FreshValues(first, num_experts, copy),
            name=f"{num_experts} × {template.name}",
        )
        return _owned_stack(stack, first, inputs[0], list(range(num_experts)), execution)
    if execution != "loop":
        warnings.warn(
            f"The experts made of {template.name!r} run one after another: {alone}.", stacklevel=5
        )
    experts = [first, *(copy(offset) for offset in range(1, num_experts))]
    return Made(ExpertBank([Placed([i], SingleExpert(e)) for i, e in enumerate(experts)]), experts)


def _of_copies(
    experts: Sequence[keras.layers.Layer], inputs: Sequence[Nested], execution: str
) -> Made:
    """Copies experts, weights included; alike ones run stacked."""
    copies = [
        copy_with_weights(expert, lambda made, i=i: output_specs(made, _of(inputs, i)))
        for i, expert in enumerate(experts)
    ]
    placed: list[Placed] = []
    owned: list[keras.layers.Layer] = []
    for positions in alike(copies):
        members = [copies[position] for position in positions]
        if len(members) == 1:
            placed.append(Placed(positions, SingleExpert(members[0])))
            owned.append(members[0])
            continue
        columns = list(zip(*(member.variables for member in members), strict=True))
        stack = StackedExperts(
            members[0],
            len(members),
            lambda position, columns=columns: stack_many([v.value for v in columns[position]]),
            name=f"{len(members)} × {experts[positions[0]].name}",
        )
        made = _owned_stack(stack, members[0], _of(inputs, positions[0]), positions, execution)
        placed += made.bank.placed
        owned += made.owned
    return Made(ExpertBank(placed), owned)


def _owned_stack(
    stack: StackedExperts,
    layer: keras.layers.Layer,
    inputs: Nested,
    positions: list[int],
    execution: str,
) -> Made:
    stack.build(tree.map_structure(lambda spec: tuple(spec.shape), inputs))
    runner = StackedRunner(layer, stack, vectorized=execution != "loop")
    return Made(ExpertBank([Placed(positions, runner)]), [stack])
