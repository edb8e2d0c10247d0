"""Where the values of experts that share a call live: in stacked variables, or in the experts'."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
from keras import ops

from plait.compat import flat_layers
from plait.errors import message
from plait.experts.initialization import stack_many
from plait.ops.backend import unstack, vectorized_map
from plait.typing import Shapes, Tensor


class ExpertVariables(Protocol):
    """The variables of `e` experts of one architecture, read and written as `(e, …)`."""

    num_experts: int

    def state(self) -> list[keras.Variable]:
        """Returns the variables themselves."""

    def read(self) -> list[Tensor]:
        """Returns a tensor `(e, …)` for each variable of one expert."""

    def read_one(self, expert: int) -> list[Tensor]:
        """Returns the values of one expert's variables."""

    def write(self, position: int, value: Tensor) -> None:
        """Assigns a tensor `(e, …)` to the variables at one position."""

    def write_one(self, expert: int, values: Sequence[Tensor]) -> None:
        """Assigns a value to each variable of one expert."""


class SharedVariables:
    """The variables of experts that the caller owns, stacked within each call.

    Args:
        experts: Built experts of one architecture.
    """

    def __init__(self, experts: Sequence[keras.layers.Layer]) -> None:
        self.num_experts = len(experts)
        self.of_expert = [list(expert.variables) for expert in experts]
        self.at_position = list(zip(*self.of_expert, strict=True))

    def state(self) -> list[keras.Variable]:
        """Returns the variables themselves."""
        return [variable for column in self.of_expert for variable in column]

    def read(self) -> list[Tensor]:
        """Returns a tensor `(e, …)` for each variable of one expert."""
        return [stack_many([v.value for v in column]) for column in self.at_position]

    def read_one(self, expert: int) -> list[Tensor]:
        """Returns the values of one expert's variables."""
        return [variable.value for variable in self.of_expert[expert]]

    def write(self, position: int, value: Tensor) -> None:
        """Assigns a tensor `(e, …)` to the variables at one position."""
        for variable, one in zip(self.at_position[position], unstack(value), strict=True):
            variable.assign(one)

    def write_one(self, expert: int, values: Sequence[Tensor]) -> None:
        """Assigns a value to each variable of one expert."""
        for variable, value in zip(self.of_expert[expert], values, strict=True):
            variable.assign(value)


class StackedRegularizer(keras.Regularizer):
    """Sums a regulariser over the experts: `Σ_l regularizer(w[l])`, each on its own slice."""

    def __init__(self, regularizer: Callable[[Tensor], Tensor]) -> None:
        self.regularizer = regularizer

    def __call__(self, x: Tensor) -> Tensor:
        """Returns a scalar for a variable of shape `(e, …)`."""
        return ops.sum(vectorized_map(lambda one, _: self.regularizer(one), x))


class StackedConstraint(keras.constraints.Constraint):
    """Applies a constraint to each expert's slice on its own."""

    def __init__(self, constraint: Callable[[Tensor], Tensor]) -> None:
        self.constraint = constraint

    def __call__(self, w: Tensor) -> Tensor:
        """Returns the constrained values of a variable of shape `(e, …)`."""
        return vectorized_map(lambda one, _: self.constraint(one), w)


class StackedExperts(keras.layers.Layer):
    """Owns the variables of `e` experts of one architecture, stacked along a leading axis.

    Args:
        template: A built expert, of which only the shapes and flags of the variables are read.
        num_experts: Number of experts, `e`.
        initial: Returns the first value `(e, …)` of the variable at a position.
        name: Name of the layer.
    """

    def __init__(
        self,
        template: keras.layers.Layer,
        num_experts: int,
        initial: Callable[[int], Tensor],
        name: str,
    ) -> None:
        # Layers of the experts cast to their own dtypes; the stack must not round their variables.
        # TensorFlow takes paths in plain letters alone: the name to be shown comes after `build`.
        path = re.sub(r"[^\w./-]+", "_", name, flags=re.ASCII)
        super().__init__(name=path, autocast=False, dtype="float32")
        self.shown_name = name
        self.num_experts = num_experts
        self.owners: list[keras.layers.Layer] = []
        self._make = _Making(template, initial)

    def build(self, input_shape: Shapes) -> None:
        """Creates the stacked variables.

        Args:
            input_shape: Shape of one expert's input, for summaries.
        """
        del input_shape
        template = self._make.template
        trained = {id(variable) for variable in template.trainable_variables}
        trainable = _once_released(template)
        owners: dict[str, _Owner] = {}
        stacked = []
        for position, variable in enumerate(template.variables):
            owner = _owner_of(variable, owners)
            regularizer = getattr(variable, "regularizer", None)
            constraint = getattr(variable, "constraint", None)
            stack = owner.add_weight(
                shape=(self.num_experts, *variable.shape),
                initializer=_at(self._make.initial, position),
                dtype=variable.dtype,
                trainable=id(variable) in trainable,
                autocast=False,
                regularizer=None if regularizer is None else StackedRegularizer(regularizer),
                constraint=None if constraint is None else StackedConstraint(constraint),
                name=variable.name,
            )
            if id(variable) in trainable and id(variable) not in trained:
                stack.trainable = False  # frozen, to be released with the mixture
            stacked.append(stack)
        self.owners = list(owners.values())
        self._make.stacked = stacked
        self.name = self.shown_name

    @property
    def trainable(self) -> bool:
        """Whether the experts are trained; what is set holds for each of their layers."""
        return bool(super().trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        # Batch norm asks its layer. Each: TensorFlow passes nothing on from one that is True.
        for layer in [*self.owners, *flat_layers(self._make.template)]:
            layer.trainable = value

    def compute_output_shape(self, input_shape: Shapes) -> Shapes:
        """Returns the shape of one expert's output."""
        return self._make.template.compute_output_shape(input_shape)

    def state(self) -> list[keras.Variable]:
        """Returns the variables themselves."""
        return self._make.stacked

    def read(self) -> list[Tensor]:
        """Returns a tensor `(e, …)` for each variable of one expert."""
        # State is read as a copy: PyTorch would refuse the gradient of a view that is assigned to.
        return [v.value if v.trainable else ops.copy(v.value) for v in self._make.stacked]

    def read_one(self, expert: int) -> list[Tensor]:
        """Returns the values of one expert's variables."""
        return [variable.value[expert] for variable in self._make.stacked]

    def write(self, position: int, value: Tensor) -> None:
        """Assigns a tensor `(e, …)` to the variable at one position."""
        self._make.stacked[position].assign(value)

    def write_one(self, expert: int, values: Sequence[Tensor]) -> None:
        """Assigns a value to each variable of one expert."""
        for variable, value in zip(self._make.stacked, values, strict=True):
            index = ops.convert_to_tensor([[expert]], dtype="int32")
            update = ops.cast(ops.convert_to_tensor(value), variable.dtype)[None]
            variable.assign(ops.scatter_update(variable.value, index, update))

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Says that stacked variables are not quantised."""
        del args, kwargs
        raise _unsupported(self, "quantize")

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Says that stacked variables take no low-rank update."""
        del args, kwargs
        raise _unsupported(self, "enable_lora")

    def get_config(self) -> dict[str, Any]:
        """Says that the mixture makes its stacks from its own config."""
        raise NotImplementedError(f"{self.name!r} is made by the mixture that it belongs to.")


class _Owner(keras.layers.Layer):
    """Owns the stacked variables of one inner layer, under that layer's name."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, autocast=False, dtype="float32")
        self.built = True


def _owner_of(variable: keras.Variable, owners: dict[str, _Owner]) -> _Owner:
    """Returns the owner for a variable; variables of one path have different owners."""
    name = "_".join(variable.path.split("/")[:-1]) or "expert"
    while name in owners and variable.name in {v.name for v in owners[name].variables}:
        name = f"{name}_"
    return owners.setdefault(name, _Owner(name))


def _once_released(layer: keras.layers.Layer) -> set[int]:
    """Returns by `id` the variables that would be trained if no layer were frozen."""
    layers, variables = flat_layers(layer), layer.variables
    of_layers = [inner.trainable for inner in layers]
    of_variables = [variable.trainable for variable in variables]
    for inner in layers:  # each: TensorFlow passes nothing on from one that is True
        inner.trainable = True
    released = {id(variable) for variable in layer.trainable_variables}
    for inner, flag in zip(layers, of_layers, strict=True):
        if inner.trainable != flag:  # setting one sets every layer within
            inner.trainable = flag
    for variable, flag in zip(variables, of_variables, strict=True):
        variable.trainable = flag
    return released


class _Making:
    """What a stack is made of; Keras does not look into it."""

    def __init__(self, template: keras.layers.Layer, initial: Callable[[int], Tensor]) -> None:
        self.template = template
        self.initial = initial
        self.stacked: list[keras.Variable] = []


def _at(initial: Callable[[int], Tensor], position: int) -> Callable[..., Tensor]:
    """Returns an initialiser that gives the first values of the variable at one position."""
    return lambda shape, dtype=None: ops.convert_to_tensor(initial(position), dtype=dtype)


def _unsupported(stack: StackedExperts, method: str) -> ValueError:
    return ValueError(
        message(
            f"`{method}` changes the layers of single experts, but stacked experts have their "
            "variables in common",
            f"{method}() on the stack {stack.name!r}",
            "Pass the experts as a list without `copy_experts`, such as "
            "[mix.expert(i) for i in range(mix.num_experts)], and call it on them",
        )
    )
