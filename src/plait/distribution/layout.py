"""A layout that splits the experts of every mixture in a model over the devices of a mesh."""

from collections.abc import Iterator

import keras

from plait.compat import flat_layers
from plait.errors import choose_from, message
from plait.mixture import Mixture, MultiGateMixture


class ExpertLayouts(keras.distribution.LayoutMap):
    """A layout map that holds the variables of stacked experts, whatever their names.

    Keras asks by path, and is answered for the present paths of these variables, and of those that
    an optimizer keeps for each of them. Every other path is left to the rules that are added.

    Args:
        device_mesh: The devices.
        variables: Variables of shape `(e, …)`.
        expert_axis: The axis of the mesh over which their first axis is split.

    Example:
    >>> import keras, plait
    >>> mesh = keras.distribution.DeviceMesh((1, 1), ["batch", "expert"], ["cpu:0"])
    >>> stack = keras.Variable(keras.ops.zeros((4, 2)), name="stack")
    >>> plait.distribution.ExpertLayouts(mesh, [stack], "expert").layout_of(stack).axes
    ('expert', None)
    """

    def __init__(
        self,
        device_mesh: keras.distribution.DeviceMesh,
        variables: list[keras.Variable],
        expert_axis: str,
    ) -> None:
        super().__init__(device_mesh)
        # A map is a mapping of its rules: other attributes do not count as such.
        self.expert_variables = variables
        self.expert_axis = expert_axis

    def __getitem__(self, key: str) -> "keras.distribution.TensorLayout | None":
        slot = key.split("/")[-1]  # of an optimizer, which names it after the variable
        for variable in self.expert_variables:
            if key == variable.path or slot.startswith(variable.path.replace("/", "_") + "_"):
                return self.split(variable)
        return super().__getitem__(key)

    def split(self, variable: keras.Variable) -> "keras.distribution.TensorLayout":
        """Returns the layout that splits the first axis of a variable."""
        axes = (self.expert_axis, *(None,) * (len(variable.shape) - 1))
        return keras.distribution.TensorLayout(axes, self.device_mesh)

    def layout_of(self, variable: keras.Variable) -> "keras.distribution.TensorLayout":
        """Returns the layout of a variable of the model; the same on every device without rule."""
        found = self[variable.path]
        if found is None:
            whole = [None] * len(variable.shape)
            return keras.distribution.TensorLayout(whole, self.device_mesh)
        return found

    def layout_of_slot(self, slot: keras.Variable) -> "keras.distribution.TensorLayout":
        """Returns the layout of an optimizer's variable: that of the variable it belongs to."""
        name = slot.path.split("/")[-1]
        for variable in self.expert_variables:
            belongs = name.startswith(variable.path.replace("/", "_") + "_")
            if belongs and tuple(slot.shape) == tuple(variable.shape):
                return self.split(variable)
        return self.layout_of(slot)


def layout_map(
    model: keras.Model,
    mesh: keras.distribution.DeviceMesh,
    expert_axis: str = "expert",
) -> ExpertLayouts:
    """Returns a layout that splits the stacked experts of a model's mixtures over a mesh.

    Variables of shape `(e, …)` have their first axis split over the mesh's axis `expert_axis`. They
    are found in the model, not by a pattern of names: a renamed layer cannot leave them whole.
    What else the model has is the same on every device, unless rules are added to the map. This is
    expert parallelism (Lepikhin et al. 2021).

    Args:
        model: A built model with mixtures at any depth, whose experts are made of a template or
            with `copy_experts=True`.
        mesh: The devices, with an axis named `expert_axis`.
        expert_axis: Name of that axis.

    Returns:
        What `keras.distribution.ModelParallel(layout_map=…)` takes, and `distribute`.

    Raises:
        ValueError: If the mesh has no such axis; if the model has no stacked experts, or is not
            built; if the devices along the axis do not divide a number of experts; or if variables
            that are not alike share a path.

    Example:
    >>> import keras, plait
    >>> mesh = keras.distribution.DeviceMesh((1, 1), ["batch", "expert"], ["cpu:0"])
    >>> moe = plait.Mixture(keras.layers.Dense(3), num_experts=4, name="moe")
    >>> model = keras.Sequential([keras.Input((2,)), moe])
    >>> layouts = plait.distribution.layout_map(model, mesh)
    >>> [layouts[variable.path].axes for variable in moe.layers[-1].variables]
    [('expert', None, None), ('expert', None)]
    """
    if expert_axis not in mesh.axis_names:
        raise ValueError(choose_from("expert_axis", expert_axis, mesh.axis_names))
    size = int(mesh.shape[list(mesh.axis_names).index(expert_axis)])
    found = list(_stacked(model))
    if not found:
        raise ValueError(
            message(
                "A layout of experts needs a built model with stacked experts",
                f"the model {model.name!r}, which has none",
                "Make its mixtures of a template with `num_experts`, or with copy_experts=True, "
                "and call the model once",
            )
        )
    variables = []
    for name, of_stack in found:
        for variable in of_stack:
            if variable.shape[0] % size:
                raise ValueError(
                    message(
                        f"The {size} devices along {expert_axis!r} must divide the experts",
                        f"{variable.shape[0]} experts in {name!r}",
                        f"Use a multiple of {size} experts, or fewer devices along the axis",
                    )
                )
            variables.append(variable)
    _check_paths(model, variables)
    return ExpertLayouts(mesh, variables, expert_axis)


def distribute(model: keras.Model, layouts: ExpertLayouts) -> None:
    """Lays out what a model and its optimizer hold already, as a layout map says.

    Keras lays out variables when they are made, and by path; a model that exists stays where it is.

    First `layout_map`, then `keras.distribution.set_distribution`, then `compile`, then this: what
    `compile` makes, such as metrics, must be laid out too.

    Args:
        model: The model that `layout_map` was given. Where it is compiled, the variables of its
            optimizer are made, and laid out as the variables that they belong to.
        layouts: What `layout_map` returned.

    Raises:
        ValueError: If the model does not hold the variables that the map was made of.

    Example:
    >>> import keras, plait
    >>> mesh = keras.distribution.DeviceMesh((1, 1), ["batch", "expert"], ["cpu:0"])
    >>> moe = plait.Mixture(keras.layers.Dense(3), num_experts=4)
    >>> model = keras.Sequential([keras.Input((2,)), moe])
    >>> layouts = plait.distribution.layout_map(model, mesh)
    >>> if keras.backend.backend() == "jax":  # the only one on which Keras splits variables
    ...     plait.distribution.distribute(model, layouts)
    """
    held = {id(variable) for variable in model.variables}
    missing = [v.path for v in layouts.expert_variables if id(v) not in held]
    if missing:
        raise ValueError(
            message(
                "A model is laid out by a map that was made of it",
                f"the model {model.name!r}, which does not hold {missing[0]!r}",
                "Call layout_map on this model",
            )
        )
    for variable in model.variables:
        _lay_out(variable, layouts.layout_of(variable))
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        for slot in optimizer.variables:
            _lay_out(slot, layouts.layout_of_slot(slot))


def _lay_out(variable: keras.Variable, layout: "keras.distribution.TensorLayout") -> None:
    variable.assign(keras.distribution.distribute_tensor(variable.value, layout))


def _stacked(model: keras.layers.Layer) -> Iterator[tuple[str, list[keras.Variable]]]:
    """Yields name and variables of every stack of experts in a model."""
    for layer in flat_layers(model):
        if isinstance(layer, (Mixture, MultiGateMixture)):
            for stack in layer.stacks():
                yield layer.name, stack.variables


def _check_paths(model: keras.layers.Layer, variables: list[keras.Variable]) -> None:
    """Checks that Keras can tell the variables of stacks from all others.

    Raises:
        ValueError: If one of them shares its path with another variable.
    """
    ours = {id(variable) for variable in variables}
    paths = {variable.path for variable in variables}
    for variable in model.variables:
        if variable.path in paths and id(variable) not in ours:
            raise ValueError(
                message(
                    "Keras lays out variables by path, which must differ",
                    f"the path {variable.path!r} of stacked experts and of another variable",
                    "Give the mixture a name of its own",
                )
            )
