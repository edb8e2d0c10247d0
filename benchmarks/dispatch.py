"""What sparse dispatch costs over one dense network of the same arithmetic.

Two-layer experts 256 → 512 → 256, 4,096 rows, top-2 of 64, float32. The limit is one such network
on 8,192 rows. Both run in one process, in turns, compiled, on tensors already on the device; a
ratio is the median over the turns. `KERAS_BACKEND=jax python -m benchmarks.dispatch`
"""

import argparse

import keras
import numpy as np
from keras import ops

from benchmarks.timing import compile_step, ratio, tensor
from plait.ops.dispatch import apply_experts, capacity

ROWS, CHOSEN, UNITS, HIDDEN = 4096, 2, 256, 512


def two_layers(variables, rows, segment=None):
    del segment
    hidden = ops.relu(ops.matmul(rows, variables[0]) + variables[1])
    return ops.matmul(hidden, variables[2]) + variables[3]


def make_variables(rng, *lead):
    shapes = [(UNITS, HIDDEN), (HIDDEN,), (HIDDEN, UNITS), (UNITS,)]
    return [tensor(rng.normal(0, 0.05, (*lead, *shape))) for shape in shapes]


def balanced(rng, num_experts):
    """Every row chooses two experts at random."""
    return np.argsort(rng.random((ROWS, num_experts)), axis=1)[:, :CHOSEN].astype("int32")


def skewed(rng, num_experts):
    """Expert 0 has ten times the mean load, the others share the rest."""
    chosen = balanced(rng, num_experts - 1) + 1
    chosen[rng.permutation(ROWS)[: 10 * ROWS * CHOSEN // num_experts], 0] = 0
    return chosen.astype("int32")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="", help="run the cases whose name has this in it")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    x = tensor(rng.normal(size=(ROWS, UNITS)))
    doubled = tensor(rng.normal(size=(ROWS * CHOSEN, UNITS)))
    dense = make_variables(rng)

    def limit_function(rows, *variables):
        return two_layers(list(variables), rows)

    def case(num_experts, load, limited):
        variables, chosen = make_variables(rng, num_experts), ops.convert_to_tensor(load)
        c = capacity(ROWS, CHOSEN, num_experts, 1.25) if limited else None

        def function(rows, *variables):
            return apply_experts(
                two_layers, list(variables), rows, chosen, num_experts=num_experts, capacity=c
            )

        return function, [x, *variables]

    cases = {
        "capacity 1.25, balanced": case(64, balanced(rng, 64), True),
        "dropless, balanced": case(64, balanced(rng, 64), False),
        "dropless, skewed": case(64, skewed(rng, 64), False),
    }
    print(f"{keras.config.backend()}: top-2 of 64, over one dense network of the same arithmetic")
    for backward in (False, True):
        limit = compile_step(limit_function, [doubled, *dense], backward)
        what = "forward and backward" if backward else "forward"
        for name, (function, tensors) in cases.items():
            if arguments.only not in f"{name}, {what}":
                continue
            step = compile_step(function, tensors, backward)
            print(
                "{3}, {4}: {0:.2f} ({1:.0f} / {2:.0f} ms)".format(
                    *ratio(step, limit, arguments.repeats), name, what
                ),
                flush=True,
            )
    name = "dropless, forward, L = 512 over L = 16"
    if arguments.only in name:
        many, few = (
            compile_step(*case(num, balanced(rng, num), False), False) for num in (512, 16)
        )
        print(
            f"{name}: " + "{:.2f} ({:.0f} / {:.0f} ms)".format(*ratio(many, few, arguments.repeats))
        )


if __name__ == "__main__":
    main()
