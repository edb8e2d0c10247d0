"""Puts a mixture's experts together: checks what was passed, builds what is not built."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from plait.errors import choose_from, message
from plait.experts import (
    ExpertBank,
    copy_of,
    recorded_initializers,
    shares_variables,
    why_alone,
)
from plait.mixture.specs import output_specs

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


def bank_of_list(
    experts: Sequence[keras.layers.Layer], inputs: Sequence[Any], execution: str
) -> ExpertBank:
    """Builds given experts and returns their bank.

    Args:
        experts: The experts.
        inputs: The input specs that all share, or of each.
        execution: `"auto"`, `"loop"` or `"stacked"`.
    """
    for position, expert in enumerate(experts):
        if not expert.built:
            output_specs(expert, inputs[0 if len(inputs) == 1 else position])
    bank = ExpertBank.of_experts(experts, stack=execution != "loop")
    if execution == "stacked" and len(bank.groups) == len(experts) > 1:
        shared = "it shares variables with another"
        reasons = {
            why_alone(expert)
            or (shared if shares_variables(expert, experts) else "its architecture differs")
            for expert in experts
        }
        warnings.warn(
            f"execution='stacked' found no experts to stack: {'; '.join(sorted(reasons))}. "
            "They run one after another.",
            stacklevel=4,
        )
    return bank


def bank_of_template(
    template: keras.layers.Layer, num_experts: int, inputs: Sequence[Any], execution: str
) -> ExpertBank:
    """Makes fresh experts of a template and returns their bank.

    Args:
        template: A Keras model or layer; it is left as it is.
        num_experts: Number of experts, `e`.
        inputs: The input specs that all share, or of each.
        execution: `"auto"`, `"loop"` or `"stacked"`.
    """
    with recorded_initializers() as initializers:
        scaffold = copy_of(template)
        if not scaffold.built:
            output_specs(scaffold, inputs[0])
    alone = why_alone(scaffold)
    if execution != "loop" and alone is None:
        return ExpertBank.of_template(scaffold, initializers, num_experts)
    if execution != "loop":
        warnings.warn(
            f"The experts made of {template.name!r} run one after another: {alone}.", stacklevel=4
        )
    experts = [scaffold, *(copy_of(template, offset) for offset in range(1, num_experts))]
    return bank_of_list(experts, inputs, "loop")
