"""The one rule of ranks, and walking over structures of shapes."""

from typing import Any

Shape = tuple[int | None, ...]


def is_shape(value: object) -> bool:
    """Whether `value` is one shape: a tuple or list of integers and `None`."""
    return isinstance(value, (tuple, list)) and all(
        size is None or isinstance(size, int) for size in value
    )


def shape_leaves(shapes: Any) -> list[Shape]:
    """Returns the shapes in a structure of lists, tuples and dicts, in Keras' order.

    Example:
    >>> from plait.ops.shapes import shape_leaves
    >>> shape_leaves({"b": (None, 2), "a": [(None, 3), (None, 4)]})
    [(None, 3), (None, 4), (None, 2)]
    """
    if is_shape(shapes):
        return [tuple(shapes)]
    children = [shapes[key] for key in sorted(shapes)] if isinstance(shapes, dict) else list(shapes)
    return [leaf for child in children for leaf in shape_leaves(child)]


def map_shapes(function: Any, shapes: Any) -> Any:
    """Returns the structure of `shapes` with `function` applied to each shape."""
    if is_shape(shapes):
        return function(tuple(shapes))
    if isinstance(shapes, dict):
        return {key: map_shapes(function, child) for key, child in shapes.items()}
    return type(shapes)(map_shapes(function, child) for child in shapes)


def agree(left: Shape, right: Shape) -> bool:
    """Whether two shapes may be one: equal rank, and equal sizes where both are known."""
    return len(left) == len(right) and all(
        a is None or b is None or a == b for a, b in zip(left, right, strict=True)
    )


def merge(left: Shape, right: Shape) -> Shape:
    """Returns the shape with each size that is known in either of two agreeing shapes."""
    return tuple(b if a is None else a for a, b in zip(left, right, strict=True))


def follows_rank_rule(weights: Shape, output: Shape) -> bool:
    """Whether the leading axes of the weights are a prefix of an expert's output shape.

    Weights `(b, e)` over outputs `(b, u)` weigh per example, `(b, t, e)` over `(b, t, u)` per
    time step, `(b, e)` over `(b, h, w, u)` per image, `(b, u, e)` over `(b, u)` per class.

    Example:
    >>> from plait.ops.shapes import follows_rank_rule
    >>> follows_rank_rule((None, 3), (None, 7)), follows_rank_rule((None, 5, 3), (None, 7))
    (True, False)
    """
    routed = weights[:-1]
    return len(routed) <= len(output) and agree(routed, output[: len(routed)])
