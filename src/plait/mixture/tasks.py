"""The tasks of a mixture of several gates: names, private experts, gates, routers, towers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras

from plait import routers
from plait.errors import choose_from, message
from plait.mixture import gates
from plait.mixture.build import check_experts
from plait.mixture.inputs import Selector
from plait.typing import Config

SHARED = "shared"
"""Name of the experts that every task reads, and of the output that reads every expert."""

Tasks: TypeAlias = Mapping[str, keras.layers.Layer | None] | Sequence[str]
Private: TypeAlias = int | Mapping[str, list[keras.layers.Layer]]


class Task(NamedTuple):
    """One output of a mixture of several gates.

    Attributes:
        name: Its key among the outputs.
        experts: Positions of the experts that its gate scores.
        gate: The gate.
        router: What makes weights of the scores; `None` takes them as they are.
        reads: What of the input the gate reads.
        tower: What makes the output of the blend, or `None`.
    """

    name: str
    experts: list[int]
    gate: keras.layers.Layer
    router: routers.Router | None
    reads: Selector
    tower: keras.layers.Layer | None

    @property
    def sparse(self) -> bool:
        """Whether the router gives some experts a weight of zero."""
        return self.router is not None and self.router.sparse


class Members(NamedTuple):
    """The experts of a mixture of several gates.

    Attributes:
        given: All of them, the shared ones first and then those of each task; or the template.
        total: How many there are.
        of_group: Positions of the shared ones, under `SHARED`, and of each task's own.
    """

    given: list[keras.layers.Layer]
    total: int
    of_group: dict[str, list[int]]


def towers_of(tasks: Tasks | None) -> dict[str, keras.layers.Layer | None]:
    """Returns the tower of each task, `None` where it has none.

    Raises:
        ValueError: If there are no tasks, or a name is taken twice or cannot name a layer.
        TypeError: If a name is no string, or a tower no Keras layer.
    """
    if not isinstance(tasks, (Mapping, list, tuple)) or not tasks:
        raise ValueError(
            message(
                "`tasks` must name at least one task",
                f"tasks={tasks!r}",
                "Pass a list of names, or a dict from names to towers",
            )
        )
    towers = dict(tasks) if isinstance(tasks, Mapping) else dict.fromkeys(tasks)
    if len(towers) != len(tasks):
        raise ValueError(
            message("Names of tasks must differ", f"tasks={list(tasks)}", "Rename one of them")
        )
    for name, tower in towers.items():
        if not isinstance(name, str):
            raise TypeError(
                message("The name of a task must be a string", f"{name!r}", f"Use {str(name)!r}")
            )
        if not name or "/" in name or name == SHARED:
            raise ValueError(
                message(
                    f"The name of a task must not be empty, hold a '/', or be {SHARED!r}, which "
                    "names the experts that every task reads",
                    repr(name),
                    "Use another name",
                )
            )
        if tower is not None and not isinstance(tower, keras.layers.Layer):
            raise TypeError(
                message(
                    f"The tower of task {name!r} must be a Keras model or layer, or None",
                    f"{tower!r} of type {type(tower).__name__}",
                    "Pass for example keras.layers.Dense(1)",
                )
            )
    return towers


def members_of(
    experts: list[keras.layers.Layer] | keras.layers.Layer,
    num_experts: int | None,
    private: Private,
    tasks: Sequence[str],
) -> Members:
    """Returns the shared and the private experts.

    Args:
        experts: The shared ones, or a template of all.
        num_experts: How many shared ones, where `experts` is a template.
        private: How many each task has of its own, made of the template; or a dict of lists.
        tasks: Names of the tasks.

    Raises:
        ValueError: If their number is contradicted or missing, or a name is unknown.
        TypeError: If one is no Keras layer.
    """
    given, count = check_experts(experts, num_experts)
    of_group = {SHARED: list(range(count))}
    template = isinstance(experts, keras.layers.Layer)
    if isinstance(private, Mapping):
        check_keys("private_experts", private, tasks)
        if template:
            raise ValueError(
                message(
                    "With a template `private_experts` is the number of each task's own experts",
                    f"a dict with the keys {sorted(private)}",
                    "Pass a list of shared experts beside it, or a number",
                )
            )
    elif not isinstance(private, int) or isinstance(private, bool) or private < 0:
        raise ValueError(
            message(
                "`private_experts` must be an integer of at least 0, or a dict of lists by task",
                f"private_experts={private!r}",
                "Use private_experts=0 for none",
            )
        )
    elif private and not template:
        raise ValueError(
            message(
                "A number of private experts needs a template to make them of",
                f"private_experts={private} and a list of {count} experts",
                "Pass one template with `num_experts`, or private_experts={'task': [model, …], …}",
            )
        )
    for task in tasks:
        own = private if isinstance(private, int) else list(private.get(task, []))
        if not isinstance(own, int):
            if own:
                check_experts(own, None)
            given = [*given, *own]
            own = len(own)
        of_group[task] = list(range(count, count + own))
        count += own
    return Members(given, count, of_group)


def expert_selectors(expert_inputs: Any, members: Members) -> Selector:
    """Returns what the experts read, one entry each where it was said by group.

    Args:
        expert_inputs: As for a `Mixture`; or a dict from `SHARED` and tasks to what theirs read.
        members: The experts.
    """
    if not isinstance(expert_inputs, Mapping):
        return expert_inputs
    check_keys("expert_inputs", expert_inputs, members.of_group)
    found: list[Selector] = [None] * members.total
    for group, positions in members.of_group.items():
        for position in positions:
            found[position] = expert_inputs.get(group)
    return found


def make_tasks(
    towers: Mapping[str, keras.layers.Layer | None],
    members: Members,
    *,
    gate_specs: Any,
    router: Any,
    gate_inputs: Any,
    shared_output: bool,
) -> list[Task]:
    """Makes a gate and a router for each task, and for the shared output.

    Args:
        towers: By task, in order.
        members: The experts.
        gate_specs: What all gates are, or a dict by task.
        router: What all routers are, of which each task gets a copy; or a dict by task.
        gate_inputs: What all gates read, or a dict by task.
        shared_output: Whether there is an output that reads every expert.

    Raises:
        ValueError: If a name is unknown.
        TypeError: If one layer is to be the gate of all tasks.
    """
    names = [*towers, *([SHARED] if shared_output else [])]
    if isinstance(gate_specs, keras.layers.Layer):
        raise TypeError(
            message(
                "Each task has a gate of its own",
                f"the layer {gate_specs.name!r} as the gate of all",
                f"Pass gates={{{names[0]!r}: layer, …}}, or the name of a gate, such as 'linear'",
            )
        )
    for what, value in (("gates", gate_specs), ("gate_inputs", gate_inputs)):
        if isinstance(value, Mapping):
            check_keys(what, value, names)
    by_name = isinstance(router, Mapping) and "class_name" not in router
    if by_name:
        check_keys("router", router, names)
    made = []
    for number, name in enumerate(names):
        own = members.of_group.get(name, []) if name != SHARED else range(members.total)
        experts = list(own) if name == SHARED else [*members.of_group[SHARED], *own]
        spec = gate_specs.get(name) if isinstance(gate_specs, Mapping) else gate_specs
        gate = gates.get(spec, len(experts), name=f"gate_{plain(name)}")
        rule = router.get(name) if by_name else router
        if rule is None and gates.is_learned(gate) and gate is not spec:
            rule = "softmax"
        rule = routers.get(rule)
        if rule is not None and not by_name:
            rule = _copy(rule, number, plain(name))
        reads = gate_inputs.get(name) if isinstance(gate_inputs, Mapping) else gate_inputs
        made.append(Task(name, experts, gate, rule, reads, towers.get(name)))
    return made


def check_keys(what: str, given: Mapping[str, Any], names: Any) -> None:
    """Checks that a dict by task has no other keys.

    Raises:
        ValueError: If it has.
    """
    for key in given:
        if key not in names:
            raise ValueError(choose_from(f"a key of {what}", key, map(str, names)))


def plain(name: str) -> str:
    """Returns a task's name in letters that every backend takes in the path of a variable."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)


def _copy(router: routers.Router, number: int, name: str) -> routers.Router:
    """Returns a router like the given one, with state of its own."""
    config: Config = router.get_config()
    if isinstance(config.get("seed"), int):
        config["seed"] += number
    return type(router).from_config({**config, "name": f"{router.name}_{name}"})
