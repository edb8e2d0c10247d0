"""CPU seconds of a training step on one device and on four, data parallel or with experts split.

The devices are virtual ones of one CPU, so that work which every device repeats shows as more CPU
time, whatever the number of cores. Run as `python -m benchmarks.devices`; it writes
`benchmarks/results/devices.md`. Each figure comes from a process of its own, `time.process_time`
over eight steps after two.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

PAGE = Path(__file__).parent / "results" / "devices.md"
FEATURES, HIDDEN, ROWS, STEPS = 128, 512, 4096, 8
CASES = {
    "dense": "one dense net",
    "top2_of_8": "top-2 of 8",
    "top2_of_64": "top-2 of 64",
    "capacity": "top-2 of 64, capacity 1.25",
}
GRADIENTS = "gradients"
WAYS = {
    "one": "one device",
    "data": "four, data parallel",
    "same": "four, experts split over the batch's axis",
}


def made(case):
    import keras

    import plait

    keras.utils.set_random_seed(1)
    net = keras.Sequential(
        [keras.layers.Dense(HIDDEN, activation="relu"), keras.layers.Dense(FEATURES)]
    )
    if case == "dense":
        return keras.Sequential([keras.Input((FEATURES,)), net])
    router = plait.routers.TopK(2, capacity_factor=1.25 if case == "capacity" else None)
    moe = plait.Mixture(net, num_experts=8 if case == "top2_of_8" else 64, router=router)
    return keras.Sequential([keras.Input((FEATURES,)), moe])


def measure(case, way, spread):
    """Returns CPU seconds per step."""
    import keras
    import numpy as np

    import plait
    from plait.experts import groups

    if not spread:
        groups.devices_in_force = lambda *_: None
    if way == "data":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    model, layouts = made(case), None
    if way == "same":
        mesh = keras.distribution.DeviceMesh((4,), ["batch"])
        layouts = plait.distribution.layout_map(model, mesh, "batch")
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
        )
    model.compile("sgd", "mse")
    if layouts is not None:
        plait.distribution.distribute(model, layouts)
    x = np.random.default_rng(0).normal(size=(ROWS, FEATURES)).astype("float32")
    model.fit(x, x, batch_size=ROWS, epochs=2, verbose=0)
    start = time.process_time()
    model.fit(x, x, batch_size=ROWS, epochs=STEPS, verbose=0)
    return (time.process_time() - start) / STEPS


def sum_of_gradients():
    """Returns CPU seconds of what data parallel adds for 64 experts, however they are run.

    Four devices add up gradients of that size, and each takes a step of SGD with the sum.
    """
    import jax
    from jax import numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((4,), ("batch",))
    shapes = (64, FEATURES, HIDDEN), (64, HIDDEN, FEATURES)

    def step(weights, seed):
        gradients = [jax.lax.psum(jnp.zeros(shape) + seed[0], "batch") for shape in shapes]
        return [w - 0.01 * g for w, g in zip(weights, gradients, strict=True)]

    whole, split = PartitionSpec(), PartitionSpec("batch")
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(whole, split), out_specs=whole)
    compiled = jax.jit(mapped, donate_argnums=0)
    weights = [jax.device_put(jnp.ones(shape), NamedSharding(mesh, whole)) for shape in shapes]
    seed = jax.device_put(jnp.ones(4), NamedSharding(mesh, split))
    for number in range(STEPS + 2):
        if number == 2:
            jax.block_until_ready(weights)
            start = time.process_time()
        weights = compiled(weights, seed)
    jax.block_until_ready(weights)
    return (time.process_time() - start) / STEPS


def seconds(case, way, spread):
    """What `measure` or `sum_of_gradients` finds in a process of its own."""
    count = 1 if way == "one" else 4
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.devices", case, way, "yes" if spread else "no"],
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.split("seconds ")[1])


def main():
    lines = [
        "# CPU time on several devices",
        "",
        f"CPU seconds of one training step (SGD) on {ROWS} rows of {FEATURES} features, two-layer "
        f"experts of {HIDDEN} hidden units, float32, JAX, virtual CPU devices;",
        "in brackets times one device. Made by `python -m benchmarks.devices`.",
        "",
        "| model | dispatch | " + " | ".join(WAYS.values()) + " |",
        "|---|---|---|---|---|",
    ]
    for case, name in CASES.items():
        one = seconds(case, "one", True)
        for spread in (False, True) if case != "dense" else (True,):
            cells = [f"{one:.3f}"]
            for way in ("data", "same"):
                if case == "dense" and way == "same":
                    cells.append("")
                    continue
                many = seconds(case, way, spread)
                cells.append(f"{many:.3f} ({many / one:.2f})")
            how = ("spread" if spread else "one for all") if case != "dense" else ""
            lines.append(f"| {name} | {how} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    alone = seconds(GRADIENTS, "data", True)
    lines += [
        "",
        "Data parallel, every device holds all experts and adds up the gradients of all with the "
        "others, however few",
        "of its rows chose them. Four devices that only add up gradients of the size of 64 experts "
        f"and update take {alone:.3f} s a step.",
    ]
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        case, way, spread = sys.argv[1:]
        found = sum_of_gradients() if case == GRADIENTS else measure(case, way, spread == "yes")
        print(f"seconds {found:.3f}")
    else:
        main()
