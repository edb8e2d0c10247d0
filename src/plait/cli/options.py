"""Checks that need nothing but the options themselves, so that mistakes show at once."""

import pathlib
from collections.abc import Sequence

from plait.errors import choose_from, message
from plait.tables.output import check_output

GATES = ("linear", "mlp", "constant")
BLENDING_GATES = (*GATES, "uniform", "free", "per-class", "auto")


def check_gate(gate: str, known: Sequence[str] = GATES) -> None:
    """Raises unless the gate is known."""
    if gate not in known:
        raise ValueError(choose_from("--gate", gate, known))


def check_at_least(option: str, value: int, least: int) -> None:
    """Raises unless a number is large enough."""
    if value < least:
        raise ValueError(
            message(
                f"`{option}` must be at least {least}", str(value), f"Use {option} {least} or more"
            )
        )


def check_outputs(
    model: pathlib.Path, report: pathlib.Path | None, inputs: Sequence[pathlib.Path | None]
) -> None:
    """Raises unless model and report can be written without overwriting what is read."""
    check_output(model, ".keras")
    if report is not None:
        check_output(report, ".html")
    for path in inputs:
        check_not_input(model, path)


def check_not_input(output: pathlib.Path, given: pathlib.Path | None) -> None:
    """Raises if an output would overwrite an input."""
    if given is not None and given.exists() and output.exists() and output.samefile(given):
        raise ValueError(
            message(
                "An output must not overwrite an input",
                f"{str(output)!r} as both",
                "Choose another name",
            )
        )


__all__ = [
    "BLENDING_GATES",
    "GATES",
    "check_at_least",
    "check_gate",
    "check_not_input",
    "check_outputs",
]
