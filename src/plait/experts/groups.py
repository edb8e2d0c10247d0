"""All experts of a mixture: which run together, which alone, and in which order."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter

import keras
from keras import ops, tree

from plait.compat import flat_layers
from plait.errors import first_line, message
from plait.experts.devices import devices_in_force
from plait.experts.dispatch import fed_to_groups, with_all_masks
from plait.experts.kept import KeptCalls
from plait.experts.plan import Placed, Plan, plan_of, rows_of, share, traits_of_group
from plait.experts.runner import ExpertRunner, Results, Rows, input_of
from plait.experts.seeds import draws
from plait.experts.signature import alike
from plait.experts.single import SingleExpert
from plait.experts.stacked import StackedRunner
from plait.experts.variables import SharedVariables
from plait.experts.watch import Watch
from plait.ops import backend
from plait.ops.combine import combine_masks
from plait.ops.devices import Merge
from plait.ops.dispatch import apply_groups
from plait.ops.merging import SlotMerge
from plait.ops.tracing import runs_one_by_one
from plait.typing import Mask, Nested, Tensor


class ExpertBank:
    """The experts of one mixture, in groups that run together.

    Args:
        placed: The groups; every expert is in one of them.
    """

    def __init__(self, placed: Sequence[Placed]) -> None:
        self.placed = list(placed)
        self.num_experts = sum(len(group.positions) for group in placed)
        self._at = {
            position: (group.runner, local)
            for group in placed
            for local, position in enumerate(group.positions)
        }
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._with_losses: dict[tuple[int, bool], bool] = {}
        self._layers: list[keras.layers.Layer] = []
        self._kept = KeptCalls()
        self._watch = Watch()

    def groups(self, dispatched: bool) -> list[Placed]:
        """Returns the experts' groups for a call.

        Args:
            dispatched: Whether experts run on the rows that chose them, or all on all rows.
        """
        if dispatched:
            self._refresh()
        return self.placed

    def _refresh(self) -> None:
        """Drops what was found out where a layer's attribute was assigned or changed in place."""
        if self._watch.changed(runner.representative() for _, runner in self.placed):
            self._forget()

    def _forget(self) -> None:
        """Drops what was found out about the experts."""
        self._layers = []
        self._plans.clear()
        self._with_losses.clear()
        self._kept.clear()

    def values(self, expert: int) -> list[Tensor]:
        """Returns the present values of one expert's variables."""
        runner, local = self._at[expert]
        return runner.values(local)

    def set_values(self, expert: int, values: Sequence[Tensor]) -> None:
        """Sets the variables of one expert."""
        runner, local = self._at[expert]
        runner.set_values(local, values)

    def set_all(self, values: Sequence[Sequence[Tensor]]) -> None:
        """Sets the variables of every expert; each stack of variables is written once.

        Args:
            values: For each expert, a value for each of its variables.
        """
        for positions, runner in self.placed:
            runner.set_all([values[position] for position in positions])

    def representative(self, expert: int) -> keras.layers.Layer:
        """Returns the layer that is called for an expert."""
        return self._at[expert][0].representative()

    def output_specs(self, inputs: Sequence[Nested]) -> list[tuple[int, str, Nested]]:
        """Returns position, name and output specs of one expert for each kind there is.

        Args:
            inputs: Symbolic inputs that all experts share, or one for each.

        Raises:
            ValueError: If an expert does not take its input.
        """
        specs = []
        for positions, runner in self.placed:
            layer = runner.representative()
            fed = share(inputs, positions)
            for position, part in zip(positions, fed, strict=False):
                specs.append((position, layer.name, _output_specs(layer, position, part)))
        return sorted(specs, key=lambda entry: entry[0])

    def run_all(
        self,
        inputs: Sequence[Nested],
        masks: Sequence[list[Mask]] | None,
        training: bool,
        used: Tensor | None = None,
    ) -> Results:
        """Runs every expert on every example.

        Args:
            inputs: One structure that all experts share, or one for each.
            masks: As `inputs`, flat lists; or `None`.
            training: As in Keras.
            used: `None`, or bool `(e,)`: an expert where it is false gets a gradient of zero.

        Returns:
            Leaves `(e, b, …, u)`, and for each leaf one mask: where it is valid for every expert.
        """
        groups = self.groups(dispatched=False)
        results = []
        for positions, runner in groups:
            guard = used
            if guard is not None:
                # Losses are recorded by Keras in a plain call of the layer: no guard then.
                one_by_one = [guard[position] for position in positions]
                adds_losses = self._adds_losses(positions, runner, inputs, masks, training)
                guard = None if adds_losses else ops.stack(one_by_one)
            fed = share(inputs, positions)
            fed_masks = share(masks, positions) if masks else None
            if fed_masks and len(fed_masks) == 1:
                fed_masks = fed_masks * len(fed)
            results.append(runner.run_all(fed, fed_masks, training, guard))
        order = [position for positions, _ in groups for position in positions]
        if len(results) == 1 and order == sorted(order):
            valid = [None if mask is None else ops.all(mask, axis=0) for mask in results[0].masks]
            return Results(results[0].outputs, valid, results[0].losses)
        leaves = zip(*(tree.flatten(result.outputs) for result in results), strict=True)
        joined = [_in_order(column, order) for column in leaves]
        valid = [
            combine_masks([None if mask is None else ops.all(mask, axis=0) for mask in column])
            for column in zip(*(result.masks for result in results), strict=True)
        ]
        outputs = tree.pack_sequence_as(results[0].outputs, joined)
        return Results(outputs, valid, [loss for result in results for loss in result.losses])

    def couples_rows(
        self,
        inputs: Sequence[Nested],
        masks: Sequence[list[Mask]] | None,
        training: bool,
        with_losses: bool,
    ) -> bool:
        """Whether a call of any expert depends on the whole batch, of which it would see a part.

        Args:
            inputs: As for `run_all`; of tensors only shapes and dtypes are read.
            masks: As for `run_all`.
            training: As in Keras.
            with_losses: Whether losses that the call adds will be read.
        """
        if not training and not with_losses:
            return False
        for each in self._plan(inputs, masks, training).traits:
            if each.moves_state or (each.adds_losses and with_losses):
                return True
        return False

    def _plan(
        self, inputs: Sequence[Nested], masks: Sequence[list[Mask]] | None, training: bool
    ) -> Plan:
        """Returns how experts run, which depends on flags and on what is masked, not on sizes."""
        groups = self.groups(dispatched=True)
        if training and not self._layers:
            self._layers = [x for _, r in groups for x in flat_layers(r.representative())]
        flags = tuple(map(_trainable, self._layers)) if training else ()
        masked = None if masks is None else tuple(m is not None for part in masks for m in part)
        leaves = tree.flatten(list(inputs))
        kinds = tuple(map(_rank, leaves)), tuple(map(_dtype, leaves))
        key = (id(groups), training, masked, flags, kinds)
        if key not in self._plans:
            self._plans[key] = plan_of(groups, inputs, masks, training)
        return self._plans[key]

    def _adds_losses(
        self,
        positions: Sequence[int],
        runner: ExpertRunner,
        inputs: Sequence[Nested],
        masks: Sequence[list[Mask]] | None,
        training: bool,
    ) -> bool:
        """Whether a call of some experts adds losses, found once."""
        key = (id(runner), training)
        if key not in self._with_losses:
            traits = traits_of_group(positions, runner, inputs, masks, training)
            self._with_losses[key] = traits.adds_losses
        return self._with_losses[key]

    def run_dispatched(
        self,
        inputs: Sequence[Nested],
        masks: Sequence[list[Mask]] | None,
        indices: Tensor,
        capacity: int | None,
        training: bool,
        merge: SlotMerge | None = None,
        weights: Tensor = None,
    ) -> Results:
        """Runs each expert on the rows that chose it, and on no others.

        Args:
            inputs: As for `run_all`; leaves `(n, …)`.
            masks: As for `run_all`.
            indices: int32 `(n, k)`; the number of experts marks an empty slot.
            capacity: Most rows that one expert may have, or `None` for any load.
            training: As in Keras.
            merge: What is made of the outputs; `None` leaves them.
            weights: Tensor `(n, e)` for `merge`.

        Returns:
            Leaves `(n, k, …, u)`, zero in empty slots, or what `merge` returns; and for each leaf
            of the outputs a mask `(n, …)`.
        """
        plan = self._plan(inputs, masks, training)
        rows = rows_of(inputs, masks, self.num_experts)
        variables = [variable for _, runner in plan.groups for variable in runner.state()]
        devices = devices_in_force(
            [runner for _, runner in plan.groups],
            ops.shape(indices)[0],
            any(traits.draws for traits in plan.traits),
        )
        # Experts that are apart send one output a row, not one a choice.
        apart = devices is not None and devices.experts is not None and plan.numbers is None
        early = merge if apart and merge is not None and merge.adds else None

        def run() -> Results:
            vectorized = tuple(runner.vectorized for _, runner in plan.groups)
            key = (id(plan), capacity, devices, early, vectorized, tuple(rows.part_of), training)
            function = partial(
                self._run_dispatched, plan, rows.part_of, capacity, devices, early, training
            )
            weighed = weights if early else None
            return self._kept.run(
                key, variables, function, rows.parts, rows.masks, indices, weighed
            )

        results = self._unless_refused(plan.groups, run)
        if merge is None or early is not None:
            return results
        return results._replace(outputs=merge(weights, indices, results.outputs))

    def _run_dispatched(
        self,
        plan: Plan,
        part_of: list[int],
        capacity: int | None,
        devices: backend.Devices | None,
        merge: SlotMerge | None,
        training: bool,
        parts: list[Nested],
        masks: list[list[Mask] | None],
        indices: Tensor,
        weights: Tensor,
    ) -> Results:
        """Runs each expert on the rows that chose it, as `plan` says."""
        if plan.numbers is not None:
            indices = ops.take(ops.convert_to_tensor(plan.numbers, dtype="int32"), indices)
        rows = Rows(parts, masks, part_of)
        groups = []
        for (positions, runner), traits in zip(plan.groups, plan.traits, strict=True):
            for group in runner.dispatched(rows, positions, training):
                groups.append(
                    with_all_masks(group, traits.mask_ranks, plan.mask_ranks, plan.dtypes)
                )
        within = None
        if merge is not None:
            within = Merge(lambda w, i, found: (merge(w, i, found[0]), found[1]), weights)
        outputs, kept = apply_groups(
            groups, fed_to_groups(rows), indices, capacity, devices, within
        )
        if training:
            for _, runner in plan.groups:
                runner.after_dispatch()
        flags = iter(kept)
        valid = [
            None if rank is None else _valid(next(flags), indices < self.num_experts)
            for rank in plan.mask_ranks
        ]
        return Results(outputs, valid, [])

    def _unless_refused(self, groups: Sequence[Placed], run: Callable[[], Results]) -> Results:
        """Returns `run()`, one expert after another where the backend cannot vectorise them."""
        try:
            return run()
        except Exception as error:
            vectorized = [runner for _, runner in groups if runner.vectorized]
            if not vectorized or not backend.refuses(error):
                raise
            reason = first_line(error)
        for runner in vectorized:
            runner.stop_vectorizing(reason)
        return run()


class SharedBank(ExpertBank):
    """Experts that the caller owns, which may change between calls.

    Groups of alike experts are formed again once an attribute of one of their layers has changed.

    Args:
        experts: Built Keras layers or models.
        execution: `"loop"` runs each by itself; `"stacked"` stacks the values of alike experts in
            each call; `"auto"` where that is faster.
        inputs: Symbolic inputs that all experts share, or one for each.
    """

    def __init__(
        self, experts: Sequence[keras.layers.Layer], execution: str, inputs: Sequence[Nested]
    ) -> None:
        super().__init__([Placed([i], SingleExpert(e)) for i, e in enumerate(experts)])
        self.experts = list(experts)
        self.execution = execution
        self.inputs = inputs
        self._stacked: list[Placed] = []

    def groups(self, dispatched: bool) -> list[Placed]:
        """Returns the experts' groups for a call; see `ExpertBank.groups`."""
        single = self.execution == "loop" or self.num_experts == 1 or runs_one_by_one()
        if self.execution == "auto" and not dispatched:
            single = single or not self._stacking_pays()
        if dispatched or not single:
            self._refresh()
        if single:
            return self.placed
        if not self._stacked:
            self._stacked = [
                group
                for positions in alike(self.experts)
                for group in (
                    [Placed(positions, self._stack(positions))]
                    if len(positions) > 1 and self.why_single(positions[0]) is None
                    else [self.placed[position] for position in positions]
                )
            ]
        return self._stacked

    def _stacking_pays(self) -> bool:
        sizes = [math.prod(variable.shape) for variable in self.experts[0].variables]
        return backend.stacking_pays(sum(sizes), self.num_experts)

    def _forget(self) -> None:
        """As `ExpertBank._forget`; drops the groups too."""
        super()._forget()
        self._stacked = []

    def _stack(self, positions: Sequence[int]) -> StackedRunner:
        members = [self.experts[position] for position in positions]
        return StackedRunner(members[0], SharedVariables(members))

    def why_single(self, position: int) -> str | None:
        """Returns why an expert runs by itself though alike ones could be stacked, or `None`.

        A loss that a call adds is kept with the layer that added it. A vectorised call draws other
        random numbers than single calls do, except on JAX.
        """
        expert = self.experts[position]
        if draws(expert) and not backend.draws_like_loops:
            return "it draws random numbers"
        inputs = [input_of(self.inputs, position)]
        runner = self.placed[position].runner
        traits = traits_of_group([0], runner, inputs, None, training=True)
        return "its call adds losses" if traits.adds_losses else None


_trainable = attrgetter("trainable")
_rank = attrgetter("ndim")
_dtype = attrgetter("dtype")


def _first(pair: tuple[int, Tensor]) -> int:
    return pair[0]


def _output_specs(layer: keras.layers.Layer, position: int, inputs: Nested) -> Nested:
    """Returns what an expert gives, or raises an error that names it."""
    try:
        return layer.compute_output_spec(inputs)
    except backend.SHAPE_ERRORS as error:
        shapes = tree.map_structure(lambda spec: tuple(spec.shape), inputs)
        raise ValueError(
            message(
                f"Expert {position} ({layer.name!r}) must take the input that it is given",
                f"shape {shapes}: {first_line(error)}",
                "Where experts read different inputs, say who reads which by `expert_inputs`",
            )
        ) from error


def _in_order(parts: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """Returns one tensor `(e, …)` in the experts' order from those of the groups.

    Args:
        parts: Tensors `(e_g, …)`.
        order: Positions of the experts, group after group.
    """
    if list(order) == sorted(order):
        return parts[0] if len(parts) == 1 else ops.concatenate(parts)
    slices = [one for part in parts for one in backend.unstack(part)]
    return ops.stack([one for _, one in sorted(zip(order, slices, strict=True), key=_first)])


def _valid(mask: Tensor, filled: Tensor) -> Tensor:
    """Returns where every chosen expert's output is valid.

    Args:
        mask: int `(n, k, …)`.
        filled: bool `(n, k)`, false in empty slots.
    """
    rank = len(mask.shape) - len(filled.shape)
    empty = ops.reshape(ops.logical_not(filled), (*ops.shape(filled), *(1,) * rank))
    return ops.all(ops.logical_or(ops.cast(mask, "bool"), empty), axis=1)
