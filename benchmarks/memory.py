"""Peak memory of forward and backward of TopK(2) of 64 experts, over that of the limit.

What counts is what a step holds beyond its tensors and their gradients, which are the result. JAX
tells it when it compiles. Else, on CPU: how far the process grows at its peak, with an allocator
that gives back at once; on a GPU: the count of the backend. TensorFlow keeps what is freed, so on
CPU nothing can be said of it.

`KERAS_BACKEND=jax python -m benchmarks.memory`
"""

import os
import subprocess
import sys

import keras
import numpy as np

from benchmarks.sparse import CHOSEN, SHAPE, TOKENS, UNITS, mixture, two_layers
from benchmarks.table import Row, on_gpu, options, show
from benchmarks.timing import compile_step, loss_of, of_model, tensor

# glibc keeps what is freed unless told to hand it back.
GIVE_BACK = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}


def model_of(case):
    """Returns the model as a function, and its tensors."""
    rng = np.random.default_rng(0)
    if case == "limit":
        x = tensor(rng.normal(size=(TOKENS * CHOSEN, UNITS)))
        model = two_layers()
        model(x[:1])
    else:
        x = tensor(rng.normal(size=(*SHAPE, UNITS)))
        factor = 1.25 if case.startswith("capacity") else None
        model = mixture(x, two_layers(), 64, "skewed" in case, factor)
    function, weights = of_model(model)
    return function, [x, *weights]


def bytes_beside(case):
    """Returns the bytes that forward and backward hold beside their tensors and gradients."""
    function, tensors = model_of(case)
    if keras.config.backend() == "jax":
        import jax

        gradient = jax.grad(loss_of(function, tensors), tuple(range(len(tensors))))
        compiled = jax.jit(gradient).lower(*tensors).compile()
        return compiled.memory_analysis().temp_size_in_bytes
    step = compile_step(function, tensors, True)
    step()
    step()
    width = 2 if keras.config.dtype_policy().compute_dtype == "bfloat16" else 4
    return peak(step) - sum(width * int(np.prod(tuple(t.shape))) for t in tensors)


def peak(step):
    """Returns by how many bytes the peak during a step exceeds what was held before."""
    if on_gpu():
        return peak_on_gpu(step)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = status("VmRSS")
    step()
    return status("VmHWM") - before


def status(key):
    """Returns a figure of this process in bytes."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(key))
    return 1024 * int(line.split()[1])


def peak_on_gpu(step):
    """As `peak`, by the backend's count."""
    if keras.config.backend() == "torch":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    import tensorflow as tf

    tf.config.experimental.reset_memory_stats("GPU:0")
    before = tf.config.experimental.get_memory_info("GPU:0")["current"]
    step()
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] - before


def rows(arguments):
    """Yields the table's rows; every case in a process of its own."""
    if keras.config.backend() == "tensorflow" and arguments.device == "cpu":
        return
    found = {}
    flags = ["--device", arguments.device, "--dtype", arguments.dtype]
    for case in ("limit", "capacity 1.25, balanced", "dropless, balanced", "dropless, skewed"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", "--case", case, *flags],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | GIVE_BACK,
        )
        found[case] = int(done.stdout.split()[-1])
        if case != "limit":
            yield Row(
                f"peak memory of forward and backward, top-2 of 64, {case}, over the limit's",
                found[case] / found["limit"],
                2.0,
                f"{found[case] / 2**20:.0f} / {found['limit'] / 2**20:.0f} MiB",
            )


if __name__ == "__main__":
    arguments = options(__doc__, case="")
    if arguments.case:
        print(bytes_beside(arguments.case))
    else:
        show(rows(arguments))
