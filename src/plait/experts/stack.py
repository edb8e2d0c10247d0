"""Experts of one architecture as one: their variables stacked, their calls vectorised."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops, tree

from plait.errors import message
from plait.experts.fresh import Initializers, fresh_values, is_seed
from plait.experts.rows import CoupledRowsError, advance_seeds, run_chosen
from plait.experts.stateless import call_with
from plait.ops.backend import unstack, vectorized_map


@dataclasses.dataclass
class _Hidden:
    """What Keras must not track: a scaffold's variables are no weights of the stack."""

    scaffold: keras.layers.Layer
    variables: list[keras.Variable]
    seeds: list[bool]
    sources: list[keras.layers.Layer] | None
    initializers: Initializers
    stacked: list[keras.Variable] = dataclasses.field(default_factory=list)
    vectorized: bool = True


class StackedRegularizer(keras.Regularizer):
    """Sums a regulariser over the experts: `Σ_l regularizer(w[l])`, each on its own slice."""

    def __init__(self, regularizer: Callable[[Any], Any]) -> None:
        self.regularizer = regularizer

    def __call__(self, x: Any) -> Any:
        """Returns a scalar for a variable of shape `(e, …)`."""
        return ops.sum(vectorized_map(lambda one, _: self.regularizer(one), x))


class StackedConstraint(keras.constraints.Constraint):
    """Applies a constraint to each expert's slice on its own."""

    def __init__(self, constraint: Callable[[Any], Any]) -> None:
        self.constraint = constraint

    def __call__(self, w: Any) -> Any:
        """Returns the constrained values of a variable of shape `(e, …)`."""
        return vectorized_map(lambda one, _: self.constraint(one), w)


class ExpertStack(keras.layers.Layer):
    """Runs `e` experts of one architecture in one call.

    The variables of all experts lie in one variable each, with a leading expert axis. One expert
    serves as the scaffold: it is called as a pure function of the variables' values.

    Args:
        scaffold: A built expert. Its own variables are read once, then left alone.
        num_experts: Number of experts, `e`.
        sources: The experts whose variables the stack takes over, or `None` for fresh ones.
        initializers: Where the experts are fresh, the initialisers of the scaffold's variables.
        name: Name of the layer.
    """

    def __init__(
        self,
        scaffold: keras.layers.Layer,
        *,
        num_experts: int,
        sources: Sequence[keras.layers.Layer] | None = None,
        initializers: Initializers | None = None,
        name: str,
    ) -> None:
        # The experts' layers cast to their own dtypes; the stack must not round their variables.
        super().__init__(name=name, autocast=False, dtype="float32")
        self.num_experts = num_experts
        self.supports_masking = True
        variables = list(scaffold.variables)
        self._hidden = _Hidden(
            scaffold=scaffold,
            variables=variables,
            seeds=[is_seed(variable) for variable in variables],
            sources=None if sources is None else list(sources),
            initializers=initializers or {},
        )
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates the stacked variables; the scaffold knows its input's shape."""
        del input_shape
        hidden = self._hidden
        trainable = {id(variable) for variable in hidden.scaffold.trainable_variables}
        for position, variable in enumerate(hidden.variables):
            regularizer = getattr(variable, "regularizer", None)
            constraint = getattr(variable, "constraint", None)
            stacked = self.add_weight(
                shape=(self.num_experts, *variable.shape),
                initializer=self._initializer(position),
                dtype=variable.dtype,
                trainable=id(variable) in trainable,
                autocast=False,
                regularizer=None if regularizer is None else StackedRegularizer(regularizer),
                constraint=None if constraint is None else StackedConstraint(constraint),
                name=f"{position}_{variable.name}",
            )
            hidden.stacked.append(stacked)

    def representative(self) -> keras.layers.Layer:
        """Returns the expert that is called in place of all."""
        return self._hidden.scaffold

    def _initializer(self, position: int) -> Callable[..., Any]:
        hidden = self._hidden

        def initialize(shape: Any, dtype: Any = None) -> Any:
            del shape
            if hidden.sources is None:
                variable = hidden.variables[position]
                values = fresh_values(variable, hidden.initializers, self.num_experts)
            else:
                values = ops.stack([source.variables[position].value for source in hidden.sources])
            return ops.convert_to_tensor(values, dtype=dtype)

        return initialize

    def call(self, inputs: Any, masks: Any = None, training: bool = False) -> Any:
        """Runs every expert.

        Args:
            inputs: List of one structure, which all experts share, or of `e` structures.
            masks: List like `inputs` of their masks.
            training: As in Keras.

        Returns:
            The outputs' structure with leaves `(e, b, …, u)`, and a flat list of their masks,
            `(e, b, …)` or `None`.
        """
        hidden = self._hidden
        values = [variable.value for variable in hidden.stacked]
        changed: list[bool] = []

        def run(values: list[Any], inputs: Any, masks: Any) -> Any:
            outcome = call_with(hidden.scaffold, hidden.variables, values, inputs, masks, training)
            changed[:] = outcome.changed
            return outcome.outputs, outcome.masks, outcome.state, outcome.losses

        if len(inputs) == 1:
            shared = (inputs[0], masks[0] if masks else None)
            results = self._for_all(lambda one: run(one, *shared), values)
        else:
            fed = (_stack_each(inputs), _stack_each(masks) if masks else None)
            results = self._for_all(lambda one: run(one[0], *one[1]), (values, fed))
        outputs, output_masks, state, losses = results
        for variable, moved, value in zip(hidden.stacked, changed, state, strict=True):
            if moved:
                variable.assign(value)
        for loss in losses:
            self.add_loss(ops.sum(loss))
        return outputs, output_masks

    def _for_all(self, function: Callable[..., Any], mapped: Any) -> Any:
        """Calls a function of one expert for all experts, vectorised where the backend can.

        Args:
            function: Maps one expert's slices to a structure of tensors and `None`.
            mapped: Structure of tensors `(e, …)` and `None`.
        """
        leaves = tree.flatten(mapped)
        # Their numbers go first, for experts that have no variables: someone must count them.
        numbers = ops.arange(self.num_experts, dtype="int32")
        present = [numbers, *(leaf for leaf in leaves if leaf is not None)]

        def of_one(slices: Any, _: Any = None) -> Any:
            given = iter(slices[1:])
            filled = [None if leaf is None else next(given) for leaf in leaves]
            return function(tree.pack_sequence_as(mapped, filled))

        def one_by_one() -> Any:
            columns = [unstack(leaf) for leaf in present]
            return _stack_each([of_one(one) for one in zip(*columns, strict=True)])

        return self._vectorized_if_possible(
            lambda vectorized: vectorized_map(of_one, present) if vectorized else one_by_one()
        )

    def _vectorized_if_possible(self, run: Callable[[bool], Any]) -> Any:
        """Returns `run(True)`, or `run(False)` where the backend cannot vectorise the experts."""
        hidden = self._hidden
        if not hidden.vectorized:
            return run(False)
        try:
            return run(True)
        except CoupledRowsError:
            raise
        except Exception as error:  # backends refuse in many ways; the loop shows a real fault
            results = run(False)
            hidden.vectorized = False
            reason = (str(error).splitlines() or [""])[0]
            warnings.warn(
                f"The experts of {self.name!r} run one after another: the backend cannot "
                f"vectorise them ({type(error).__name__}: {reason}).",
                stacklevel=3,
            )
            return results

    def run_chosen(
        self, rows: Any, masks: Any, indices: Any, capacity: int | None, training: bool
    ) -> tuple[Any, list[Any]]:
        """Runs each expert on the rows that chose it; see `plait.experts.rows.run_chosen`."""
        hidden = self._hidden
        values = [variable.value for variable in hidden.stacked]
        results = self._vectorized_if_possible(
            lambda vectorized: run_chosen(
                hidden.scaffold,
                hidden.variables,
                values,
                rows,
                masks,
                indices,
                num_experts=self.num_experts,
                capacity=capacity,
                training=training,
                vectorized=vectorized,
            )
        )
        if training:
            advance_seeds(hidden.stacked, hidden.seeds)
        return results

    def run_one_chosen(
        self, expert: int, rows: Any, masks: Any, indices: Any, training: bool
    ) -> tuple[Any, list[Any]]:
        """As `run_chosen` for one expert, where experts read different inputs."""
        hidden = self._hidden
        results = run_chosen(
            hidden.scaffold,
            hidden.variables,
            [unstack(variable.value)[expert][None] for variable in hidden.stacked],
            rows,
            masks,
            indices,
            num_experts=1,
            capacity=None,
            training=training,
            vectorized=False,
        )
        if training:
            advance_seeds(hidden.stacked, hidden.seeds)
        return results

    def only(self, expert: int) -> "_OneOfStack":
        """Returns what runs one expert of the stack, where experts read different inputs."""
        return _OneOfStack(self, expert)

    def follow(self, sources: Sequence[keras.layers.Layer]) -> None:
        """Makes each variable trainable where it is in all experts that it was stacked of."""
        flags = [
            [id(variable) in trainable for variable in source.variables]
            for source in sources
            for trainable in [{id(variable) for variable in source.trainable_variables}]
        ]
        for stacked, column in zip(self._hidden.stacked, zip(*flags, strict=True), strict=True):
            if len(set(column)) > 1:
                frozen = [s.name for s, flag in zip(sources, column, strict=True) if not flag]
                raise ValueError(
                    message(
                        "Experts that run stacked must be frozen or trainable together",
                        f"frozen since they were stacked: {', '.join(map(repr, frozen))}",
                        "Freeze experts before the mixture is built, or use execution='loop'",
                    )
                )
            if stacked.trainable != column[0]:
                stacked.trainable = column[0]

    def write_back(self) -> None:
        """Gives the experts that the stack was made of its present values."""
        values = self.stacked_values()
        for expert, source in enumerate(self._hidden.sources or []):
            for variable, value in zip(source.variables, values, strict=True):
                variable.assign(value[expert])

    def set_stacked(self, values: Sequence[Any]) -> None:
        """Sets the stacked variables from arrays of shape `(e, …)`."""
        for variable, value in zip(self._hidden.stacked, values, strict=True):
            variable.assign(value)

    def stacked_values(self) -> list[Any]:
        """Returns the stacked variables as NumPy arrays of shape `(e, …)`."""
        return [ops.convert_to_numpy(variable.value) for variable in self._hidden.stacked]

    def save_own_variables(self, store: Any) -> None:
        """Writes nothing: the mixture writes its experts' variables."""

    def load_own_variables(self, store: Any) -> None:
        """Reads nothing: the mixture reads its experts' variables."""


class _OneOfStack(NamedTuple):
    """Runs one expert of a stack on the rows that chose it."""

    stack: ExpertStack
    expert: int

    def run_chosen(
        self, rows: Any, masks: Any, indices: Any, capacity: int | None, training: bool
    ) -> tuple[Any, list[Any]]:
        """See `ExpertStack.run_chosen`."""
        del capacity  # one expert runs on its rows, however many
        return self.stack.run_one_chosen(self.expert, rows, masks, indices, training)


def _stack_each(structures: Sequence[Any]) -> Any:
    """Returns one structure with leaves `(e, …)` from `e` structures; `None` stays `None`."""
    columns = zip(*(tree.flatten(structure) for structure in structures), strict=True)
    stacked = [None if column[0] is None else ops.stack(column) for column in columns]
    return tree.pack_sequence_as(structures[0], stacked)
