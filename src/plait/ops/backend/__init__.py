"""The one place that differs between backends.

Each module beside this one implements the same functions for its backend. Everything else in plait
is written on `keras.ops` and on these:

- `vectorized_map`: one call for all experts;
- `refuses`: whether an exception says that the backend cannot vectorise a function;
- `maps_seeds`: whether a vectorised call may have a seed for each expert, or one for all;
- `draws_like_loops`: whether a vectorised call draws the random numbers that single calls draw;
- `stacking_pays`: whether stacking the values of all experts in a call beats single calls;
- `SHAPE_ERRORS`: what a layer raises for an input of a shape that it does not take;
- `unstack`: slices whose gradient is one stack;
- `calls_are_eager`, `compiled`: whether a call runs at once, and how one is compiled (or `None`);
- `clear_gradients`: clears gradients that Keras leaves on PyTorch;
- `keep_gradient`: sets the gradient to zero where an expert was not used;
- `loops_are_faster`: whether a loop over experts beats one vectorised call;
- `on_devices`: one function on every device of a mesh, each with its rows and experts, or `None`;
- `outside_of_graphs`: where a layer that is first called in a trace is built;
- `export_options`, `export_tracings`, `format_on_the_way`: how files of other runtimes are made;
- `take_rows`: rows by number, with a gradient that gathers too;
- `map_choices(groups, leaves, choices)`: each expert on the rows that chose it, whatever the load:
  `leaves` is a list of tensors `(n, …)`, the result a list of tensors `(n * k, …)`, with zeros in
  empty slots.
"""

import importlib

import keras

from plait.ops.backend.common import (
    Choices,
    Devices,
    Flat,
    Group,
    inside,
    is_float,
    numbered,
    vectorized_map_with,
)
from plait.ops.backend.export import export_options, export_tracings, format_on_the_way

_name = keras.config.backend()
_native = importlib.import_module(
    f"plait.ops.backend.{_name if _name in ('jax', 'tensorflow', 'torch') else 'numpy'}"
)
SHAPE_ERRORS = _native.SHAPE_ERRORS
draws_like_loops = _native.draws_like_loops
calls_are_eager = _native.calls_are_eager
clear_gradients = _native.clear_gradients
compiled = _native.compiled
keep_gradient = _native.keep_gradient
loops_are_faster = _native.loops_are_faster
map_choices = _native.map_choices
maps_seeds = _native.maps_seeds
on_devices = _native.on_devices
outside_of_graphs = _native.outside_of_graphs
refuses = _native.refuses
stacking_pays = _native.stacking_pays
take_rows = _native.take_rows
unstack = _native.unstack

__all__ = [
    "SHAPE_ERRORS",
    "Choices",
    "Devices",
    "Flat",
    "Group",
    "calls_are_eager",
    "clear_gradients",
    "compiled",
    "compiles",
    "draws_like_loops",
    "export_options",
    "export_tracings",
    "format_on_the_way",
    "is_float",
    "is_vectorizing",
    "keep_gradient",
    "loads_are_known",
    "loops_are_faster",
    "map_choices",
    "maps_seeds",
    "numbered",
    "on_devices",
    "outside_of_graphs",
    "refuses",
    "stacking_pays",
    "take_rows",
    "unstack",
    "vectorized_map",
]


def vectorized_map(function, mapped, shared=None):
    """Calls a function of one expert for all experts at once.

    `out[l] = function(mapped[l], shared)`, computed as one batched call rather than as `e` calls.

    Args:
        function: Maps `(mapped_of_one_expert, shared)` to a structure of tensors. `None` leaves
            pass through.
        mapped: Structure (lists, tuples, dicts) of tensors `(e, …)`, split along the first axis.
        shared: Structure passed whole to every call.

    Returns:
        The structure that `function` returns, each leaf with a leading `e` axis, also where it
        does not depend on `mapped`. Random numbers drawn by the backend's own global generator
        differ between experts.

    Example:
    ```python
    >>> import keras
    >>> from plait.ops.backend import vectorized_map
    >>> kernels = [keras.ops.ones((3, 4, 2))]
    >>> y = vectorized_map(lambda w, x: keras.ops.matmul(x, w[0]), kernels, keras.ops.ones((5, 4)))
    >>> tuple(y.shape)
    (3, 5, 2)

    ```
    """
    return vectorized_map_with(_native.vectorize, function, mapped, shared)


def loads_are_known():
    """Whether a loop may depend on values, and hence on how many rows chose which expert.

    Inside `vectorized_map`, PyTorch and TensorFlow have no such loops.

    Returns:
        A boolean.
    """
    return keras.config.backend() in ("jax", "numpy") or not inside.get()


def is_vectorizing():
    """Whether the call is part of a vectorised one.

    Returns:
        A boolean.
    """
    return inside.get()


def compiles(dispatches):
    """Whether `jit_compile=True` takes a mixture.

    XLA on TensorFlow wants every shape, and dispatched experts have rows of dynamic number. The
    compiler of PyTorch takes minutes for the Python of a few experts.

    Args:
        dispatches: Whether experts run on the rows that chose them alone.

    Returns:
        A boolean.
    """
    name = keras.config.backend()
    return name != "torch" and not (name == "tensorflow" and dispatches)
