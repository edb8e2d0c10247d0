"""What `import plait` adds to `import keras`: the median over fresh processes.

`KERAS_BACKEND=jax python -m benchmarks.import_time`
"""

import statistics
import subprocess
import sys

from benchmarks.table import Row, options, show

PROGRAM = """
import time
a = time.perf_counter()
import keras
b = time.perf_counter()
import plait
c = time.perf_counter()
print(b - a, c - b)
"""


def rows(arguments):
    """Yields the table's row."""
    times = []
    for _ in range(arguments.repeats):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
        )
        times.append([float(number) for number in done.stdout.split()[-2:]])
    base, more = (statistics.median(column) for column in zip(*times, strict=True))
    yield Row(
        "`import plait` over `import keras`, seconds more", more, 0.15, f"{base:.1f} s before"
    )


if __name__ == "__main__":
    show(rows(options(__doc__, repeats=3)))
