"""How much faster two cores are than one: top-2 of 64 experts beside the limit of `sparse`.

Each figure is of a process of its own, which the system keeps on one core or two.
`KERAS_BACKEND=jax python -m benchmarks.threads`
"""

import os
import subprocess
import sys

import numpy as np

from benchmarks.table import Row, options, show

WHAT = ("forward", "forward and backward")


def cores():
    """Returns the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def milliseconds(repeats):
    """Returns what a step takes, of the mixture and of the limit, forward and with gradients."""
    from benchmarks.sparse import CHOSEN, SHAPE, TOKENS, UNITS, mixture, two_layers
    from benchmarks.timing import compile_step, of_model, ratio, tensor

    rng = np.random.default_rng(0)
    x = tensor(rng.normal(size=(*SHAPE, UNITS)))
    doubled = tensor(rng.normal(size=(TOKENS * CHOSEN, UNITS)))
    dense = two_layers()
    dense(doubled[:1])
    function, weights = of_model(mixture(x, two_layers(), 64))
    limit, own = of_model(dense)
    found = []
    for backward in (False, True):
        steps = (
            compile_step(function, [x, *weights], backward),
            compile_step(limit, [doubled, *own], backward),
        )
        compared = ratio(*steps, repeats)
        found.append((compared.ours, compared.theirs))
    return found


def rows(arguments):
    """Yields the table's rows."""
    if len(cores()) < 2:
        return
    found = []
    for number in (1, 2):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.threads", "--cores", str(number)],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(number)},
        )
        found.append(np.array(done.stdout.split()[-4:], float).reshape(2, 2))
    gained = found[0] / found[1]
    for what, (ours, limit), (one, two) in zip(
        WHAT, gained, zip(found[0][:, 0], found[1][:, 0], strict=True), strict=True
    ):
        yield Row(
            f"two cores in place of one, top-2 of 64, times faster over the limit's: {what}",
            ours / limit,
            detail=f"{ours:.2f} / {limit:.2f} times; {one:.0f} ms on one core, {two:.0f} on two",
            at_least=True,
        )


if __name__ == "__main__":
    arguments = options(__doc__, cores=0, repeats=11)
    if arguments.cores:
        os.sched_setaffinity(0, cores()[: arguments.cores])
        print(*(f"{value:.4f}" for pair in milliseconds(arguments.repeats) for value in pair))
    else:
        show(rows(arguments))
