"""What sparse dispatch costs over one dense network of the same arithmetic.

Two-layer experts 256 → 512 → 256, 4,096 rows, top-2 of 64, float32. The limit is one such network
on 8,192 rows. Both run in one process, in turns, compiled, on tensors already on the device; a
ratio is the median over the turns. `KERAS_BACKEND=jax python benchmarks/dispatch.py`
"""

import argparse
import statistics
import time

import keras
import numpy as np
from keras import ops

from plait.ops.dispatch import apply_experts, capacity

ROWS, CHOSEN, UNITS, HIDDEN = 4096, 2, 256, 512


def two_layers(variables, rows, segment=None):
    del segment
    hidden = ops.relu(ops.matmul(rows, variables[0]) + variables[1])
    return ops.matmul(hidden, variables[2]) + variables[3]


def make_variables(rng, *lead):
    shapes = [(UNITS, HIDDEN), (HIDDEN,), (HIDDEN, UNITS), (UNITS,)]
    return [tensor(rng.normal(0, 0.05, (*lead, *shape))) for shape in shapes]


def tensor(array):
    return ops.convert_to_tensor(np.asarray(array, "float32"))


def balanced(rng, num_experts):
    """Every row chooses two experts at random."""
    return np.argsort(rng.random((ROWS, num_experts)), axis=1)[:, :CHOSEN].astype("int32")


def skewed(rng, num_experts):
    """Expert 0 has ten times the mean load, the others share the rest."""
    chosen = balanced(rng, num_experts - 1) + 1
    chosen[rng.permutation(ROWS)[: 10 * ROWS * CHOSEN // num_experts], 0] = 0
    return chosen.astype("int32")


def compile_step(function, tensors, backward):
    """A call of no arguments that runs `function(*tensors)`, and its gradients, to the end."""
    backend = keras.config.backend()
    cotangent = None

    def loss(*tensors):
        return ops.sum(function(*tensors) * cotangent)

    if backward:
        shape = ops.shape(function(*tensors))
        cotangent = tensor(np.random.default_rng(1).normal(size=shape))
    if backend == "jax":
        import jax

        step = jax.jit(jax.grad(loss, tuple(range(len(tensors)))) if backward else function)
        return lambda: jax.block_until_ready(step(*tensors))
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def gradients(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                value = loss(*tensors)
            return tape.gradient(value, tensors)

        step = gradients if backward else tf.function(function)
        return lambda: tf.nest.map_structure(lambda t: t[:1].numpy(), step(*tensors))
    import torch

    if not backward:
        return torch.no_grad()(lambda: function(*tensors))
    leaves = [t.clone().requires_grad_(True) for t in tensors]
    return lambda: torch.autograd.grad(loss(*leaves), leaves)


def ratio(step, limit, repeats):
    """Median of the paired ratios, and the two medians in milliseconds."""
    step(), limit()
    step(), limit()
    pairs = [(seconds(step), seconds(limit)) for _ in range(repeats)]
    ours, theirs = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
    return statistics.median(a / b for a, b in pairs), ours, theirs


def seconds(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


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
