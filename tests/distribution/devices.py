"""Trains a mixture on the devices of one JAX process; run with the way as argument, prints JSON.

The ways: `one` device, `data` parallel, `experts` split over the devices.
"""

import json
import sys

import jax
import keras
import numpy as np

import plait


def made(router):
    """A model with a mixture inside, of eight experts; the same numbers in every process."""
    keras.utils.set_random_seed(3)
    expert = keras.Sequential([keras.layers.Dense(16, activation="relu"), keras.layers.Dense(4)])
    mix = plait.Mixture(expert, num_experts=8, router=router, name="moe")
    return keras.Sequential([keras.Input((6,)), mix, keras.layers.Dense(2)])


def run(way, router):
    """Losses of three epochs, and the largest share of a stack that one device holds."""
    devices = keras.distribution.list_devices()
    assert len(devices) == 4
    model = made(router)
    if way == "data":
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
        model = made(router)
    if way == "experts":
        mesh = keras.distribution.DeviceMesh((1, 4), ["batch", "expert"], devices)
        layouts = plait.distribution.layout_map(model, mesh)
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
        )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    if way == "experts":
        plait.distribution.distribute(model, layouts)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("float32"), rng.normal(size=(64, 2)).astype("float32")
    losses = model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0).history["loss"]
    stacks = [v for v in [*model.variables, *model.optimizer.variables] if 8 in v.shape[:1]]
    stacks = [v for v in stacks if len(v.shape) > 1 and v.shape[-1] in (16, 4)]
    shares = [max(s.data.shape[0] for s in v.value.addressable_shards) / 8 for v in stacks]
    kernel = np.asarray(jax.device_get(model.layers[0].expert(0).layers[0].kernel.value))
    return {
        "losses": losses,
        "share": max(shares),
        "stacks": len(shares),
        "kernel": kernel.tolist(),
        "output": np.asarray(model.predict(x[:8], verbose=0)).tolist(),
    }


if __name__ == "__main__":
    way, router = sys.argv[1:]
    print(json.dumps(run(way, plait.routers.TopK(2) if router == "top2" else router)))
