"""What top-k of many experts costs as experts, tokens and choices grow: a picture.

Gated experts 128 → 256 → 128 in float32, forward. Beside `plait.Mixture` stand the limit, one such
network on as many rows as there are choices, and KerasHub's Mixtral block, which runs every expert
on every token, as far as its activations stay below 2 GiB. Median milliseconds of wall time.

`python -m benchmarks.scaling` measures every backend in a process of its own and writes
`benchmarks/results/scaling.json` and `scaling.svg`; `--draw` draws what was measured before.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.table import hide_gpu

RESULTS = Path(__file__).parent / "results"
BACKENDS = {"jax": "JAX", "torch": "PyTorch", "tensorflow": "TensorFlow"}
UNITS, HIDDEN = 128, 256
BASE = {"experts": 64, "tokens": 4096, "chosen": 2}
SWEEPS = {
    "experts": (16, 64, 256, 1024, 4096),
    "tokens": (1, 16, 256, 4096, 65536),
    "chosen": (1, 2, 4, 8),
}
LINES = {
    "plait": {"color": "#4878a8", "marker": "o"},
    "limit": {"color": "#6a9f6a", "marker": "s", "linestyle": "--"},
    "KerasHub": {"color": "#d98e48", "marker": "^", "linestyle": ":"},
}
HUB_BYTES = 2**31


def measured():
    """Yields, in the backend of this process, a dict for each point: what, where, milliseconds."""
    import keras
    import numpy as np

    rng = np.random.default_rng(0)
    for axis, values in SWEEPS.items():
        for value in values:
            sizes = BASE | {axis: value}
            for line, step in steps(rng, **sizes):
                yield {
                    "backend": keras.config.backend(),
                    "axis": axis,
                    "value": value,
                    "line": line,
                    "ms": milliseconds(step),
                }


def milliseconds(step, budget=3.0):
    """Returns the median of as many calls as a few seconds hold, five at least."""
    from benchmarks.timing import seconds

    step()
    times = [seconds(step)]
    while len(times) < 5 or (sum(times) < budget and len(times) < 50):
        times.append(seconds(step))
    return 1e3 * statistics.median(times)


def steps(rng, experts, tokens, chosen):
    """Yields name and compiled forward pass of each line."""
    from keras import layers, ops

    import plait
    from benchmarks.sparse import gated, mixtral_block
    from benchmarks.timing import compile_step, of_model, tensor

    x = tensor(rng.normal(size=(tokens, UNITS)))
    router = plait.routers.TopK(chosen)
    template = gated(UNITS, HIDDEN)
    mix = plait.Mixture(template, layers.Dense(experts), num_experts=experts, router=router)
    mix(x[:1])
    function, weights = of_model(mix)
    yield "plait", compile_step(function, [x, *weights], False)
    del mix, weights
    function, weights = of_model(gated(UNITS, HIDDEN))
    rows = ops.concatenate([x] * chosen)
    yield "limit", compile_step(function, [rows, *weights], False)
    if 3 * 4 * experts * tokens * HIDDEN > HUB_BYTES:
        return
    block = mixtral_block(experts, chosen, UNITS, HIDDEN)
    state = [v.value for v in block.non_trainable_variables]

    def hub(x, *weights):
        return block.stateless_call(list(weights), state, x[None], training=False)[0][0]

    yield "KerasHub", compile_step(hub, [x, *(v.value for v in block.trainable_variables)], False)


def run(backend):
    """Measures one backend in a process of its own, and returns its points."""
    environment = hide_gpu(os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"})
    command = [sys.executable, "-m", "benchmarks.scaling", "--here"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        points = []
        for text in process.stdout or ():
            if text.startswith("{"):
                points.append(json.loads(text))
                print(text, end="", flush=True)
    if process.returncode:
        raise SystemExit(f"{backend}: the process ended with {process.returncode}.")
    return points


def draw(points, path):
    """Draws all points: a row for each backend, a column for each axis."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams.update(
        {
            "font.size": 9,
            "svg.hashsalt": "plait",
            "svg.fonttype": "none",
            "axes.titlelocation": "left",
        }
    )
    figure = Figure(figsize=(8.4, 7.6), layout="constrained")
    grid = figure.subplots(len(BACKENDS), len(SWEEPS), sharex="col", sharey=True)
    for row, (backend, title) in zip(grid, BACKENDS.items(), strict=True):
        for axes, axis in zip(row, SWEEPS, strict=True):
            for line, style in LINES.items():
                of_line = [
                    (p["value"], p["ms"])
                    for p in points
                    if (p["backend"], p["axis"], p["line"]) == (backend, axis, line)
                ]
                if of_line:
                    axes.plot(*zip(*of_line, strict=True), label=line, markersize=4, **style)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.grid(alpha=0.3, linewidth=0.5)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xticks(SWEEPS[axis], [f"{value:,}" for value in SWEEPS[axis]])
            axes.minorticks_off()
            others = [f"{BASE[other]:,} {other}" for other in SWEEPS if other != axis]
            axes.set_xlabel(f"{axis}, at {' and '.join(others)}")
            axes.label_outer()
        row[0].set_title(title, fontweight="bold")
        row[0].set_ylabel("ms")
    grid[0][0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main():
    """Measures what is asked for, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", choices=list(BACKENDS), default=list(BACKENDS))
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--here", action="store_true", help="print the points of this process")
    arguments = parser.parse_args()
    if arguments.here:
        for point in measured():
            print(json.dumps(point), flush=True)
        return
    kept = RESULTS / "scaling.json"
    points = json.loads(kept.read_text()) if kept.exists() else []
    if not arguments.draw:
        for backend in arguments.backends:
            found = run(backend)
            points = [p for p in points if p["backend"] != backend] + found
            kept.write_text("[\n" + ",\n".join(map(json.dumps, points)) + "\n]\n")
    draw(points, RESULTS / "scaling.svg")


if __name__ == "__main__":
    main()
