"""The devices over which dispatched experts are spread: the one place that asks Keras for them."""

from collections.abc import Sequence

import keras

from plait.experts.runner import ExpertRunner
from plait.experts.stacked import StackedRunner
from plait.experts.variables import StackedExperts
from plait.ops import backend
from plait.ops.devices import runs_within_expert
from plait.typing import Count


def devices_in_force(
    runners: Sequence[ExpertRunner], num_rows: Count, draws: bool
) -> backend.Devices | None:
    """Returns the devices of the distribution in force, where one device's numbers can be kept.

    Rows are split as Keras splits a batch; experts where the layout of their variables splits the
    first axis of a stack.

    Args:
        runners: What runs the experts.
        num_rows: How many rows are dispatched, an integer where it is known.
        draws: Whether a call of an expert draws random numbers. They depend on which rows an
            expert gets together, and on several devices would be others.

    Returns:
        `None` where the dispatch runs as on one device: without a distribution, on a backend
        without such programs, within another expert, for a number of rows that the devices do not
        divide, or for variables that are laid out in another way.
    """
    distribution = keras.distribution.distribution()
    if distribution is None or backend.on_devices is None or draws:
        return None
    if runs_within_expert() or backend.is_vectorizing():
        return None
    mesh, rows = distribution.device_mesh, distribution.batch_dim_name
    sizes = dict(zip(mesh.axis_names, map(int, mesh.shape), strict=True))
    if not isinstance(num_rows, int) or num_rows % sizes[rows]:
        return None
    split = _axes_of_experts(runners, distribution)
    if split is None or len(split) > 1:
        return None
    experts = next((axis for axis in split if sizes[axis] > 1), None)
    shards = sizes[experts] if experts else 1
    if experts and not all(_holds_shares(runner, shards) for runner in runners):
        return None
    if sizes[rows] == shards == 1:
        return None
    return backend.Devices(mesh.backend_mesh, rows, experts, sizes[rows], shards)


def _axes_of_experts(
    runners: Sequence[ExpertRunner], distribution: "keras.distribution.Distribution"
) -> set[str] | None:
    """Returns the axes of the mesh that split the first axis of variables.

    Returns:
        `None` where another axis of a variable is split.
    """
    found = set()
    for runner in runners:
        for variable in runner.state():
            axes = list(distribution.get_variable_layout(variable).axes)
            if any(axes[1:]):
                return None
            found |= set(axes[:1])
    return found - {None}


def _holds_shares(runner: ExpertRunner, shards: int) -> bool:
    """Whether a runner's variables are stacks, in which each device has as many experts."""
    stacked = isinstance(runner, StackedRunner) and isinstance(runner.variables, StackedExperts)
    return stacked and runner.num_experts % shards == 0
