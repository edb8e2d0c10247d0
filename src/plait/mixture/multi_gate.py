"""A mixture of several gates: one set of experts, run once, and a gate for each task."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from plait import routers
from plait.compat import UntrackedList, attach_masks, masks_of
from plait.errors import message
from plait.losses import MixtureObjective
from plait.mixture import multi_gate_config, multi_gate_parts
from plait.mixture.build import (
    build_experts,
    build_gate,
    check_execution,
    empty_outputs,
    expert_specs,
    merged_spec,
    note_inputs,
    note_namesakes,
    parts_specs,
    warn_of_the_gate,
)
from plait.mixture.forward import Fed, Merged
from plait.mixture.inputs import select, select_each, selectors
from plait.mixture.of_experts import OfExperts
from plait.mixture.several import joined, merge_chosen_of_tasks, merge_every_task
from plait.mixture.specs import output_specs
from plait.mixture.state import MixtureState
from plait.mixture.tasks import (
    Private,
    Task,
    Tasks,
    expert_selectors,
    make_tasks,
    members_of,
    towers_of,
)
from plait.mixture.watching import Call, tell, unwatched, watched
from plait.ops.backend import clear_gradients, compiles, outside_of_graphs
from plait.ops.routing import Routing
from plait.ops.union import spread
from plait.typing import Config, Nested, Shapes, Tensor


@keras.saving.register_keras_serializable("plait")
class MultiGateMixture(OfExperts):
    """One set of experts and a gate for each task: `out_t = tower_t(Σ_l w_tl(x) · f_l(x))`.

    Every expert runs once, whatever the number of tasks; under sparse routers only on the rows
    that some task chose it for. This is the multi-gate mixture of experts (MMoE). With
    `private_experts` each task's gate sees the shared experts and the task's own (customized gate
    control, CGC); levels of these, each with `shared_output`, are progressive layered extraction
    (PLE).

    What is said of experts in `plait.Mixture` holds: models that are passed in are the experts,
    one set of variables; with a template or `copy_experts=True` the mixture owns them. Experts are
    numbered from the shared ones on, then those of each task in the order of `tasks`.

    Args:
        experts: List of Keras models or layers that every task shares; or one template.
        num_experts: Number of shared experts, where `experts` is a template.
        tasks: Dict from each task's name to its tower, a Keras model or layer that makes the output
            of the blend, or `None`; or a list of names.
        gates: What the gate of each task is, as the `gate` of a `Mixture`: one name or list of
            numbers for all tasks, or a dict by task, whose values may be Keras models.
        router: As for a `Mixture`; each task gets a copy of it. Or a dict by task.
        private_experts: How many experts each task has of its own, made of the template; or a dict
            from tasks to lists of Keras models or layers.
        expert_inputs: As for a `Mixture`; or a dict that says what the experts under `"shared"`
            and those of each task read.
        gate_inputs: As for a `Mixture`; or a dict by task.
        shared_output: Whether there is one more output, `"shared"`, with a gate over all experts:
            what the shared experts of the next level read.
        execution: As for a `Mixture`.
        copy_experts: As for a `Mixture`.
        **kwargs: `name`, `dtype` and `trainable` of a Keras model.

    Call arguments:
        inputs: Tensor or structure of tensors.
        training: As in Keras.
        mask: As in Keras. A step of an output is valid where it is valid for every expert.

    Returns:
        A dict of outputs by task. `compile` takes losses, loss weights and metrics by task. A row
        that has no label for a task is one of weight zero there: give it any finite label, and
        pass `sample_weight` as a dict of arrays `(b,)` for all tasks.

    Raises:
        ValueError: If there are no tasks or experts, a name is unknown, or shapes do not fit.
        TypeError: If an expert, gate or tower is no Keras layer, or one layer is to be all gates.

    Example:
    >>> import keras, plait
    >>> expert = keras.layers.Dense(8, activation="relu")
    >>> towers = {"income": keras.layers.Dense(1), "marital": keras.layers.Dense(3)}
    >>> mmoe = plait.MultiGateMixture(expert, num_experts=4, tasks=towers)
    >>> y = mmoe(keras.ops.ones((5, 6)))
    >>> {task: tuple(output.shape) for task, output in y.items()}
    {'income': (5, 1), 'marital': (5, 3)}
    >>> mmoe.gate_weights(keras.ops.ones((5, 6))).shape
    (5, 2, 4)

    References:
        Ma, Zhao, Yi, Chen, Hong, Chi (2018), Modeling task relationships in multi-task learning
        with multi-gate mixture-of-experts.
        Tang, Liu, Zhao, Gong (2020), Progressive layered extraction (PLE).
    """

    def __init__(
        self,
        experts: list[keras.layers.Layer] | keras.layers.Layer,
        *,
        num_experts: int | None = None,
        tasks: Tasks,
        gates: Any = None,
        router: routers.Router | str | Config | Mapping[str, Any] | None = None,
        private_experts: Private = 0,
        expert_inputs: Any = None,
        gate_inputs: Any = None,
        shared_output: bool = False,
        execution: str = "auto",
        copy_experts: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        towers = towers_of(tasks)
        members = members_of(experts, num_experts, private_experts, list(towers))
        made = make_tasks(
            towers,
            members,
            gate_specs=gates,
            router=router,
            gate_inputs=gate_inputs,
            shared_output=shared_output,
        )
        self.num_experts = members.total
        self.execution = check_execution(execution)
        self.shared_output = bool(shared_output)
        self.supports_masking = True
        template = isinstance(experts, keras.layers.Layer)
        self.state = MixtureState(
            given=members.given,
            ownership="template" if template else "copied" if copy_experts else "shared",
            gate=None,
            selectors=selectors(expert_selectors(expert_inputs, members), members.total),
        )
        shared = self.state.ownership == "shared"
        self.experts = members.given if shared else UntrackedList(members.given)
        self.gates = {task.name: task.gate for task in made}
        self.routers = {task.name: task.router for task in made if task.router is not None}
        self.towers = {task.name: task.tower for task in made if task.tower is not None}
        # Closures, which Keras does not look into: it tracks the layers above.
        self.tasks = lambda: made
        arguments = {
            "tasks": list(towers),
            "num_experts": num_experts,
            "private_experts": private_experts,
            "gates": gates,
            "expert_inputs": expert_inputs,
            "gate_inputs": gate_inputs,
        }
        self.arguments = lambda: arguments
        self.supports_jit = compiles(dispatches=self.is_sparse)
        self.build_early(gate_inputs is None)

    @property
    def task_names(self) -> list[str]:
        """Names of the outputs, in the order of the axis of tasks; `"shared"` is the last."""
        return [task.name for task in self.tasks()]

    @property
    def is_sparse(self) -> bool:
        """Whether every task's router gives some experts a weight of zero."""
        return all(task.sparse for task in self.tasks())

    def other_layers(self) -> list[keras.layers.Layer]:
        """Returns gates and towers."""
        return [*self.gates.values(), *self.towers.values()]

    def build(self, input_shape: Shapes) -> None:
        """Builds gates, experts and towers, and checks that they fit together."""
        if self.state.built_bank is not None:  # built early, for the input of the experts
            return
        with outside_of_graphs():  # `predict` may be the first to call, inside a trace
            inputs = note_inputs(self, input_shape)
            scores = [self._build_gate(task, inputs) for task in self.tasks()]
            self._check_scores(scores)
            self.owned_experts = build_experts(self, inputs, scores[0])
            for task, of_task in zip(self.tasks(), scores, strict=True):
                by_default = self.arguments()["gates"] is None
                warn_of_the_gate(self, task.gate, task.router, by_default=by_default)
                if task.tower is not None:
                    output_specs(task.tower, self._merged_specs(inputs, of_task))
            note_namesakes(self, self.owned_experts)
        self.supports_jit = compiles(dispatches=self.state.dispatches)

    def _build_gate(self, task: Task, inputs: Nested) -> keras.KerasTensor:
        part = select(inputs, task.reads, f"the gate of {task.name!r}")
        name = f"{self.name}_{task.name}"
        return build_gate(task.gate, task.router, part, len(task.experts), name)

    def _check_scores(self, scores: list[keras.KerasTensor]) -> None:
        """Checks that all gates route the same axes.

        Raises:
            ValueError: If they do not.
        """
        for task, one in zip(self.tasks(), scores, strict=True):
            if len(one.shape) != len(scores[0].shape):
                raise ValueError(
                    message(
                        "The gates of all tasks must route the same axes",
                        f"scores of shape {tuple(one.shape)} for {task.name!r} and "
                        f"{tuple(scores[0].shape)} for {self.task_names[0]!r}",
                        "Let all of them weigh whole examples, or all of them steps",
                    )
                )

    def _merged_specs(self, inputs: Nested, scores: keras.KerasTensor) -> Nested:
        outputs = expert_specs(self.state, select_each(inputs, self.state.selectors), scores)
        return tree.map_structure(
            lambda spec: merged_spec(scores, spec, self.compute_dtype), outputs
        )

    def route(self, inputs: Nested, training: bool, mask: Nested) -> list[Routing]:
        """Returns each task's weights, among the experts that its gate scores."""
        found = []
        for task in self.tasks():
            part = select(inputs, task.reads, f"the gate of {task.name!r}")
            if mask is not None:
                part = attach_masks(
                    part, tree.flatten(select(mask, task.reads, f"the gate of {task.name!r}"))
                )
            scores = task.gate(part, training=training)
            rows = masks_of(scores)[0] if task.router is not None or watched() else None
            if task.router is None:
                routing = Routing(scores)
            else:
                routing = task.router.route(scores, training=training, mask=rows)
            tell(Call(self, task.name, task.experts, routing, rows, inputs, mask))
            found.append(routing)
        return found

    def call(self, inputs: Nested, training: bool | None = None, mask: Nested = None) -> Nested:
        """Returns the output of each task."""
        training = bool(training)
        self.check_same_experts()
        if tree.flatten(inputs)[0].shape[0] == 0:
            return empty_outputs(self, inputs)
        routings = self.route(inputs, training, mask)
        with unwatched():
            merged = self._merge(routings, self.fed(inputs, mask), training)
        for loss in merged.losses:
            self.add_loss(loss)
        outputs = {
            task.name: merged.outputs[task.name]
            if task.tower is None
            else task.tower(merged.outputs[task.name], training=training)
            for task in self.tasks()
        }
        if training:
            clear_gradients(self.state.namesakes, tree.flatten(outputs))
        return outputs

    def _merge(self, routings: list[Routing], fed: Fed, training: bool) -> Merged:
        bank, tasks = self.state.bank, self.tasks()
        if self.may_dispatch(joined(tasks, routings, self.num_experts), fed, training):
            return merge_chosen_of_tasks(
                bank, tasks, routings, fed, training=training, compute_dtype=self.compute_dtype
            )
        return merge_every_task(
            bank,
            tasks,
            routings,
            fed,
            by_step=self.state.dispatches,
            training=training,
            compute_dtype=self.compute_dtype,
        )

    def parts_inside(
        self, inputs: Nested, mask: Nested, with_outputs: bool
    ) -> tuple[Tensor, Nested]:
        """Returns weights `(b, …, t, e)` and experts' outputs; see `OfExperts.parts_inside`."""
        weights = [
            spread(routing.weights, task.experts, self.num_experts)
            for task, routing in zip(self.tasks(), self.route(inputs, False, mask), strict=True)
        ]
        if not with_outputs:
            return ops.stack(weights, axis=-2), None
        return ops.stack(weights, axis=-2), self.outputs_inside(Routing(weights[0]), inputs, mask)

    def parts_specs(self, inputs: Nested) -> tuple[keras.KerasTensor, Nested]:
        """Returns shapes and dtypes of weights `(b, …, t, e)` and experts' outputs."""
        task = self.tasks()[0]
        part = select(inputs, task.reads, f"the gate of {task.name!r}")
        scores = task.gate.compute_output_spec(part)
        if task.router is not None:
            scores = task.router.compute_output_spec(scores)
        weights, experts = parts_specs(self, inputs, scores)
        shape = (*weights.shape[:-1], len(self.tasks()), weights.shape[-1])
        return keras.KerasTensor(shape, weights.dtype), experts

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> None:
        """The outputs' masks are attached in `call`, where the experts' are known."""
        del inputs, mask

    def compute_output_spec(
        self, inputs: Nested, training: bool | None = None, mask: Nested = None
    ) -> Nested:
        """Returns shape and dtype of each task's output."""
        del training, mask
        if not self.built:
            self.build(tree.map_structure(lambda leaf: tuple(leaf.shape), inputs))
        found = {}
        for task in self.tasks():
            part = select(inputs, task.reads, f"the gate of {task.name!r}")
            merged = self._merged_specs(inputs, task.gate.compute_output_spec(part))
            tower = task.tower
            found[task.name] = merged if tower is None else tower.compute_output_spec(merged)
        return found

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures training; see `keras.Model.compile`.

        Args:
            optimizer: As in Keras.
            loss: A dict of Keras losses by task, or one for all.
            loss_weights: A dict of numbers by task.
            metrics: A dict of metrics by task.
            **kwargs: The other arguments of `keras.Model.compile`.

        Raises:
            ValueError: If a loss needs the parts of a mixture.
        """
        for one in tree.flatten(loss):
            if isinstance(one, MixtureObjective):
                raise ValueError(
                    message(
                        "The loss of a task is one of its blended output",
                        f"{type(one).__name__}",
                        "Use a Keras loss for each task, or a plait.Mixture for one task",
                    )
                )
        super().compile(optimizer, loss=loss, loss_weights=loss_weights, metrics=metrics, **kwargs)

    def gate_weights(self, x: Any, batch_size: int | None = None) -> np.ndarray:
        """Returns each task's mixing weights for each example.

        Args:
            x: What `predict` takes.
            batch_size: As in `predict`.

        Returns:
            Array of shape `(b, …, t, e)`, tasks in the order of `task_names`. Experts that a task's
            gate does not see, those that other tasks own, have weight zero.
        """
        return super().gate_weights(x, batch_size)

    def responsibilities(
        self, x: Any, y: Mapping[str, Any], batch_size: int | None = None
    ) -> dict[str, np.ndarray]:
        """Returns the posterior weights of each task: `h_tl ∝ w_tl(x) · p(y_t | tower_t(f_l(x)))`.

        The task's loss says what `p` is, as for `Mixture.responsibilities`; a tower is applied to
        each expert alone.

        Args:
            x: What `predict` takes.
            y: Dict of targets by task; tasks may be left out.
            batch_size: As in `predict`.

        Returns:
            A dict of arrays `(b, …, e)` that sum to one over the last axis.

        Raises:
            ValueError: If a task is unknown, the model is not compiled, or no family of
                distributions follows from a loss.
        """
        return multi_gate_parts.responsibilities(self, x, y, batch_size)

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        self.check_same_experts()
        return {**super().get_config(), **multi_gate_config.config_of(self)}

    @classmethod
    def from_config(
        cls, config: Config, custom_objects: Mapping[str, Any] | None = None
    ) -> "MultiGateMixture":
        """Returns a mixture of what `get_config` gave."""
        return cls(**multi_gate_config.arguments_of(config, custom_objects))
