"""Compiled functions that eager calls keep, so that no call traces and compiles again."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import keras
from keras import ops, tree

from plait.experts.watch import Watch
from plait.ops import backend
from plait.typing import Nested

Result = TypeVar("Result")
# Each holds a compiled function for inputs of one shape.
LIMIT = 32


class KeptCalls:
    """Compiled functions by the kind of their call; of more than `LIMIT`, the oldest is dropped.

    Only calls with values compile: inside a compiled step, and where the backend does not compile,
    functions run as they are. A function that cannot be traced runs as it is, too.

    Args:
        layers: Once an attribute of one of these layers has changed, functions compile anew.
    """

    def __init__(self, layers: Sequence[keras.layers.Layer] = ()) -> None:
        self._layers = layers
        self._watch = Watch()
        self._compiled: dict[Hashable, Callable[..., Nested] | None] = {}

    def __reduce__(self) -> tuple[type["KeptCalls"], tuple[Sequence[keras.layers.Layer]]]:
        """Returns a copy without functions: they hold the layers of the one that is copied."""
        return KeptCalls, (self._layers,)

    def clear(self) -> None:
        """Drops all functions."""
        self._compiled.clear()

    def run(
        self,
        key: Hashable,
        variables: Sequence[keras.Variable],
        function: Callable[..., Result],
        *args: Nested,
    ) -> Result:
        """Returns `function(*args)`.

        Args:
            key: All that `function` depends on besides its arguments and the variables' values.
            variables: The variables that it reads or assigns.
            function: Maps structures of tensors to a structure of tensors and `None`. It calls
                layers with a scope of their own for losses.
            *args: Structures of tensors and `None`.
        """
        if backend.compiled is None:
            return function(*args)
        leaves = [leaf for leaf in tree.flatten(args) if leaf is not None]
        values = [variable.value for variable in variables]
        if not backend.calls_are_eager([*leaves, *values]):
            return function(*args)
        if self._layers and self._watch.changed(self._layers):
            self.clear()
        kinds = tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves)
        key = (key, kinds, keras.config.floatx())
        if key not in self._compiled:
            self._compiled[key] = backend.compiled(_pure(function, variables))
        compiled = self._compiled[key] = self._compiled.pop(key)  # the last used comes last
        if len(self._compiled) > LIMIT:
            del self._compiled[next(iter(self._compiled))]
        if compiled is None:
            return function(*args)
        try:
            result, updates = compiled(list(map(ops.convert_to_tensor, values)), *args)
        except Exception as error:
            if not backend.refuses(error):
                raise
            self._compiled[key] = None
            return function(*args)
        for position, value in updates.items():
            variables[int(position)].assign(value)
        return result


def _pure(
    function: Callable[..., Nested], variables: Sequence[keras.Variable]
) -> Callable[..., tuple[Nested, dict[str, Nested]]]:
    """Returns a function of the variables' values too, which also returns what is assigned."""

    def pure(values: Nested, *args: Nested) -> tuple[Nested, dict[str, Nested]]:
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping, initialize_variables=False) as scope:
            before = [scope.get_current_value(variable) for variable in variables]
            result = function(*args)
        after = map(scope.get_current_value, variables)
        pairs = enumerate(zip(before, after, strict=True))
        return result, {str(position): new for position, (old, new) in pairs if new is not old}

    return pure
