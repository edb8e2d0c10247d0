"""Two steps timed in turns, compiled, on tensors that are already on the device."""

import time
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

__all__ = [
    "Comparison",
    "clocks",
    "compared",
    "compile_step",
    "loss_of",
    "of_model",
    "ratio",
    "ratio_of_blocks",
    "seconds",
    "tensor",
    "training_step",
]


def tensor(array):
    """Returns a tensor of the dtype that the benchmark runs in."""
    dtype = keras.config.dtype_policy().compute_dtype
    return ops.convert_to_tensor(np.asarray(array, "float32"), dtype=dtype)


def of_model(model):
    """A model as a pure function: the triple `(function, weights, state)`.

    Returns:
        `function(x, *weights)` gives the output in inference mode; `weights` are the trainable
        values, on the device.
    """
    state = [variable.value for variable in model.non_trainable_variables]

    def function(x, *weights):
        return model.stateless_call(list(weights), state, x, training=False)[0]

    return function, [own(variable.value) for variable in model.trainable_variables]


def own(value):
    """A value that the model does not hold, and that no gradient is asked of yet."""
    return ops.copy(value) if keras.config.backend() != "torch" else value.detach().clone()


def loss_of(function, tensors):
    """A scalar function whose gradient visits all that `function` computes.

    It is quadratic: the gradient of a linear one does not need the outputs, and a compiler would
    leave the forward pass out.
    """
    scale = tensor(np.random.default_rng(1).normal(size=ops.shape(function(*tensors))))
    return lambda *tensors: ops.sum(ops.square(function(*tensors)) * scale)


def compile_step(function, tensors, backward):
    """A call of no arguments that runs `function(*tensors)`, and its gradients, to the end."""
    backend = keras.config.backend()
    loss = loss_of(function, tensors) if backward else None
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

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    leaves = [t.detach().clone().requires_grad_(backward) for t in tensors]

    def run():
        if backward:
            results = torch.autograd.grad(loss(*leaves), leaves)
        else:
            with torch.no_grad():
                results = function(*leaves)
        wait()
        return results

    return run


def training_step(model, x, y):
    """A call of no arguments that takes one training step of a compiled model, to the end."""
    return lambda: model.train_on_batch(x, y)


class Comparison(NamedTuple):
    """How long a step takes beside another.

    Attributes:
        wall: The ratio of wall time.
        cpu: The ratio of CPU time, of all threads together.
        ours: Milliseconds of wall time of the step.
        theirs: Milliseconds of wall time of the other.
    """

    wall: float
    cpu: float
    ours: float
    theirs: float


def ratio(step, limit, repeats):
    """Medians of the paired ratios, of calls in turns."""
    step(), limit()
    step(), limit()
    return compared([(clocks(step), clocks(limit)) for _ in range(repeats)])


def compared(pairs):
    """Returns the medians of pairs of wall and CPU seconds of both steps."""
    turns = np.asarray(pairs)  # turn, step, clock
    wall, cpu = np.median(turns[:, 0] / turns[:, 1], axis=0)
    ours, theirs = 1e3 * np.median(turns[:, :, 0], axis=0)
    return Comparison(*map(float, (wall, cpu, ours, theirs)))


def ratio_of_blocks(step, limit, repeats):
    """As `ratio`, of medians of calls in a row."""
    medians = []
    for each in (step, limit):
        each(), each()
        medians.append(np.median([clocks(each) for _ in range(repeats)], axis=0))
    return compared([medians])


def seconds(step):
    """Seconds that one call takes."""
    return clocks(step)[0]


def clocks(step):
    """Wall and CPU seconds that one call takes; the latter of all threads together."""
    start, used = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - start, time.process_time() - used
