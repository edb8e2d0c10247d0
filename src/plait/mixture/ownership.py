"""Ownership of the experts' variables: by the caller, or by the mixture (copies, a template)."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import keras
from keras import tree

from plait.experts.groups import ExpertBank, SharedBank
from plait.experts.initialization import (
    FreshValues,
    check_same,
    copy_of,
    copy_with_weights,
    stack_many,
)
from plait.experts.plan import Placed
from plait.experts.runner import input_of
from plait.experts.signature import alike, shared_variables, why_alone
from plait.experts.single import SingleExpert
from plait.experts.stacked import StackedRunner
from plait.experts.variables import StackedExperts
from plait.mixture.specs import output_specs
from plait.mixture.state import MixtureState
from plait.typing import Nested, Tensor


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
            output_specs(expert, input_of(inputs, position))
    bank = SharedBank(state.given, execution, inputs)
    if execution == "stacked" and len(bank.groups(True)) == num_experts > 1:
        _warn_of_nothing_to_stack(bank)
    return Made(bank, [])


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
            output_specs(made, input_of(inputs, offset))
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
            name=f"{num_experts} × {template.name}",  # noqa: RUF001
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
        copy_with_weights(expert, partial(_build, inputs, position))
        for position, expert in enumerate(experts)
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
            partial(_stack_column, columns),
            name=f"{len(members)} × {experts[positions[0]].name}",  # noqa: RUF001
        )
        made = _owned_stack(stack, members[0], input_of(inputs, positions[0]), positions, execution)
        placed += made.bank.placed
        owned += made.owned
    return Made(ExpertBank(placed), owned)


def _build(inputs: Sequence[Nested], position: int, copy: keras.layers.Layer) -> Nested:
    return output_specs(copy, input_of(inputs, position))


def _stack_column(columns: Sequence[Sequence[keras.Variable]], position: int) -> Tensor:
    return stack_many([variable.value for variable in columns[position]])


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
