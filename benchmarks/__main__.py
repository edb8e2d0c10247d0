"""Runs every benchmark, a process per backend, and writes the table beside the targets.

`python -m benchmarks` writes `benchmarks/results/<machine>.md`;
`python -m benchmarks --device gpu --dtype float32 bfloat16` the same for a GPU, a file for each
dtype. With `--scripts` or `--backends` the other rows of a file stay as they were.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.table import hide_gpu, mark, parse

RESULTS = Path(__file__).parent / "results"
SCRIPTS = (
    "compile",
    "stacked",
    "lists",
    "small",
    "sparse",
    "decode",
    "threads",
    "sparsify",
    "memory",
    "gate",
    "em",
    "import_time",
)
BACKENDS = ("jax", "torch", "tensorflow")
PACKAGES = ("keras", "keras-hub", "jax", "torch", "tensorflow", "numpy")
THREADS = ("OMP_NUM_THREADS",)  # what a machine shared with others may have to limit
GPU_NAME = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]


def run(script, backend, device, dtype):
    """Runs one script in a process of its own; returns its rows, and its error if it failed."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "PLAIT_ROWS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    if device == "cpu":
        environment = hide_gpu(environment)
    flags = ["--device", device, "--dtype", dtype]
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", *flags],
        env=environment,
        capture_output=True,
        text=True,
    )
    found = [row for row in map(parse, done.stdout.splitlines()) if row is not None]
    error = (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else None
    return found, error


def machine(device):
    """Returns the kind of machine: what the figures stand for."""
    if device == "cpu":
        return f"cpu-{os.cpu_count()}-cores"
    name = subprocess.run(GPU_NAME, check=True, capture_output=True, text=True).stdout
    return re.sub(r"[^a-z0-9]+", "-", name.splitlines()[0].lower()).strip("-")


def processor():
    """Returns the processor's name."""
    path = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", path.read_text()) if path.exists() else []
    return names[0] if names else platform.processor()


def version(package):
    """Returns a package's version, if it is installed."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} missing"


def heading(device, dtype):
    """Returns the lines above the table."""
    load = os.getloadavg()[0]
    return [
        f"# Benchmarks: {machine(device)}, {dtype}",
        "",
        f"Made by `python -m benchmarks --device {device} --dtype {dtype}`, which `--scripts NAME`",
        "lets measure a part again. Ratios are medians of paired runs within one process, of wall",
        "time and of CPU time of all threads; a target is met where both are.",
        "",
        f"- {processor()}, {os.cpu_count()} cores, {dtype}; "
        f"load average at the start {load:.1f}"
        + "".join(f"; {name}={os.environ[name]}" for name in THREADS if name in os.environ),
        f"- Python {platform.python_version()}, " + ", ".join(map(version, PACKAGES)),
        "",
        "| what | backend | target | wall | CPU | met | figures | script |",
        "|---|---|---|---|---|---|---|---|",
    ]


def line(row, backend, script):
    """Returns a row of the table."""
    goal = "" if row.target is None else f"{'≥' if row.at_least else '≤'} {row.target:g}"
    cpu = "" if row.cpu is None else f"{row.cpu:.3g}"
    cells = (row.what, backend, goal, f"{row.measured:.3g}", cpu, mark(row), row.detail, script)
    return f"| {' | '.join(cells)} |"


def kept(path, scripts, backends):
    """Returns the rows of an earlier table that will not be measured again."""
    if not path.exists():
        return []
    rows = [text for text in path.read_text().splitlines() if text.startswith("| ")][1:]
    return [
        text
        for text in rows
        if not (text.split(" | ")[-1].strip(" |") in scripts and text.split(" | ")[1] in backends)
    ]


def main():
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for dtype in arguments.dtype:
        table(arguments.scripts, arguments.backends, arguments.device, dtype)


def table(scripts, backends, device, dtype):
    """Writes the table of one dtype as it grows."""
    suffix = "" if dtype == "float32" else f"-{dtype}"
    path = RESULTS / f"{machine(device)}{suffix}.md"
    lines = heading(device, dtype) + kept(path, scripts, backends)
    for script in scripts:
        for backend in backends:
            found, error = run(script, backend, device, dtype)
            lines += [line(row, backend, script) for row in found]
            if error:
                lines.append(f"| nothing | {backend} | | failed | | | {error} | {script} |")
            print("\n".join(lines[-(len(found) + bool(error)) or len(lines) :]), flush=True)
            path.write_text("\n".join(lines) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
