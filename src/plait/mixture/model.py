"""The mixture: parallel Keras models and a gate, as one Keras model."""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
from keras import ops, tree

from plait import routers
from plait.experts import CoupledRowsError, Functional, attach_masks, copy_of, masks_of
from plait.losses import ObjectiveState
from plait.mixture import gates, topology
from plait.mixture.about import About
from plait.mixture.assembly import (
    bank_of_list,
    bank_of_template,
    check_execution,
    check_experts,
)
from plait.mixture.forward import (
    Parts,
    chosen_experts,
    fold_rows,
    merge_chosen,
    merge_stacked,
    unfold_rows,
    with_masks,
)
from plait.mixture.learning import Learning, PartsHolder
from plait.mixture.persistence import Persistence
from plait.mixture.specs import (
    as_rows,
    check_agreement,
    check_gate,
    check_rank_rule,
    output_specs,
    specs_of,
)
from plait.mixture.telling import Telling
from plait.ops.backend import compiles_loads, forget_gradients, outside_of_graphs
from plait.ops.combine import merged_dtype
from plait.ops.routing import Routing
from plait.ops.shapes import merge


@keras.saving.register_keras_serializable("plait")
class Mixture(Telling, Learning, Persistence, keras.Model):
    """Parallel Keras models and a gate as one model: `out = Σ_l w_l(x) · f_l(x)`.

    Experts of one architecture run as one stacked call, others one after another. Under a sparse
    router such as `plait.routers.TopK` an expert runs only on the rows that chose it; where the
    weights have more routed axes than the batch, as `(b, t, e)`, a row is one step, so a template
    is best left unbuilt or built for one step.

    The experts that were passed in hold the trained weights after `fit` and `load_weights`. Where
    the mixture is a part of another model that is fitted, `expert(i)` gives them.

    Args:
        experts: List of Keras models or layers, or one template with `num_experts`, of which each
            expert is a freshly initialised copy. Outputs are floating-point tensors, or lists or
            dicts of them; each leaf is merged by the same weights.
        gate: Keras model or layer whose last axis is the experts. `None` is a linear gate on the
            flattened features, one set of weights per example; `"constant"` one learned weight per
            expert; `"uniform"` the plain average.
        num_experts: Number of experts, where `experts` is a template.
        router: `None` takes the gate's output as the weights, as it is, except for the gates that
            plait brings, which get `Softmax()`. Else a `plait.routers.Router`, its name or config.
        expert_inputs: What of a structured input the experts read: a key or position, a tuple of
            these as a path into a nested input, or a list with one of these (or a list of them)
            for each expert. `None` is the whole input.
        gate_inputs: What the gate reads: as one entry of `expert_inputs`; a list is several parts.
        execution: `"auto"` and `"stacked"` stack experts of one architecture, `"loop"` runs each
            expert as itself; `"stacked"` warns where there is nothing to stack.
        **kwargs: `name`, `dtype` and `trainable` of a Keras model.

    Call arguments:
        inputs: Tensor or structure of tensors.
        training: As in Keras.
        mask: As in Keras. A step of the output is valid where it is valid for every expert.

    Returns:
        The experts' output structure.

    Raises:
        ValueError: If there are no experts; if their outputs differ in shape, or the gate's last
            axis does not count them; if an input key does not exist; if a name is unknown.
        TypeError: If an expert or gate is no Keras layer, or an output has integers.

    Example:
    >>> import keras, plait
    >>> experts = [keras.Sequential([keras.layers.Dense(3, activation="softmax")]) for _ in "ab"]
    >>> mix = plait.Mixture(experts, gate=keras.layers.Dense(2, activation="softmax"))
    >>> tuple(mix(keras.ops.ones((5, 4))).shape), mix.gate_weights(keras.ops.ones((5, 4))).shape
    ((5, 3), (5, 2))

    References:
        Jacobs, Jordan, Nowlan, Hinton (1991), Adaptive mixtures of local experts.
        Shazeer et al. (2017), Outrageously large neural networks.
    """

    fit_gate: Callable[..., keras.callbacks.History]
    """See `plait.training.fit_gate`, which stands a floor above."""

    def __init__(
        self,
        experts: Any,
        gate: Any = None,
        *,
        num_experts: int | None = None,
        router: Any = None,
        expert_inputs: Any = None,
        gate_inputs: Any = None,
        execution: str = "auto",
        **kwargs: Any,
    ) -> None:
        # The experts' and the gate's own layers cast their inputs; the mixture leaves them alone.
        super().__init__(autocast=False, **kwargs)
        given, count = check_experts(experts, num_experts)
        self.num_experts = count
        self.execution = check_execution(execution)
        self.expert_inputs = expert_inputs
        self.gate_inputs = gate_inputs
        self.supports_masking = True
        self.gate = gates.get(gate, count)
        brings_gate = not isinstance(gate, keras.layers.Layer)
        self.router = routers.get("softmax" if router is None and brings_gate else router)
        # Said before `build`: whoever compiles a model around the mixture asks first.
        self.supports_jit = not self._is_sparse or compiles_loads()
        self._about = About(
            experts=given,
            template=given[0] if isinstance(experts, keras.layers.Layer) else None,
            gate=gate,
            selectors=topology.selectors(expert_inputs, count),
        )
        self.objective_state = ObjectiveState(name="objective")
        self.objective_state.built = True
        self._parts = PartsHolder()
        self._warn_of_double_softmax()
        self._build_early()

    def _warn_of_double_softmax(self) -> None:
        if self.router is not None and self.router.from_logits and gates.ends_in_softmax(self.gate):
            warnings.warn(
                f"The gate {self.gate.name!r} ends in a softmax, but "
                f"{type(self.router).__name__} takes logits: the weights are a softmax of a "
                "softmax, nearly uniform. Use from_logits=False, or end the gate without softmax.",
                stacklevel=3,
            )

    @property
    def _is_sparse(self) -> bool:
        return self.router is not None and self.router.sparse

    def _build_early(self) -> None:
        """Builds at once where the first expert knows its input and everybody reads it whole."""
        about = self._about
        first = about.experts[0]
        reads_whole = about.selectors == [None] and self.gate_inputs is None
        if not (reads_whole and isinstance(first, (Functional, keras.Sequential)) and first.built):
            return
        inputs = first.inputs[0] if isinstance(first, keras.Sequential) else first.input
        about.input_dtype = tree.map_structure(lambda spec: spec.dtype, inputs)
        self.build(tree.map_structure(lambda spec: tuple(spec.shape), inputs))

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the mixture; an unbuilt one notes the inputs' dtypes, which `build` is not told."""
        if not self.built:
            self._about.input_dtype = tree.map_structure(
                lambda leaf: keras.backend.standardize_dtype(getattr(leaf, "dtype", "float32")),
                inputs,
            )
        return super().__call__(inputs, *args, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Builds gate and experts, and checks that they fit together."""
        about = self._about
        if about.built_bank is not None:  # built early, for the input that the experts know
            return
        with outside_of_graphs():  # `predict` may be the first to call, inside a trace
            self._build(input_shape)

    def _build(self, input_shape: Any) -> None:
        about = self._about
        about.input_shape = input_shape
        inputs = specs_of(input_shape, about.input_dtype)
        scores = self._build_gate(inputs)
        weights_shape = about.weights_shape = tuple(scores.shape)
        fed = topology.select_each(inputs, about.selectors)
        rows = self._row_specs(fed, weights_shape) if self._is_sparse else None
        about.dispatches = rows is not None
        self.supports_jit = not about.dispatches or compiles_loads()
        about.built_bank = self._build_bank(fed if rows is None else rows)
        check_rank_rule(weights_shape, self._output_specs(fed, scores))
        self.expert_layers = about.bank.layers
        paths = Counter(variable.path for variable in self.variables)
        about.namesakes = [v for v in self.variables if paths[v.path] > 1]
        self.attach_objective()

    def weights_shape(self) -> tuple[int | None, ...] | None:
        """Returns the shape of the mixing weights, `(b, …, e)`, or `None` before it is known."""
        return self._about.weights_shape

    def _build_gate(self, inputs: Any) -> keras.KerasTensor:
        scores = output_specs(self.gate, self._gate_part(inputs))
        scores = check_gate(scores, self.gate, self.num_experts)
        if self.router is not None and not self.router.built:
            self.router.build(tuple(scores.shape))
        return scores

    def _build_bank(self, fed: Any) -> Any:
        about = self._about
        if about.template is not None:
            return bank_of_template(about.template, self.num_experts, fed, self.execution)
        return bank_of_list(about.experts, fed, self.execution)

    def _row_specs(self, fed: Any, weights_shape: Any) -> Any:
        """Returns the specs of one row each, or `None` where experts cannot run row by row."""
        rank = len(weights_shape) - 1
        if rank == 1:
            return fed
        if all(len(spec.shape) >= rank for spec in tree.flatten(fed)):
            rows = [as_rows(part, rank) for part in fed]
            first = self._about.experts[0]
            try:
                output_specs(first if first.built else copy_of(first), rows[0])
            except Exception:  # an expert that mixes steps refuses a single one, in its own words
                pass
            else:
                return rows
        warnings.warn(
            f"The experts of {self.name!r} run on every step: {self._about.experts[0].name!r} does "
            f"not take single rows, which weights of shape {weights_shape} route. Leave the "
            "experts unbuilt, or build them for the input of one step.",
            stacklevel=2,
        )
        return None

    def _output_specs(self, fed: Any, weights: keras.KerasTensor) -> Any:
        """Returns the experts' common output specs, checked to agree."""
        about = self._about
        rank = len(weights.shape) - 1
        if not about.dispatches or rank == 1:
            return check_agreement(about.bank.output_specs(fed))
        rows = [as_rows(part, rank) for part in fed]
        return tree.map_structure(
            lambda spec: keras.KerasTensor((*weights.shape[:-1], *spec.shape[1:]), spec.dtype),
            check_agreement(about.bank.output_specs(rows)),
        )

    def _gate_part(self, inputs: Any) -> Any:
        return topology.select(inputs, self.gate_inputs, "the gate")

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Returns the merged output."""
        training = bool(training)
        routing = self.route(inputs, training, mask)
        about = self._about
        if training:
            forget_gradients(about.namesakes)
        if about.dispatches and self.objective is None:
            try:
                return self._call_chosen(routing, inputs, training, mask)
            except CoupledRowsError:
                self._warn_once(
                    f"The experts of {self.name!r} run on every row where they move batch "
                    "statistics or add losses, which depend on the whole batch."
                )
        parts = self._all_parts(routing, inputs, training, mask)
        outputs = parts.outputs
        if self.objective is not None:
            self.note_parts(parts)
            outputs = self.objective.mean(outputs)
        merged = merge_stacked(parts.weights, outputs, self.compute_dtype)
        return with_masks(merged, parts.masks)

    def route(self, inputs: Any, training: bool, mask: Any) -> Routing:
        """Returns the weights and which experts were chosen, called within a Keras call.

        Args:
            inputs: As for `call`.
            training: As for `call`.
            mask: As for `call`.
        """
        part = self._gate_part(inputs)
        if mask is not None:
            part = attach_masks(part, self._gate_part(mask))
        scores = self.gate(part, training=training)
        if self.router is None:
            return Routing(scores)
        # Steps that are masked count in no balance term and take none of an expert's capacity.
        return self.router.route(scores, training=training, mask=masks_of(scores)[0])

    def _fed(self, inputs: Any, mask: Any) -> tuple[list[Any], list[Any] | None]:
        """Returns what the experts read, and its masks."""
        selectors = self._about.selectors
        fed = topology.select_each(inputs, selectors)
        if mask is None or all(leaf is None for leaf in tree.flatten(mask)):
            return fed, None
        return fed, topology.select_each(mask, selectors)

    def _all_parts(self, routing: Routing, inputs: Any, training: bool, mask: Any) -> Parts:
        """Runs every expert."""
        about = self._about
        fed, masks = self._fed(inputs, mask)
        # Experts built for one step may have built the mixture, before it is called on sequences.
        rank = len(routing.weights.shape) - 1
        if about.dispatches and rank > 1:
            folded = [fold_rows(part, rank) for part in fed]
            outputs, _ = about.bank.run_all(folded, None, training)
            outputs = tree.map_structure(
                lambda leaf: ops.reshape(
                    leaf,
                    (leaf.shape[0], *ops.shape(routing.weights)[:-1], *ops.shape(leaf)[2:]),
                ),
                outputs,
            )
            return Parts(routing.weights, outputs, self._step_masks(outputs, masks))
        outputs, output_masks = about.bank.run_all(fed, masks, training)
        return Parts(routing.weights, outputs, output_masks)

    def _call_chosen(self, routing: Routing, inputs: Any, training: bool, mask: Any) -> Any:
        """Runs each expert on the rows that chose it."""
        about = self._about
        rank = len(routing.weights.shape) - 1
        fed, masks = self._fed(inputs, mask)
        weights = fold_rows(routing.weights, rank)
        indices = fold_rows(chosen_experts(routing), rank)
        assert self.router is not None  # no rule, no zeros: nothing is dispatched
        capacity = self.router.capacity(ops.shape(weights)[0], self.num_experts)
        outputs, output_masks = about.bank.run_chosen(
            [fold_rows(part, rank) for part in fed],
            masks if rank == 1 else None,
            indices,
            capacity if isinstance(capacity, int) else None,
            training,
        )
        merged = merge_chosen(weights, indices, outputs, self.compute_dtype)
        merged = unfold_rows(merged, routing.weights, rank)
        if rank > 1:
            output_masks = self._step_masks(merged, masks)
        return with_masks(merged, output_masks)

    def _step_masks(self, outputs: Any, masks: Any) -> list[Any]:
        """Returns the outputs' masks where experts run step by step: those of the input."""
        given = [mask for mask in tree.flatten(masks) if mask is not None] if masks else []
        mask = given[0] if given else None
        return [mask] * len(tree.flatten(outputs))

    def _warn_once(self, text: str) -> None:
        if text not in self._about.warned:
            self._about.warned.add(text)
            warnings.warn(text, stacklevel=2)

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        """The outputs' masks are attached in `call`, where the experts' are known."""
        del inputs, mask

    def compute_output_spec(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Returns shape and dtype of the merged output."""
        del training, mask
        if not self.built:
            self.build(tree.map_structure(lambda leaf: tuple(leaf.shape), inputs))
        about = self._about
        weights = self.gate.compute_output_spec(self._gate_part(inputs))
        outputs = self._output_specs(topology.select_each(inputs, about.selectors), weights)

        def merged(spec: keras.KerasTensor) -> keras.KerasTensor:
            if self.objective is not None:
                stacked = keras.KerasTensor((self.num_experts, *spec.shape), spec.dtype)
                spec = keras.KerasTensor(self.objective.mean(stacked).shape[1:], spec.dtype)
            routed = len(weights.shape) - 1
            shape = merge(weights.shape[:-1], spec.shape[:routed]) + spec.shape[routed:]
            return keras.KerasTensor(shape, merged_dtype([spec.dtype], self.compute_dtype))

        return tree.map_structure(merged, outputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the merged output's shape."""
        spec = self.compute_output_spec(specs_of(input_shape, self._about.input_dtype))
        return tree.map_structure_up_to(spec, lambda leaf: tuple(leaf.shape), spec)
