"""Peak memory of `fit_em`, `fit_gate` and the command line on few and on many rows.

`KERAS_BACKEND=torch python -m benchmarks.large` writes `benchmarks/results/large.md`.

The dataset makes its rows as it is read. Each case runs in a process of its own, which reports the
largest memory it ever held (`resource.getrusage`, `ru_maxrss`): Python, Keras and the backend
included. Where memory is flat the peaks of few and many rows are alike. `--in-memory` passes the
same rows as arrays. `fit-table`, `blend-table` and `report-table` are `plait fit`, `blend` and
`report` on a CSV file of 18 numbers, a text and two classes, which is written first.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import plait

BATCH, FEATURES, EXPERTS = 8192, 8, 3
# Threads of BLAS wait for each other on cores that are shared with other work.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
CASES = ("fit_em", "fit_gate")
TABLES = ("fit-table", "blend-table", "report-table")
NUMBERS, CITIES, MODEL_ROWS = 18, 40, 5000


class Made(keras.utils.PyDataset):
    """Rows that follow one of two lines, made batch by batch."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def __len__(self):
        return -(-self.rows // BATCH)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        size = min(BATCH, self.rows - index * BATCH)
        x = rng.normal(size=(size, FEATURES)).astype("float32")
        slope = np.where(rng.random(size) < 0.5, 2.0, -1.0)
        y = slope * x[:, 0] + 0.3 * rng.normal(size=size)
        return x, y[:, None].astype("float32")


def fit(case, data):
    """Runs one case on a dataset, or on `(x, y)`."""
    keras.utils.set_random_seed(0)
    mixture = plait.Mixture([keras.layers.Dense(1) for _ in range(EXPERTS)])
    if case == "fit_em":
        found = mixture.fit_em(*data, restarts=1, max_iterations=3, seed=0, verbose=0)
        return found.log_likelihood
    mixture.compile("adam", "mse")
    history = mixture.fit_gate(*data, epochs=1, batch_size=BATCH, verbose=0)
    return history.history["loss"][-1]


def measure(case, rows, in_memory):
    """Prints what one case gives, its seconds, and the peak of this process in MiB."""
    made = Made(rows)
    data = (made,)
    if in_memory:
        x, y = np.empty((rows, FEATURES), "float32"), np.empty((rows, 1), "float32")
        for index in range(len(made)):
            part = slice(index * BATCH, (index + 1) * BATCH)
            x[part], y[part] = made[index]
        data = (x, y)
    start = time.perf_counter()
    found = fit(case, data)
    seconds = time.perf_counter() - start
    print(found, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def write_table(path, rows, seed):
    """Writes a CSV file, a batch at a time."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    for start in range(0, rows, BATCH):
        size = min(BATCH, rows - start)
        numbers = rng.normal(size=(size, NUMBERS)).round(4)
        frame = pd.DataFrame(numbers, columns=[f"n{i}" for i in range(NUMBERS)])
        frame["city"] = [f"city {i}" for i in rng.integers(CITIES, size=size)]
        score = frame["n0"] + frame["n1"] * np.where(frame["city"] < "city 25", 1.0, -1.0)
        frame["y"] = np.where(score + rng.normal(size=size) > 0, "yes", "no")
        frame.to_csv(path, index=False, header=not start, mode="a")


def command(*arguments):
    """Runs `plait`; returns the first loss it prints, its seconds, and its peak in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "plait.cli", *map(str, arguments), "--json"],
        stdout=subprocess.PIPE,
        env=os.environ | ONE_THREAD | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    found = json.loads(process.stdout.read())
    _, _, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    return found["scores"][0]["loss"], seconds, used.ru_maxrss / 1024


def measure_table(case, rows):
    """Prints what one case of the command line gives."""
    with tempfile.TemporaryDirectory() as folder:
        table, few = Path(folder) / "t.csv", Path(folder) / "few.csv"
        write_table(table, rows, 0)
        learn = ("--target", "y", "--epochs", 1)
        models = [Path(folder) / f"{name}.keras" for name in ("network", "mixture")]
        if case == "fit-table":
            print(*command("fit", table, *learn, "--model", "network", "-o", models[0]))
            return
        write_table(few, MODEL_ROWS, 1)
        for model in models:
            command("fit", few, *learn, "--model", model.stem, "-o", model)
        out = Path(folder) / "out"
        if case == "blend-table":
            print(*command("blend", *models, "--data", table, *learn, "-o", f"{out}.keras"))
        else:
            print(*command("report", models[1], table, "-o", f"{out}.html"))


def apart(case, rows, in_memory):
    """Returns what `measure` prints, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.large", "--case", case, "--rows", str(rows)]
    done = subprocess.run(
        [*command, *["--in-memory"] * in_memory],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | ONE_THREAD | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    return [float(word) for word in done.stdout.split()[-3:]]


def table(few, many, cases):
    """Yields the lines of the table."""
    sizes = f"{few:,} rows | {many:,} rows"
    yield f"| what | data | {sizes} | seconds for these | log-likelihood or loss |"
    yield "|---|---|---|---|---|---|"
    for case in cases:
        first = apart(case, few, False)[2]
        for in_memory in (False,) if case in TABLES else (False, True):
            found, seconds, peak = apart(case, many, in_memory)
            kind = "CSV" if case in TABLES else "arrays" if in_memory else "dataset"
            yield (
                f"| {case} | {kind} | "
                f"{'' if in_memory else f'{first:.0f} MiB'} | "
                f"{peak:.0f} MiB | {seconds:.0f} | {found:.12g} |"
            )


def main():
    """Measures one case in this process, or all of them in others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES + TABLES)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--few", type=int, default=100_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    arguments = parser.parse_args()
    if arguments.rows and arguments.case in TABLES:
        measure_table(arguments.case, arguments.rows)
        return
    if arguments.rows:
        measure(arguments.case, arguments.rows, arguments.in_memory)
        return
    cases = (arguments.case,) if arguments.case else CASES + TABLES
    lines = [
        "# Data larger than memory: peaks",
        "",
        f"`KERAS_BACKEND={keras.backend.backend()} python -m benchmarks.large "
        f"--few {arguments.few} --many {arguments.many}`: {FEATURES} features,",
        f"{EXPERTS} linear experts, a linear gate; three iterations of one run of `fit_em`, "
        "one epoch of `fit_gate`.",
        "The largest memory of a process (`ru_maxrss`), Python, Keras and backend included. "
        f"Python {platform.python_version()}, Keras {keras.__version__}, {os.cpu_count()} cores,",
        f"one thread for BLAS, load average {os.getloadavg()[0]:.0f}.",
        "",
    ]
    for line in table(arguments.few, arguments.many, cases):
        lines.append(line)
        print(line, flush=True)
    if not arguments.case:
        path = Path(__file__).parent / "results" / "large.md"
        path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
