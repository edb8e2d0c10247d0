"""Which part of a structured input each expert and the gate read, by name or position."""

from collections.abc import Sequence
from typing import TypeAlias

from plait.errors import message
from plait.typing import Nested

Selector: TypeAlias = (
    str | int | tuple[str | int, ...] | list["Selector"] | dict[str, "Selector"] | None
)
"""`None` for the whole input; a key or position; a path of these; a list or dict of any of them."""


def selectors(expert_inputs: Selector, num_experts: int) -> list[Selector]:
    """Returns one selector that all experts share, or one for each of them.

    Args:
        expert_inputs: `None`, a key, a position, a path or a dict for all experts; or a list with
            one of these, or a list of these, for each expert.
        num_experts: Number of experts, `e`.

    Raises:
        ValueError: If a list has not one entry per expert.
    """
    if not isinstance(expert_inputs, list):
        return [expert_inputs]
    if len(expert_inputs) != num_experts:
        raise ValueError(
            message(
                f"`expert_inputs` must have one entry for each of the {num_experts} experts",
                f"{len(expert_inputs)} entries: {expert_inputs!r}",
                "Name a key or position for each expert, or one for all of them",
            )
        )
    first = expert_inputs[0]
    return [first] if all(entry == first for entry in expert_inputs) else expert_inputs


def select(inputs: Nested, selector: Selector, reader: str) -> Nested:
    """Returns the part of a structured input that a selector names.

    Args:
        inputs: A tensor or a structure of tensors.
        selector: `None` for the whole input; a key or a position; a tuple of these, which is a
            path into a nested input; or a list or dict of any of these, which gives a list or dict.
        reader: What reads it, for the error text.

    Raises:
        ValueError: If the input has no such key or position.

    Example:
    >>> from plait.mixture.inputs import select
    >>> select({"image": 1, "text": {"title": 2, "body": 3}}, ("text", "body"), "expert 0")
    3
    >>> select([10, 20, 30], [2, 0], "the gate")
    [30, 10]
    >>> select([10, 20, 30], {"left": 2, "right": 0}, "the gate")
    {'left': 30, 'right': 10}
    """
    if selector is None:
        return inputs
    if isinstance(selector, dict):
        return {key: select(inputs, part, reader) for key, part in selector.items()}
    if isinstance(selector, list):
        return [select(inputs, part, reader) for part in selector]
    part = inputs
    for key in selector if isinstance(selector, tuple) else (selector,):
        part = _item(part, key, reader)
    return part


def _item(inputs: Nested, key: str | int, reader: str) -> Nested:
    if isinstance(inputs, dict):
        known = sorted(inputs, key=str)
        if key in inputs:
            return inputs[key]
        what = f"the keys {', '.join(map(repr, known))}"
        remedy = "Name one of these keys"
    elif isinstance(inputs, (list, tuple)):
        if isinstance(key, int) and -len(inputs) <= key < len(inputs):
            return inputs[key]
        what = f"{len(inputs)} parts"
        remedy = f"Name a position from 0 to {len(inputs) - 1}"
    else:
        what = "no parts: it is one tensor"
        remedy = "Leave the selector out, or pass a dict or list of inputs"
    raise ValueError(
        message(
            f"The input of {reader} must exist; the mixture's input has {what}", repr(key), remedy
        )
    )


def select_each(inputs: Nested, chosen: Sequence[Selector]) -> list[Nested]:
    """Returns the selected part for each selector; equal selectors give one object."""
    if list(chosen) == [None]:
        return [inputs]
    parts: dict[str, Nested] = {}
    selected = []
    for position, selector in enumerate(chosen):
        key = repr(selector)
        if key not in parts:
            parts[key] = select(inputs, selector, f"expert {position}")
        selected.append(parts[key])
    return selected


def to_config(selector: Selector) -> Nested:
    """Returns a selector in a form that JSON keeps: paths and dicts are marked as such."""
    if isinstance(selector, tuple):
        return {"path": list(selector)}
    if isinstance(selector, dict):
        return {"parts": {key: to_config(part) for key, part in selector.items()}}
    if isinstance(selector, list):
        return [to_config(part) for part in selector]
    return selector


def from_config(config: Nested) -> Selector:
    """Returns the selector that `to_config` was given."""
    if isinstance(config, dict) and "path" in config:
        return tuple(config["path"])
    if isinstance(config, dict):
        return {key: from_config(part) for key, part in config["parts"].items()}
    if isinstance(config, list):
        return [from_config(part) for part in config]
    return config
