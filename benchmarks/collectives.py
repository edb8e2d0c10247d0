"""What the devices of a mesh send one another in a training step of a sparse mixture.

Reads the compiled program of `fit` on four virtual CPU devices, with the dispatch spread over them
and with one dispatch for all rows, as it was before. Run as `python -m benchmarks.collectives`; it
writes `benchmarks/results/collectives.md`.

A collective counts with the bytes of the whole tensor that it gathers, sums or exchanges on one
device, once, also where it stands in a loop. Such among one device are left out.
"""

import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

PAGE = Path(__file__).parent / "results" / "collectives.md"
ROWS, FEATURES, SELECTED, DEVICES = 512, 64, 2, 4
EXPERTS, HIDDEN = (8, 64), (64, 256)
WAYS = {
    "data": "data parallel: `DataParallel()`",
    "apart": "experts split, an axis of their own: mesh (1, 4), `expert_axis='expert'`",
    "same": "experts split over the axis of the batch: mesh (4,), `expert_axis='batch'`",
}
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
KINDS = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")


def collectives(program):
    """Bytes of each kind of collective in the text of a compiled program."""
    found = Counter()
    for line in program.splitlines():
        made = re.search(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line)
        members = group_size(line)
        if made and members > 1:
            gives = sum(map(bytes_of, re.findall(r"(\w+)\[([\d,]*)\]", made[1])))
            found[made[2]] += gives * (members if made[2] == "reduce-scatter" else 1)
    return found


def bytes_of(tensor):
    dtype, shape = tensor
    return SIZES.get(dtype, 4) * math.prod(int(size) for size in shape.split(",") if size)


def group_size(line):
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    return int(iota[1]) if iota else DEVICES


def step(way, num_experts, hidden, folder):
    """The text of the compiled training step: the one that was written to a folder by XLA."""
    import keras
    import numpy as np

    import plait

    keras.utils.set_random_seed(0)
    axis = {"data": None, "apart": "expert", "same": "batch"}[way]
    if way == "data":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    layers = [keras.layers.Dense(hidden, activation="relu"), keras.layers.Dense(FEATURES)]
    moe = plait.Mixture(
        keras.Sequential(layers), num_experts=num_experts, router=plait.routers.TopK(SELECTED)
    )
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(FEATURES),
            moe,
            keras.layers.Dense(FEATURES),
        ]
    )
    if axis:
        shape, names = ((1, 4), ["batch", "expert"]) if way == "apart" else ((4,), ["batch"])
        mesh = keras.distribution.DeviceMesh(shape, names)
        layouts = plait.distribution.layout_map(model, mesh, axis)
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
        )
    model.compile("sgd", "mse")
    if axis:
        plait.distribution.distribute(model, layouts)
    x = np.random.default_rng(0).normal(size=(ROWS, FEATURES)).astype("float32")
    seen = set(folder.iterdir())
    model.fit(x, x, batch_size=ROWS, verbose=0)
    keras.distribution.set_distribution(None)
    texts = [f.read_text() for f in set(folder.iterdir()) - seen if is_program(f)]
    return max(texts, key=len)


def is_program(file):
    return "train_step" in file.name and file.name.endswith("after_optimizations.txt")


def measure(way, spread):
    """Prints a line of the table for each size; in a process of its own."""
    if not spread:
        from plait.experts import groups

        groups.devices_in_force = lambda *_: None
    folder = Path(os.environ["COLLECTIVES_FOLDER"])
    for num_experts, hidden in itertools.product(EXPERTS, HIDDEN):
        found = collectives(step(way, num_experts, hidden, folder))
        weights = num_experts * 4 * (2 * FEATURES * hidden + hidden + FEATURES)
        cells = [f"{found[kind] / 1024:.1f}" if found[kind] else "0" for kind in KINDS]
        total = f"{sum(found.values()) / 1024:.1f}"
        after = "spread" if spread else "one dispatch"
        row = [after, num_experts, hidden, f"{weights / 1024:.0f}", *cells, f"**{total}**"]
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def table(way):
    lines = []
    for spread in ("no", "yes"):
        with tempfile.TemporaryDirectory() as folder:
            flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_dump_to={folder}"
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.collectives", way, spread],
                env={
                    **os.environ,
                    "KERAS_BACKEND": "jax",
                    "XLA_FLAGS": f"{flags} --xla_dump_hlo_as_text",
                    "COLLECTIVES_FOLDER": folder,
                },
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        lines += [line for line in done.stdout.splitlines() if line.startswith("|")]
    head = ["dispatch", "experts", "hidden", "KiB of the experts", *KINDS, "all, KiB"]
    return [
        f"## {WAYS[way]}",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *lines,
        "",
    ]


def main():
    page = [
        "# What devices send one another",
        "",
        f"One training step (SGD) of a dense layer, a top-{SELECTED} mixture of two-layer experts "
        f"and a dense layer, on {ROWS} rows of {FEATURES} features,",
        f"float32, on {DEVICES} virtual CPU devices of JAX: the collectives in the compiled "
        "program, in KiB of the whole tensor, each counted",
        "once. Made by `python -m benchmarks.collectives`.",
        "",
    ]
    for way in WAYS:
        page += table(way)
    PAGE.write_text("\n".join(page))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], sys.argv[2] == "yes")
    else:
        main()
