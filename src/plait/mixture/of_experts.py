"""The common base of mixtures with one gate and with several: experts, files, compiling."""

from collections.abc import Sequence
from operator import is_
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops, tree

from plait.compat import is_functional
from plait.mixture import introspection, optimizers, serialization
from plait.mixture.base import BaseModel
from plait.mixture.build import note_namesakes, replaced
from plait.mixture.forward import Fed, Parts, run_every
from plait.mixture.inputs import select_each
from plait.mixture.specs import as_rows, first_of, input_names, specs_of
from plait.mixture.state import MixtureState
from plait.ops.routing import Routing
from plait.ops.shapes import map_shapes
from plait.ops.tracing import runs_every_expert
from plait.typing import Config, Nested, Shapes, Tensor

if TYPE_CHECKING:
    from plait.mixture.with_parts import WithParts


class OfExperts(BaseModel):
    """A Keras model of experts, whose variables are the caller's or its own.

    A subclass sets the attributes, builds the experts in `build`, and returns its other layers from
    `other_layers`.

    Attributes:
        state: Attributes that Keras must not track.
        num_experts: Number of experts, `e`.
        execution: `"auto"`, `"loop"` or `"stacked"`.
        owned_experts: The layers that own the experts' variables, where the model does.
    """

    state: MixtureState
    num_experts: int
    execution: str
    owned_experts: list[keras.layers.Layer]
    experts: Sequence[keras.layers.Layer]

    def other_layers(self) -> Sequence[keras.layers.Layer]:
        """Returns the layers with variables other than the experts, such as gates."""
        raise NotImplementedError(f"{type(self).__name__} must implement `other_layers`.")

    @property
    def is_sparse(self) -> bool:
        """Whether a router gives some experts a weight of zero, so that they need not run."""
        raise NotImplementedError(f"{type(self).__name__} must implement `is_sparse`.")

    @property
    def input(self) -> Nested:
        """The symbolic inputs of the first call, in the structure that it was given.

        Keras counts the mask of a call among its inputs; here it is left out, as it comes along
        with the tensor that it belongs to.
        """
        given = super().input
        return given if self.state.input_shape is None else first_of(given, self.state.input_shape)

    def build_early(self, gates_read_whole: bool) -> None:
        """Builds at once where the first expert has a known input, which all read whole.

        Models whose inputs have the same names in another order, or in a dict beside a list, wait
        for the first call: a dict is paired by name.

        Args:
            gates_read_whole: Whether the gates read all of the input.
        """
        state, first = self.state, self.state.first
        reads_whole = state.selectors == [None] and gates_read_whole
        graph = isinstance(first, keras.Sequential) or is_functional(first)
        if not (reads_whole and graph and first.built):
            return
        inputs = first.inputs[0] if isinstance(first, keras.Sequential) else first.input
        if any(_pairs_by_name(first, other) for other in [*state.given, *self.other_layers()]):
            return
        state.input_dtype = tree.map_structure(lambda spec: spec.dtype, inputs)
        self.build(tree.map_structure(lambda spec: tuple(spec.shape), inputs))

    def __call__(self, inputs: Nested, *args: Any, **kwargs: Any) -> Nested:
        """Calls the mixture; before it is built, stores the inputs' dtypes for `build`."""
        if not self.built:
            self.state.input_dtype = tree.map_structure(
                lambda leaf: keras.backend.standardize_dtype(getattr(leaf, "dtype", "float32")),
                inputs,
            )
        return super().__call__(inputs, *args, **kwargs)

    def check_same_experts(self) -> None:
        """Checks that nobody assigned to the list of experts.

        Raises:
            ValueError: If somebody did: what was built of the old ones would go on with them.
        """
        shared = self.state.ownership == "shared"
        if shared and not all(map(is_, self.experts, self.state.given)):
            raise replaced(self)

    def fed(self, inputs: Nested, mask: Nested) -> Fed:
        """Returns what the experts read, and its masks."""
        chosen = self.state.selectors
        fed = select_each(inputs, chosen)
        if mask is None or all(leaf is None for leaf in tree.flatten(mask)):
            return Fed(fed, None)
        return Fed(fed, [tree.flatten(part) for part in select_each(mask, chosen)])

    def may_dispatch(self, routing: Routing, fed: Fed, training: bool) -> bool:
        """Whether experts run on the rows that chose them alone."""
        state = self.state
        if not state.dispatches or self.needs_parts() or runs_every_expert():
            return False
        rank = len(routing.weights.shape) - 1
        rows = fed.inputs if rank == 1 else [as_rows(part, rank) for part in fed.inputs]
        masks = fed.masks if rank == 1 else None
        if not state.bank.couples_rows(rows, masks, training, with_losses=not self.predicts()):
            return True
        state.warn_once(
            f"The experts of {self.name!r} run on every row where they move batch statistics or "
            "add losses, which depend on the whole batch."
        )
        return False

    def parts_inside(
        self, inputs: Nested, mask: Nested, with_outputs: bool
    ) -> tuple[Tensor, Nested]:
        """Returns the weights, `(b, …, e)`, and the experts' outputs, called within a Keras call.

        Args:
            inputs: As for `call`.
            mask: As for `call`.
            with_outputs: Whether the outputs are computed; if not, they are `None`.

        Returns:
            The weights, and a structure with leaves `(b, …, e, …, u)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `parts_inside`.")

    def parts_specs(self, inputs: Nested) -> tuple[keras.KerasTensor, Nested]:
        """Returns shapes and dtypes of what `parts_inside` gives for symbolic inputs."""
        raise NotImplementedError(f"{type(self).__name__} must implement `parts_specs`.")

    def input_specs(self, input_shape: Shapes) -> Nested:
        """Returns symbolic inputs of given shapes."""
        return specs_of(input_shape, self.state.input_dtype)

    def with_parts(self) -> "WithParts":
        """Returns a model that also returns the weights and the experts' outputs.

        Its outputs are a dict: `"output"`, what this model returns; `"weights"`, as `gate_weights`;
        `"experts"`, as `expert_outputs`. It can be saved, exported, used in a functional model and
        trained, and its variables are those of this model. For a mixture that is a layer of a
        functional model, call it on what the mixture is called on: `mix.with_parts()(mix.input)`.

        Example:
        >>> import keras, plait
        >>> mix = plait.Mixture([keras.layers.Dense(3), keras.layers.Dense(3)], name="moe")
        >>> inputs = keras.Input((4,))
        >>> model = keras.Model(inputs, keras.layers.Softmax()(mix(inputs)))
        >>> inside = keras.Model(model.inputs, mix.with_parts()(mix.input))
        >>> {name: tuple(part.shape) for name, part in inside.output.items()}
        {'output': (None, 3), 'weights': (None, 2), 'experts': (None, 2, 3)}
        """
        from plait.mixture.with_parts import WithParts

        return WithParts(self)

    def outputs_inside(self, routing: Routing, inputs: Nested, mask: Nested) -> Nested:
        """Returns the outputs of every expert for every row, leaves `(b, …, e, …, u)`."""
        outputs = self.every_output(routing, inputs, False, mask).outputs
        routed = len(routing.weights.shape) - 1
        return tree.map_structure(lambda leaf: ops.moveaxis(leaf, 0, routed), outputs)

    def every_output(self, routing: Routing, inputs: Nested, training: bool, mask: Nested) -> Parts:
        """Returns the weights and the outputs of every expert for every row."""
        return self.run_every(routing, self.fed(inputs, mask), training, sparse=False)

    def run_every(self, routing: Routing, fed: Fed, training: bool, sparse: bool) -> Parts:
        """Returns the parts; see `forward.run_every`."""
        bank, by_step = self.state.bank, self.state.dispatches
        return run_every(bank, routing, fed, by_step=by_step, sparse=sparse, training=training)

    def gate_weights(self, x: Any, batch_size: int | None = None) -> np.ndarray:
        """Returns the mixing weights for each example.

        Args:
            x: What `predict` takes.
            batch_size: As in `predict`.

        Returns:
            Array of shape `(b, …, e)`.
        """
        self.check_same_experts()
        return introspection.predict_inside(self, "weights", x, batch_size)

    def expert_outputs(self, x: Any, batch_size: int | None = None) -> Any:
        """Returns every expert's output for each example.

        Args:
            x: What `predict` takes.
            batch_size: As in `predict`.

        Returns:
            Array of shape `(b, …, e, …, u)`: the expert axis comes right after the routed axes.
            Where the experts return a list or dict, such a structure of arrays.
        """
        self.check_same_experts()
        return introspection.predict_inside(self, "outputs", x, batch_size)

    def compute_output_shape(self, input_shape: Shapes) -> Shapes:
        """Returns the merged output's shape."""
        spec = self.compute_output_spec(self.input_specs(input_shape))
        return tree.map_structure_up_to(spec, lambda leaf: tuple(leaf.shape), spec)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configures training; see `keras.Model.compile`.

        Warns where the optimizer treats stacked experts as one variable.
        """
        super().compile(*args, **kwargs)
        self.state.compiled_with = (args, kwargs)
        if self.state.built_bank is not None:  # `enable_lora` may have added variables
            note_namesakes(self, self.owned_experts)
        stacks = [layer.name for layer in self.stacks()]
        text = self.optimizer and optimizers.warning(self.optimizer, stacks)
        if text:
            self.state.warn_once(text)

    def compile_like(self, other: keras.Model) -> None:
        """Compiles another model as this one is, with a new optimizer of the same settings."""
        args, kwargs = self.state.compiled_with
        optimizer = optimizers.anew(self.optimizer)
        kwargs = {name: value for name, value in kwargs.items() if name != "optimizer"}
        other.compile(optimizer, *args[1:], **kwargs)

    def get_compile_config(self) -> Config | None:
        """Returns the arguments of `compile`, in a form that a file on any backend can hold.

        Keras writes the resolved value of `jit_compile="auto"`, which another backend may not take.
        """
        config = super().get_compile_config()
        if not config:
            return config
        return {**config, "jit_compile": self.state.compiled_with[1].get("jit_compile", "auto")}

    def stacks(self) -> list[keras.layers.Layer]:
        """Returns the layers that own the variables of several experts."""
        owned = self.owned_experts if self.built and self.state.built_bank else []
        return [layer for layer in owned if hasattr(layer, "read_one")]

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Quantizes gate and experts; see `keras.Model.quantize`.

        Raises:
            ValueError: If experts are stacked, and before anything is quantized.
        """
        for stack in self.stacks():
            stack.quantize(*args, **kwargs)
        super().quantize(*args, **kwargs)

    def expert(self, i: int) -> keras.Model:
        """Returns expert `i` as a Keras model.

        An expert that was passed in is returned itself, and a layer as a model that holds it: what
        is set there is set in the mixture. Of an expert that the mixture owns, a separate copy
        with the present weights is returned.

        Args:
            i: Position among the experts.

        Raises:
            IndexError: If there is no such expert.
            ValueError: If the mixture must be built first.
        """
        return introspection.expert(self, i)

    def get_build_config(self) -> Config:
        """Returns what `build` needs: the inputs' shapes and dtypes."""
        return {"input_shape": self.state.input_shape, "input_dtype": self.state.input_dtype}

    def build_from_config(self, config: Config) -> None:
        """Builds the mixture as it was built when it was saved."""
        if self.built or config["input_shape"] is None:
            return
        self.state.input_dtype = config["input_dtype"]
        self.build(map_shapes(tuple, config["input_shape"]))

    def save_own_variables(self, store: Any) -> None:
        """Writes a table of the experts; these, gate and router are saved as layers."""
        if self.built:
            serialization.save_table(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Checks that a file holds the same experts in the same order.

        Raises:
            ValueError: If their number, order or shapes differ.
        """
        if self.built:
            serialization.check_table(self, store)
            serialization.load_seeds(self, store)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Loads weights; see `keras.Model.load_weights`. A file that is refused changes nothing."""
        before = [ops.convert_to_numpy(variable.value) for variable in self.variables]
        try:
            super().load_weights(filepath, *args, **kwargs)
        except Exception:
            for variable, value in zip(self.variables, before, strict=True):
                variable.assign(value)
            raise


def _pairs_by_name(first: keras.layers.Layer, other: keras.layers.Layer) -> bool:
    """Whether the inputs of two models go together by their names alone."""
    names, others = input_names(first), input_names(other)
    if names is None or others is None or sorted(names) != sorted(others):
        return False
    return names != others or type(first.input) is not type(other.input)
