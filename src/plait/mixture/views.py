"""Missing views: which experts have their input in which rows, and the values that replace it."""

from typing import NamedTuple

import keras
from keras import ops, tree

from plait.errors import message
from plait.mixture.inputs import Selector, select, select_each
from plait.ops.backend import is_float
from plait.ops.presence import rows_present, zero_missing
from plait.typing import Nested, Shapes, Tensor

NOT_NAN = "not_nan"


class Views(NamedTuple):
    """The inputs of a mixture, some of whose views may be missing.

    Attributes:
        inputs: As given, with zeros in the rows in which a view is missing.
        present: bool `(b, e)`, or `None` where no view is missing.
    """

    inputs: Nested
    present: Tensor


def look(inputs: Nested, present: Selector, selectors: list[Selector], num_experts: int) -> Views:
    """Returns the inputs with missing rows set to zero, and which experts have their input.

    Args:
        inputs: Tensor or structure of tensors.
        present: `None`, `"not_nan"`, or the selector of the mask `(b, e)` among the inputs.
        selectors: Selectors of the inputs that the experts read: one for all, or one for each.
        num_experts: Number of experts, `e`.
    """
    if present is None:
        return Views(inputs, None)
    leaves = tree.flatten(inputs)
    read = [
        {id(leaf) for leaf in tree.flatten(part)}
        for part in _for_each(select_each(inputs, selectors), num_experts)
    ]
    if present == NOT_NAN:
        rows = {id(leaf): rows_present(leaf) for leaf in leaves if is_float(leaf)}
        every = ops.ones((ops.shape(leaves[0])[0],), "bool")
        columns = []
        for mine in read:
            column = every
            for key, there in rows.items():
                column = ops.logical_and(column, there) if key in mine else column
            columns.append(column)
        mask = ops.stack(columns, axis=-1)
    else:
        mask = ops.cast(select(inputs, present, "`present`"), "bool")
        rows = {}
        for leaf in leaves:
            readers = [expert for expert, mine in enumerate(read) if id(leaf) in mine]
            if readers:
                there = [mask[:, expert] for expert in readers]
                rows[id(leaf)] = ops.any(ops.stack(there), axis=0)
    filled = [
        zero_missing(leaf, rows[id(leaf)]) if id(leaf) in rows and is_float(leaf) else leaf
        for leaf in leaves
    ]
    return Views(tree.pack_sequence_as(inputs, filled), mask)


def check_present(
    specs: Nested, present: Selector, selectors: list[Selector], num_experts: int
) -> None:
    """Checks that `present` can mark the views of single experts as missing.

    Args:
        specs: Symbolic inputs.
        present: See `look`.
        selectors: See `look`.
        num_experts: See `look`.

    Raises:
        ValueError: If the mask is not of shape `(b, e)`, or NaN is to mark missing views, and
            all experts read one input.
    """
    if present is None:
        return
    if present == NOT_NAN:
        if len(selectors) == 1 and num_experts > 1:
            raise ValueError(
                message(
                    f"`present={NOT_NAN!r}` asks which view is missing, so each expert must read "
                    "one of its own",
                    f"expert_inputs={selectors[0]!r} for all experts",
                    "Name what each expert reads in `expert_inputs`",
                )
            )
        return
    spec = select(specs, present, "`present`")
    if not isinstance(spec, keras.KerasTensor) or tuple(spec.shape[1:]) != (num_experts,):
        given = tree.map_structure(lambda leaf: str(tuple(leaf.shape)), spec)
        raise ValueError(
            message(
                f"The mask that `present` names must have shape (b, {num_experts}), one number "
                "for each expert",
                f"present={present!r} of shape {given}",
                "Use 1 where the view of an expert is there and 0 where it is missing",
            )
        )


def with_missing(inputs: Nested, shapes: Shapes, present: Selector) -> Nested:
    """Returns inputs in which views that are `None` are rows of NaN.

    Args:
        inputs: Structure of tensors, some of them `None`.
        shapes: Structure of their shapes, once the mixture is built, or `None`.
        present: See `look`.

    Raises:
        ValueError: If `present` is not `"not_nan"`, the mixture is not built, or all inputs are
            `None`.
    """
    if present != NOT_NAN or shapes is None:
        raise ValueError(
            message(
                f"An input may be None in a mixture with present={NOT_NAN!r} that is built",
                f"an input that is None, present={present!r}, "
                f"a mixture that is {'not ' if shapes is None else ''}built",
                f"Make it with present={NOT_NAN!r} and call `build`, or pass rows of NaN",
            )
        )
    there = [leaf for leaf in tree.flatten(inputs) if leaf is not None]
    if not there:
        raise ValueError(
            message(
                "One view at least must be there, to say how many rows there are",
                "inputs that are all None",
                "Pass one of them as rows of NaN",
            )
        )
    return _filled(inputs, shapes, ops.shape(there[0])[0])


def _filled(inputs: Nested, shapes: Shapes, rows: int) -> Nested:
    if isinstance(inputs, dict):
        return {key: _filled(value, shapes[key], rows) for key, value in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        parts = zip(inputs, shapes, strict=True)
        return type(inputs)([_filled(value, shape, rows) for value, shape in parts])
    if inputs is not None:
        return inputs
    return ops.full((rows, *(size or 1 for size in shapes[1:])), float("nan"))


def _for_each(fed: list[Nested], num_experts: int) -> list[Nested]:
    return fed * num_experts if len(fed) == 1 else fed
