"""Fresh experts from one template: each with its own draw of the template's initialisers."""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from plait.errors import message

Initializers = dict[int, Callable[..., Any]]

_copies = itertools.count()


def copy_of(template: keras.layers.Layer, seed_offset: int = 0) -> keras.layers.Layer:
    """Returns a layer of the template's class and config, with weights of its own.

    Args:
        template: A Keras layer or model; it is left as it is.
        seed_offset: Added to every integer seed in the config, so that copies draw differently.

    Raises:
        ValueError: If the template's config does not make a new layer.
    """
    try:
        config = _of_copy(template.get_config(), next(_copies), seed_offset)
        return type(template).from_config(config)
    except Exception as error:
        raise ValueError(
            message(
                "A template must be a Keras layer or model that its config can make anew",
                f"{type(template).__name__} {template.name!r}, whose copy failed with "
                f"{type(error).__name__}: {error}",
                "Implement `get_config`, or pass a list of experts in place of `num_experts`",
            )
        ) from error


@contextlib.contextmanager
def recorded_initializers() -> Iterator[Initializers]:
    """Records which initialiser each variable that is created inside the block came from.

    Keras forgets an initialiser once its variable has a value, so `Layer.add_weight` is wrapped
    while the block runs.

    Yields:
        The initialisers by `id` of their variable.
    """
    initializers: Initializers = {}
    add_weight = keras.layers.Layer.add_weight

    @functools.wraps(add_weight)
    def recording(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> keras.Variable:
        variable = add_weight(layer, *args, **kwargs)
        given = kwargs.get("initializer", args[1] if len(args) > 1 else None)
        if given is None:
            given = "glorot_uniform" if "float" in variable.dtype else "zeros"
        initializers[id(variable)] = keras.initializers.get(given)
        return variable

    keras.layers.Layer.add_weight = recording
    try:
        yield initializers
    finally:
        keras.layers.Layer.add_weight = add_weight


def fresh_values(variable: keras.Variable, initializers: Initializers, num_experts: int) -> Any:
    """Returns first values of one variable for all experts.

    A random initialiser draws once per expert, a constant one is repeated; the state of a seed
    generator starts elsewhere for each expert, so that dropout differs.

    Args:
        variable: A variable of the template, shape `(…)`.
        initializers: What `recorded_initializers` gave.
        num_experts: Number of experts, `e`.

    Returns:
        Tensor of shape `(e, …)`.
    """
    initializer = initializers.get(id(variable))
    shape, dtype = tuple(variable.shape), variable.dtype
    if is_seed(variable):
        return _repeat(variable.value, num_experts) + _seed_steps(num_experts, shape, dtype)
    if initializer is None:
        return _repeat(variable.value, num_experts)
    at_once = _draw_at_once(initializer, (num_experts, *shape), dtype)
    if at_once is not None:
        return at_once
    draws = _draws(initializer, num_experts)
    if len(draws) == 1:
        return _repeat(draws[0](shape, dtype=dtype), num_experts)
    return _stack([draw(shape, dtype=dtype) for draw in draws])


def is_seed(variable: keras.Variable) -> bool:
    """Whether a variable is the state of a `keras.random.SeedGenerator`, or a stack of such."""
    return variable.name.endswith("seed_generator_state")


def _repeat(value: Any, num_experts: int) -> Any:
    return _stack([value] * num_experts)  # copies: a view of one would be trained as one


def _seed_steps(num_experts: int, shape: tuple[int, ...], dtype: str) -> Any:
    """Returns what keeps the experts' streams of random numbers apart: a large odd step.

    An expert that is a mixture has a stack of seeds `(…, 2)`, which stand such steps apart: the
    next expert's begin behind them.
    """
    numbers = np.arange(num_experts, dtype="int64") * math.prod(shape[:-1])
    steps = numbers * 1_000_003 % (2**31 - 1)
    pairs = np.stack([steps, np.zeros_like(steps)], axis=1)
    return ops.cast(pairs.reshape(num_experts, *(1,) * (len(shape) - 1), 2), dtype)


def _draw_at_once(initializer: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Returns values for all experts in one draw, or `None` where only one draw each will do.

    A thousand draws take longer than compiling the step. Keras counts leading axes into the fans,
    so that `e` experts drawn as one have a variance `e` times too small.

    Args:
        initializer: What was recorded for the variable.
        shape: `(e, …)`.
        dtype: The variable's.
    """
    keras_own = type(initializer).__module__.startswith("keras.")
    if not keras_own or len(shape) < 3 or initializer.get_config().get("seed", 0) is not None:
        return None
    # A template that was built has drawn from this initialiser, which would draw the same again.
    initializer = type(initializer).from_config(initializer.get_config())
    if isinstance(initializer, keras.initializers.VarianceScaling):
        return initializer(shape, dtype=dtype) * math.sqrt(shape[0])
    if isinstance(
        initializer,
        (
            keras.initializers.RandomNormal,
            keras.initializers.RandomUniform,
            keras.initializers.TruncatedNormal,
        ),
    ):
        return initializer(shape, dtype=dtype)
    return None


def _draws(initializer: Any, num_experts: int) -> list[Callable[..., Any]]:
    """Returns an initialiser for each expert, or one alone where it always gives the same."""
    config = initializer.get_config() if isinstance(initializer, keras.Initializer) else {}
    if "seed" in config:
        seed = config["seed"]
        return [
            type(initializer).from_config(
                {**config, "seed": seed + expert if isinstance(seed, int) else None}
            )
            for expert in range(num_experts)
        ]
    constant = type(initializer).__module__.startswith("keras.")  # Zeros, Constant and the like
    return [initializer] * (1 if constant else num_experts)


def _stack(values: list[Any]) -> Any:
    """Stacks tensors, some at a time: XLA is slow to compile one stack of a thousand."""
    parts = [ops.stack(values[i : i + 32]) for i in range(0, len(values), 32)]
    while len(parts) > 1:
        parts = [ops.concatenate(parts[i : i + 32]) for i in range(0, len(parts), 32)]
    return parts[0]


def _of_copy(config: Any, copy: int, seed_offset: int) -> Any:
    """Returns a config with seeds and shared objects of its own.

    While a file is loaded, Keras gives the same layer for the same `shared_object_id`: layers that
    a template shares within itself are to be shared within a copy, but not with other copies.
    """
    if isinstance(config, dict):
        changed = {key: _of_copy(value, copy, seed_offset) for key, value in config.items()}
        if isinstance(config.get("seed"), int):
            changed["seed"] = config["seed"] + seed_offset
        if "shared_object_id" in config:
            changed["shared_object_id"] = f"{config['shared_object_id']} of copy {copy}"
        return changed
    if isinstance(config, (list, tuple)):
        return type(config)(_of_copy(value, copy, seed_offset) for value in config)
    return config
