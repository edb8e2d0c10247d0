"""The one place that knows backends apart.

Each module beside this one spells the same functions in its own language. Everything else in
plait is written on `keras.ops` and on these:

- `vectorized_map`: one call for all experts;
- `unstack`: slices whose gradient is one stack;
- `forget_gradients`: before a step, of variables that PyTorch's own sweep cannot tell apart;
- `keep_gradient`: what has no gradient where an expert was not used;
- `loops_are_faster`: whether a loop over experts beats one vectorised call;
- `outside_of_graphs`: where a layer that is first called in a trace is built;
- `take_rows`: rows by number, with a gradient that gathers too;
- `map_choices(function, variables, leaves, choices, vectorized)`: each expert on the rows that
  chose it, whatever the load. `function` maps `(variables_of_one_expert, rows, segment)` to a list
  of tensors `(r, …)`; `variables` is a list of tensors `(e, …)`, `leaves` of tensors `(n, …)`, the
  result a list of tensors `(n * k, …)`, with zeros where nobody was chosen. `vectorized` tells
  whether one call may run several experts.
"""

import importlib

import keras

from plait.ops.backend.structure import Choices, inside, is_float, vectorized_map_with

_name = keras.config.backend()
_native = importlib.import_module(
    f"plait.ops.backend.{_name if _name in ('jax', 'tensorflow', 'torch') else 'numpy'}"
)
forget_gradients = _native.forget_gradients
keep_gradient = _native.keep_gradient
loops_are_faster = _native.loops_are_faster
map_choices = _native.map_choices
outside_of_graphs = _native.outside_of_graphs
take_rows = _native.take_rows
unstack = _native.unstack

__all__ = [
    "Choices",
    "compiles_loads",
    "forget_gradients",
    "is_float",
    "keep_gradient",
    "loads_are_known",
    "loops_are_faster",
    "map_choices",
    "outside_of_graphs",
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


def compiles_loads():
    """Whether `jit_compile=True` takes loops over rows of dynamic number.

    XLA on TensorFlow wants every shape; JAX is given padded segments, PyTorch does not compile.

    Returns:
        A boolean.
    """
    return keras.config.backend() != "tensorflow"
