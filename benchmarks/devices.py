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
    """Prints CPU seconds per step."""
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
    print(f"seconds {(time.process_time() - start) / STEPS:.3f}")


def seconds(case, way, spread):
    """What `measure` prints in a process of its own."""
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
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(*sys.argv[1:3], sys.argv[3] == "yes")
    else:
        main()
