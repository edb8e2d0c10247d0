"""The numbers that stand as constants in the graph which a backend makes of a function."""

import importlib

import keras
import numpy as np

__all__ = ["constants_of"]


def constants_of(function, array):
    """The constants in a function's graph, as NumPy arrays.

    Args:
        function: Maps one tensor to a tensor.
        array: NumPy array, an argument to trace it with.
    """
    found = globals()[f"_{keras.config.backend()}"](function, array)
    return [np.asarray(number) for number in found]


def _jax(function, array):
    jax = importlib.import_module("jax")

    def literals(jaxpr):
        for equation in jaxpr.eqns:
            # The start of a maximum, which jax.nn.softmax writes, is −∞.
            if equation.primitive.name != "max":
                yield from (v.val for v in equation.invars if hasattr(v, "val"))
            for parameter in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")
            ):
                if hasattr(parameter, "jaxpr"):
                    yield from parameter.consts
                    yield from literals(parameter.jaxpr)

    closed = jax.make_jaxpr(function)(array)
    return [*closed.consts, *literals(closed.jaxpr)]


def _tensorflow(function, array):
    tf = importlib.import_module("tensorflow")
    traced = tf.function(function, autograph=False).get_concrete_function(
        tf.TensorSpec(array.shape, array.dtype)
    )
    return [
        tf.make_ndarray(operation.get_attr("value"))
        for operation in traced.graph.get_operations()
        if operation.type == "Const"
    ]


def _torch(function, array):
    torch = importlib.import_module("torch")
    tracing = importlib.import_module("torch.fx.experimental.proxy_tensor")
    traced = tracing.make_fx(lambda tensor: function(tensor))(torch.tensor(array))
    found = []
    for node in traced.graph.nodes:
        found += [v for v in (*node.args, *node.kwargs.values()) if isinstance(v, (int, float))]
        if node.op == "get_attr":
            found.append(getattr(traced, node.target).detach().numpy())
    return found
