"""The forward pass for several routings over one set of experts, each of which runs once."""

import math
from collections.abc import Sequence

from keras import ops, tree

from plait.compat import attach_masks
from plait.experts.groups import ExpertBank
from plait.mixture.forward import (
    Fed,
    Merged,
    chosen_experts,
    fold_rows,
    run_chosen,
    run_every,
    step_masks,
    unfold_rows,
    without_unchosen,
)
from plait.mixture.tasks import Task
from plait.ops.merging import merge_chosen, merge_stacked
from plait.ops.routing import Routing, chosen
from plait.ops.union import distinct, numbered, spread
from plait.typing import Nested, Tensor


def joined(tasks: Sequence[Task], routings: Sequence[Routing], num_experts: int) -> Routing:
    """Returns which experts any task chose; of its weights only the shape means anything.

    Args:
        tasks: The tasks.
        routings: Of each, among the experts that its gate scores.
        num_experts: `e`, how many experts there are in all.
    """
    weights = spread(routings[0].weights, tasks[0].experts, num_experts)
    if not all(task.sparse for task in tasks):
        return Routing(weights)
    indices = [
        numbered(chosen_experts(routing), task.experts, num_experts)
        for task, routing in zip(tasks, routings, strict=True)
    ]
    return Routing(weights, distinct(ops.concatenate(indices, axis=-1), num_experts))


def merge_every_task(
    bank: ExpertBank,
    tasks: Sequence[Task],
    routings: Sequence[Routing],
    fed: Fed,
    *,
    by_step: bool,
    training: bool,
    compute_dtype: str,
) -> Merged:
    """Runs every expert on every row, and merges the outputs for each task.

    Args:
        bank: The experts.
        tasks: The tasks.
        routings: Of each, among the experts that its gate scores.
        fed: What the experts read.
        by_step: Whether experts see the routed axes as one axis of rows.
        training: As in Keras.
        compute_dtype: The mixture's compute dtype.

    Returns:
        A dict by task, and the losses that the experts added.
    """
    union = joined(tasks, routings, bank.num_experts)
    parts = run_every(
        bank, union, fed, by_step=by_step, sparse=union.indices is not None, training=training
    )
    found = {}
    for task, routing in zip(tasks, routings, strict=True):
        outputs = _of_experts(parts.outputs, task.experts)
        if task.sparse:
            keep = chosen(chosen_experts(routing), len(task.experts))
            outputs = without_unchosen(outputs, keep)
        merged = merge_stacked(routing.weights, outputs, compute_dtype)
        found[task.name] = attach_masks(merged, parts.masks, fresh=True)
    return Merged(found, parts.losses)


def _of_experts(outputs: Nested, positions: Sequence[int]) -> Nested:
    """Returns the outputs `(e, …)` of some experts, which lie in one or two runs."""
    # The shared experts come first, then those of each task: one or two runs of numbers.
    shared = next((n for n, p in enumerate(positions) if p != n), len(positions))
    runs = [(0, shared)] if shared else []
    if shared < len(positions):
        runs.append((positions[shared], positions[-1] + 1))

    def pick(leaf: Tensor) -> Tensor:
        if runs == [(0, leaf.shape[0])]:
            return leaf
        return ops.concatenate([leaf[first:last] for first, last in runs])

    return tree.map_structure(pick, outputs)


def merge_chosen_of_tasks(
    bank: ExpertBank,
    tasks: Sequence[Task],
    routings: Sequence[Routing],
    fed: Fed,
    *,
    training: bool,
    compute_dtype: str,
) -> Merged:
    """Runs each expert once on the rows that any task chose it for, and merges for each task.

    Args:
        bank: The experts.
        tasks: The tasks, each with a sparse router.
        routings: See `merge_every_task`.
        fed: See `merge_every_task`.
        training: As in Keras.
        compute_dtype: See `merge_every_task`.

    Returns:
        See `merge_every_task`.
    """
    num_experts = bank.num_experts
    union = joined(tasks, routings, num_experts)
    rank = len(union.weights.shape) - 1
    slots, outputs, masks = run_chosen(
        bank, union, fed, capacity=_capacity(tasks, union), training=training
    )
    found = {}
    for task, routing in zip(tasks, routings, strict=True):
        weights = fold_rows(spread(routing.weights, task.experts, num_experts), rank)
        own = fold_rows(numbered(chosen_experts(routing), task.experts, num_experts), rank)
        mine = ops.any(ops.equal(ops.expand_dims(slots, -1), ops.expand_dims(own, -2)), axis=-1)
        indices = ops.where(mine, slots, num_experts)
        # What a row chose for another task alone may be NaN: times zero it is NaN still.
        merged = merge_chosen(weights, indices, _only(outputs, mine), compute_dtype)
        merged = unfold_rows(merged, routing.weights, rank)
        task_masks = masks if rank == 1 else step_masks(merged, fed.masks)
        found[task.name] = attach_masks(merged, task_masks, fresh=True)
    return Merged(found, [])


def _only(outputs: Nested, keep: Tensor) -> Nested:
    """Returns outputs `(n, s, …, u)` with zeros where `keep` `(n, s)` is false."""

    def clear(leaf: Tensor) -> Tensor:
        shape = (*ops.shape(keep), *(1,) * (len(leaf.shape) - 2))
        return ops.where(ops.reshape(keep, shape), leaf, ops.zeros_like(leaf))

    return tree.map_structure(clear, outputs)


def _capacity(tasks: Sequence[Task], union: Routing) -> int | None:
    """Returns the most rows that one expert may have from all tasks, or `None` for any load."""
    rows = math.prod(ops.shape(union.weights)[:-1])
    total = 0
    for task in tasks:
        assert task.router is not None  # without a router nothing is dispatched
        capacity = task.router.capacity(rows, len(task.experts))
        if not isinstance(capacity, int):
            return None
        total += capacity
    return min(total, rows)
