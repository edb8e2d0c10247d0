"""The mixture: parallel Keras models and a gate, as one Keras model."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops, tree

from plait import routers
from plait.compat import UntrackedList, attach_masks, masks_of
from plait.mixture import gates, introspection, serialization
from plait.mixture.build import (
    build,
    check_execution,
    check_experts,
    check_objective,
    empty_outputs,
    merged_specs,
    parts_specs,
)
from plait.mixture.combining import check_arithmetic
from plait.mixture.forward import (
    Fed,
    Merged,
    run_chosen,
    step_masks,
    unfold_rows,
)
from plait.mixture.inputs import Selector, select, selectors
from plait.mixture.objective import PartsModel
from plait.mixture.of_experts import OfExperts
from plait.mixture.state import MixtureState
from plait.mixture.views import Views, look, with_missing
from plait.mixture.watching import Call, tell, unwatched, watched
from plait.ops.backend import clear_gradients, compiles, outside_of_graphs
from plait.ops.merging import SlotMerge, check_combination, merge_stacked
from plait.ops.presence import over_present, score_present
from plait.ops.routing import Routing
from plait.typing import Config, Nested, Shape, Shapes, Tensor

if TYPE_CHECKING:
    from plait.training.em import EMResult


@keras.saving.register_keras_serializable("plait")
class Mixture(OfExperts, PartsModel):
    """Parallel Keras models and a gate as one model: `out = Σ_l w_l(x) · f_l(x)`.

    Models that are passed in stay what they are: the mixture's variables are theirs, as in any
    Keras model that is made of models. What is set on an expert at any time, by `load_weights`,
    `trainable`, `fit` of the expert alone, is what the mixture computes, and the other way round.
    With a template, or with `copy_experts=True`, the mixture owns its experts' variables: experts
    of one architecture have them stacked, `(e, …)`, and run as one call.

    Under a sparse router such as `plait.routers.TopK` an expert runs only on the rows that chose
    it. Where the weights have more routed axes than the batch, as `(b, t, e)`, a row is one step,
    so a template is best left unbuilt or built for one step.

    Args:
        experts: List of Keras models or layers, or one template with `num_experts`, of which each
            expert is a freshly initialised copy. Outputs are floating-point tensors, or lists or
            dicts of them; each leaf is merged by the same weights.
        gate: Keras model or layer whose last axis is the experts. `None` is a linear gate on the
            flattened features, one set of weights per example; `"constant"` one learned weight per
            expert; `"uniform"` the plain average; a list of numbers fixed weights.
        num_experts: Number of experts, where `experts` is a template.
        router: `None` takes the gate's output as the weights, as it is, except for the gates that
            `None`, `"constant"` and `"uniform"` ask for, which get `Softmax()`. Else a
            `plait.routers.Router`, its name or config.
        expert_inputs: What of a structured input the experts read: a key or position, a tuple of
            these as a path into a nested input, a dict of these, or a list with one of these (or a
            list of them) for each expert. `None` is the whole input.
        gate_inputs: What the gate reads: as one entry of `expert_inputs`. A list is several parts,
            for a gate whose inputs are a list; a dict of parts is for one whose inputs are a dict.
        present: Which experts have their view of an example, where views may be missing. `None`:
            all. A key or position: an input of shape `(b, e)`, 1 where the expert's view is there
            and 0 where it is missing. `"not_nan"`: a view is missing where all its numbers are NaN,
            and where it is given as `None`. An expert whose view is missing has weight zero, the
            others share its weight in proportion; experts and gate read zeros in its place. An
            example whose views are all missing is weighed as if none were: the experts' answers to
            zeros.
        combination: `"arithmetic"`, the weighted sum; or a logarithmic opinion pool, named by what
            the experts' last axis holds. `"geometric"`: distributions over it (or one unit, the
            probability of "yes"), pooled to `softmax_c Σ_l w_l(x) · log f_l(x)`; see
            `plait.ops.pool`. An expert that visibly ends otherwise is refused; the numbers are not
            checked: a negative gives NaN. `"gaussian"`: means, then as many scales, as in
            `plait.losses.families.Gaussian(scale="predicted")`, pooled to one Gaussian in which an
            expert counts as much as it is sure; see `plait.ops.gaussian_pool`.
        execution: How experts of one architecture run, a matter of speed alone: `"loop"` one after
            another, `"stacked"` in one call, `"auto"` as is faster. Random numbers, such as those
            of dropout, may differ.
        copy_experts: Whether the mixture owns copies of the given models; these are left alone.
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

    def __init__(
        self,
        experts: list[keras.layers.Layer] | keras.layers.Layer,
        gate: gates.GateSpec = None,
        *,
        num_experts: int | None = None,
        router: routers.Router | str | Config | None = None,
        expert_inputs: Selector = None,
        gate_inputs: Selector = None,
        present: Selector = None,
        combination: str = "arithmetic",
        execution: str = "auto",
        copy_experts: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        given, self.num_experts = check_experts(experts, num_experts)
        template = isinstance(experts, keras.layers.Layer)
        self.execution = check_execution(execution)
        self.expert_inputs = expert_inputs
        self.gate_inputs = gate_inputs
        self.present = present
        self.combination = check_combination(combination)
        self.supports_masking = True
        self.state = MixtureState(
            given=given,
            ownership="template" if template else "copied" if copy_experts else "shared",
            gate=gate,
            selectors=selectors(expert_inputs, self.num_experts),
        )
        shared = self.state.ownership == "shared"
        self.experts = given if shared else UntrackedList(given)
        self.gate = gates.get(gate, self.num_experts)
        learned = gates.is_learned(self.gate)
        by_caller = isinstance(gate, keras.layers.Layer)
        self.router = routers.get(
            "softmax" if router is None and learned and not by_caller else router
        )
        # Set before `build`: a model around the mixture may be compiled first.
        self.supports_jit = compiles(dispatches=self.is_sparse)
        self.build_early(gate_inputs is None and present is None)

    @property
    def is_sparse(self) -> bool:
        """Whether the router gives some experts a weight of zero, so that they need not run."""
        return self.router is not None and self.router.sparse

    def __call__(self, inputs: Nested, *args: Any, **kwargs: Any) -> Nested:
        """Calls the mixture; `None` in place of a view is a view that is missing."""
        if any(leaf is None for leaf in tree.flatten(inputs)):
            inputs = with_missing(inputs, self.state.input_shape, self.present)
        return super().__call__(inputs, *args, **kwargs)

    def build(self, input_shape: Shapes) -> None:
        """Builds gate and experts, and checks that they fit together."""
        if self.state.built_bank is None:  # else built early, for the input of the experts
            with outside_of_graphs():  # `predict` may be the first to call, inside a trace
                self.owned_experts = build(self, input_shape)
            self.supports_jit = compiles(dispatches=self.state.dispatches)
            self.attach_objective()

    def weights_shape(self) -> Shape | None:
        """Returns the shape of the mixing weights, `(b, …, e)`, or `None` before it is known."""
        return self.state.weights_shape

    def attach_objective(self) -> None:
        """Creates the objective's variables; see `PartsModel.attach_objective`.

        Raises:
            ValueError: If the experts have several outputs, of which an objective takes one, or are
                merged otherwise than it supposes.
        """
        check_objective(self)
        super().attach_objective()

    def other_layers(self) -> list[keras.layers.Layer]:
        """Returns the gate."""
        return [self.gate]

    def gate_part(self, inputs: Nested) -> Nested:
        """Returns what the gate reads of the inputs."""
        return select(inputs, self.gate_inputs, "the gate")

    def call(self, inputs: Nested, training: bool | None = None, mask: Nested = None) -> Nested:
        """Returns the merged output."""
        training = bool(training)
        self.check_same_experts()
        if tree.flatten(inputs)[0].shape[0] == 0:
            return empty_outputs(self, inputs)
        routing = self.route(inputs, training, mask)
        fed = self.fed(inputs, mask)
        with unwatched():
            if self.may_dispatch(routing, fed, training):
                merged = self._merge_chosen(routing, fed, training)
            else:
                merged = self._merge_every(routing, fed, training)
        for loss in merged.losses:
            self.add_loss(loss)
        if training:
            clear_gradients(self.state.namesakes, tree.flatten(merged.outputs))
        return merged.outputs

    def route(self, inputs: Nested, training: bool, mask: Nested) -> Routing:
        """Returns the weights and which experts were chosen, called within a Keras call.

        Args:
            inputs: As for `call`.
            training: As for `call`.
            mask: As for `call`.
        """
        views = self._views(inputs)
        part = self.gate_part(views.inputs)
        if mask is not None:
            part = attach_masks(part, tree.flatten(self.gate_part(mask)))
        scores = self.gate(part, training=training)
        # Steps that are masked count in no balance term and take none of an expert's capacity.
        rows = masks_of(scores)[0] if self.router is not None or watched() else None
        there = views.present
        if self.router is None:
            routing = Routing(scores if there is None else over_present(scores, there))
        else:
            if there is not None:
                scores = score_present(scores, there, self.router.from_logits)
            routing = self.router.route(scores, training=training, mask=rows)
        tell(Call(self, None, list(range(self.num_experts)), routing, rows, inputs, mask))
        return routing

    def parts_inside(
        self, inputs: Nested, mask: Nested, with_outputs: bool
    ) -> tuple[Tensor, Nested]:
        """Returns weights and experts' outputs; see `OfExperts.parts_inside`."""
        routing = self.route(inputs, False, mask)
        return routing.weights, self.outputs_inside(routing, inputs, mask) if with_outputs else None

    def _views(self, inputs: Nested) -> Views:
        """Returns the inputs with zeros in missing views, and which experts have theirs."""
        return look(inputs, self.present, self.state.selectors, self.num_experts)

    def fed(self, inputs: Nested, mask: Nested) -> Fed:
        """Returns what the experts read, with zeros in missing views, and its masks."""
        return super().fed(self._views(inputs).inputs, mask)

    def parts_specs(self, inputs: Nested) -> tuple[keras.KerasTensor, Nested]:
        """Returns shapes and dtypes of weights and experts' outputs."""
        scores = self.gate.compute_output_spec(self.gate_part(inputs))
        if self.router is not None:
            scores = self.router.compute_output_spec(scores)
        return parts_specs(self, inputs, scores)

    def _merge_every(self, routing: Routing, fed: Fed, training: bool) -> Merged:
        """Runs every expert on every row, and merges."""
        parts = self.run_every(routing, fed, training, self.is_sparse)
        outputs = parts.outputs
        if self.needs_parts():
            self.note_parts(parts)
        if self.objective is not None:
            outputs = self.objective.mean(outputs)
        merged = merge_stacked(parts.weights, outputs, self.compute_dtype, self.combination)
        return Merged(attach_masks(merged, parts.masks, fresh=True), parts.losses)

    def _merge_chosen(self, routing: Routing, fed: Fed, training: bool) -> Merged:
        """Runs each expert on the rows that chose it, and merges."""
        rank = len(routing.weights.shape) - 1
        assert self.router is not None  # without a router nothing is dispatched
        rows = math.prod(ops.shape(routing.weights)[:-1])
        capacity = self.router.capacity(rows, self.num_experts)
        mean = None if self.objective is None else self.objective.mean
        _, merged, masks = run_chosen(
            self.state.bank,
            routing,
            fed,
            capacity=capacity if isinstance(capacity, int) else None,
            training=training,
            merge=SlotMerge(mean, self.compute_dtype, self.combination),
        )
        merged = unfold_rows(merged, routing.weights, rank)
        if rank > 1:
            masks = step_masks(merged, fed.masks)
        return Merged(attach_masks(merged, masks, fresh=True), [])

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> None:
        """The outputs' masks are attached in `call`, where the experts' are known."""
        del inputs, mask

    def compute_output_spec(
        self, inputs: Nested, training: bool | None = None, mask: Nested = None
    ) -> Nested:
        """Returns shape and dtype of the merged output."""
        del training, mask
        if not self.built:
            self.build(tree.map_structure(lambda leaf: tuple(leaf.shape), inputs))
        return merged_specs(self, inputs)

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The experts, or the layers that own their variables; the gate; the router."""
        return [layer for layer in super().layers if layer is not self.objective_state]

    def fit_gate(self, x: Any = None, y: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """Trains the gate alone on the experts' cached outputs; see `plait.training.fit_gate`."""
        from plait.training.gate import fit_gate

        return fit_gate(self, x, y, **kwargs)

    def fit_em(self, x: Any, y: Any = None, **kwargs: Any) -> "EMResult":
        """Fits the mixture to its likelihood; see `plait.training.fit_em`."""
        from plait.training.em import fit_em

        check_arithmetic(self, "fit_em")
        return fit_em(self, x, y, **kwargs)

    def export(
        self,
        filepath: Any,
        format: str | None = None,
        *,
        batch_size: int | None = None,
        verify: bool = True,
    ) -> Path:
        """Writes the mixture for another runtime, and verifies the file; see `plait.export`."""
        from plait.export import export

        return export(self, filepath, format, batch_size=batch_size, verify=verify)

    def responsibilities(self, x: Any, y: Any, batch_size: int | None = None) -> np.ndarray:
        """Returns the posterior weights, once the target is known: `h_l ∝ w_l(x) · p_l(y | x)`.

        The objective that the mixture is compiled with says what `p_l` is. Under another loss it
        follows from that: categorical and binary crossentropy, of probabilities or logits; Poisson;
        mean squared error (a Gaussian of variance 1/2).

        Args:
            x: Array or structure of arrays, as for `predict`.
            y: Target: class numbers `(b,)`, or an array of the output's shape.
            batch_size: As in `predict`.

        Returns:
            Array of shape `(b, …, e)`, which sums to one over the last axis.

        Raises:
            ValueError: If the mixture is not compiled, no family follows from the loss, the experts
                have several outputs, or the target does not fit.

        References:
            Jordan, Jacobs (1994), Hierarchical mixtures of experts, eq. 16.
        """
        check_arithmetic(self, "responsibilities")
        return introspection.responsibilities(self, x, y, batch_size)

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        self.check_same_experts()
        return {**super().get_config(), **serialization.config_of(self)}

    @classmethod
    def from_config(
        cls, config: Config, custom_objects: Mapping[str, Any] | None = None
    ) -> "Mixture":
        """Returns a mixture of what `get_config` gave."""
        return cls(**serialization.arguments_of(config, custom_objects))
