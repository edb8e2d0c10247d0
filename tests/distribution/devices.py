"""Trains mixtures on four devices of one JAX process; run with cases as arguments, prints JSON.

The ways: `one` device; `data` parallel; experts `apart`, split over an axis of their own; the
`same` axis for experts and batch; `both`, two devices for the batch times two for the experts.
"""

import contextlib
import json
import sys

import jax
import keras
import numpy as np

import plait
from plait.experts.groups import ExpertBank
from plait.ops import backend

TopK = plait.routers.TopK
batch_norm, dropout = keras.layers.BatchNormalization, keras.layers.Dropout
MESHES = {
    "apart": ((1, 4), ["batch", "expert"], "expert"),
    "same": ((4,), ["batch"], "batch"),
    "both": ((2, 2), ["batch", "expert"], "expert"),
}


def expert(*between):
    """A template of two layers, with others between."""
    layers = [keras.layers.Dense(16, activation="relu"), *between, keras.layers.Dense(4)]
    return keras.Sequential(layers)


def mixture(router, *between):
    return plait.Mixture(expert(*between), num_experts=8, router=router, name="moe")


def by_steps(steps):
    """A mixture that routes each time step; the end is cut off, so that one shape fits all."""
    moe = plait.Mixture(expert(), keras.layers.Dense(8), num_experts=8, router=TopK(2))
    return [keras.layers.RepeatVector(steps), moe, keras.layers.Flatten()]


def tasks():
    """Stacks of several sizes, of which one task reads some."""
    moe = plait.MultiGateMixture(
        expert(), num_experts=4, private_experts=4, tasks=["a", "b"], router=TopK(2)
    )
    inputs = keras.Input((6,))
    return [keras.Model(inputs, keras.layers.Add()(list(moe(inputs).values())))]


def nested():
    """Experts that are sparse mixtures themselves."""
    inner = keras.Sequential(
        [keras.Input((6,)), plait.Mixture(expert(), num_experts=2, router=TopK(1))]
    )
    return [plait.Mixture(inner, num_experts=8, router=TopK(2))]


def shared():
    """Models that the caller owns: every device holds all of them."""
    experts = [expert() for _ in range(4)]
    for one in experts:
        one.build((None, 6))
    return [plait.Mixture(experts, router=TopK(2))]


# Every way in full once; beside it, ways in which a case could go wrong.
CASES = {
    "top2": (lambda: [mixture(TopK(2, load_balance=0.01))], ["data", *MESHES]),
    "softmax": (lambda: [mixture("softmax")], ["data", "apart"]),
    "capacity": (lambda: [mixture(TopK(2, capacity_factor=0.6))], ["data", "same"]),
    "expert_choice": (lambda: [mixture("expert_choice")], ["both"]),
    "steps": (lambda: by_steps(3), ["data"]),
    "tasks": (tasks, ["both"]),
    "nested": (nested, ["data"]),
    "shared": (shared, ["data"]),
    "dropout": (lambda: [mixture(TopK(2, noise=0.1, seed=1), dropout(0.5))], ["apart"]),
    "batch_norm": (lambda: [mixture(TopK(2), batch_norm())], ["data"]),
    "half": (lambda: [mixture(TopK(2))], ["same"]),
}


def made(case):
    """A model with a mixture inside; the same numbers in every way."""
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy("mixed_bfloat16" if case == "half" else "float32")
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(6), *CASES[case][0](), keras.layers.Dense(2)]
    )


def run(case, way):
    """Losses, variables and outputs of a training, and in which of them devices had shares."""
    model, layouts = made(case), None
    if way == "data":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        model = made(case)
    elif way != "one":
        shape, names, axis = MESHES[way]
        layouts = plait.distribution.layout_map(
            model, keras.distribution.DeviceMesh(shape, names), axis
        )
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
        )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    if layouts is not None:
        plait.distribution.distribute(model, layouts)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("float32"), rng.normal(size=(64, 2)).astype("float32")
    in_fit, in_calls = [], []
    fit = {"batch_size": 16, "epochs": 3, "shuffle": False, "verbose": 0}
    with counted(in_fit):
        losses = model.fit(x, y, **fit).history["loss"]
    with counted(in_calls):
        eager = np.asarray(model(x[:8]), "float32")
        odd = np.asarray(model(x[:7]), "float32")
    stacks = [] if layouts is None else layouts.expert_variables
    values = [v.value for v in stacks] + [
        v.value
        for v in model.optimizer.variables
        for s in stacks
        if s.path.replace("/", "_") + "_" in v.path and v.shape == s.shape
    ]
    shares = [max(s.data.shape[0] for s in v.addressable_shards) / v.shape[0] for v in values]
    variables = [np.asarray(jax.device_get(v.value), "float64") for v in model.trainable_variables]
    keras.distribution.set_distribution(None)
    return {
        "losses": losses,
        "variables": [v.tolist() for v in variables],
        "outputs": [eager.tolist(), odd.tolist()],
        "shares": shares,
        "spread": [True in in_fit, False in in_calls],
    }


@contextlib.contextmanager
def counted(spread):
    """Appends to a list, at every dispatch that is spread, whether it is one in training."""
    on_devices, run_dispatched = backend.on_devices, ExpertBank.run_dispatched
    training = []

    def run(bank, inputs, masks, indices, capacity, trains, *rest):
        training.append(trains)
        return run_dispatched(bank, inputs, masks, indices, capacity, trains, *rest)

    def spreads(*args):
        spread.append(training[-1])
        return on_devices(*args)

    backend.on_devices, ExpertBank.run_dispatched = spreads, run
    try:
        yield
    finally:
        backend.on_devices, ExpertBank.run_dispatched = on_devices, run_dispatched


if __name__ == "__main__":
    assert len(keras.distribution.list_devices()) == 4
    for case in sys.argv[1:]:
        found = {way: run(case, way) for way in ["one", *CASES[case][1]]}
        print(json.dumps({"case": case, **found}), flush=True)
