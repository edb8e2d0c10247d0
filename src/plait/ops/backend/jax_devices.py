"""One function on every device of a JAX mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

__all__ = ["on_devices"]


def on_devices(function, devices, variables, rows):
    """Calls a function on each device, with its share of the rows and of the experts.

    Where rows and experts are split over one axis, rows are gathered along it, and each device is
    sent its rows' outputs, summed. Where experts have an axis of their own, every device along it
    has the same rows already, and their outputs are summed.

    Args:
        function: Maps `(variables, rows, shard)` to a list of tensors `(n, …)`, with zeros where
            another device has the result; `shard` is the device's place along the experts' axis.
        devices: A `plait.ops.backend.Devices`.
        variables: Structure of tensors `(e, …)`.
        rows: Structure of tensors `(n, …)`.

    Returns:
        List of tensors `(n, …)`.
    """
    along, experts = devices.rows, devices.experts
    gathers = along == experts

    def on_one(variables, rows):
        shard = 0 if experts is None else jax.lax.axis_index(experts)
        if gathers:
            rows = jax.tree.map(lambda x: jax.lax.all_gather(x, along, tiled=True), rows)
        outputs = function(variables, rows, shard)
        if gathers:
            return [jax.lax.psum_scatter(y, along, tiled=True) for y in outputs]
        return outputs if experts is None else [y[None] for y in outputs]

    # The sum is taken outside: the gradient of a sum inside would be a second sum over devices.
    sums = experts is not None and not gathers
    spec = PartitionSpec(experts, along) if sums else PartitionSpec(along)
    run = jax.shard_map(
        on_one,
        mesh=devices.mesh,
        in_specs=(PartitionSpec(experts), PartitionSpec(along)),
        out_specs=spec,
        check_vma=False,  # loops of dynamic length with a gradient by hand carry no such types
    )
    outputs = run(variables, rows)
    return [jnp.sum(y, axis=0) for y in outputs] if sums else outputs
