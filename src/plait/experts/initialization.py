"""Fresh experts from one template: each with its own draw of the template's initialisers."""

import itertools
import math
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from plait.compat import flat_layers, refresh_adapted, without_other_backends
from plait.errors import message
from plait.experts.seeds import is_seed
from plait.experts.signature import differences, signature
from plait.typing import Config, Tensor

_copies = itertools.count()


def copy_of(layer: keras.layers.Layer, seed_offset: int = 0) -> keras.layers.Layer:
    """Returns a layer of another's class and config, with freshly initialised weights of its own.

    Args:
        layer: A Keras layer or model; it is left as it is.
        seed_offset: Added to every integer seed in the config, so that copies draw differently.

    Raises:
        ValueError: If the layer's config does not make a new layer.
    """
    try:
        with without_other_backends():
            config = _of_copy(layer.get_config(), next(_copies), seed_offset)
        return type(layer).from_config(config)
    except Exception as error:  # whatever a user's class raises: it is reported, not swallowed
        raise ValueError(
            message(
                "A template must be a Keras layer or model that its config can make anew",
                f"{type(layer).__name__} {layer.name!r}, whose copy failed with "
                f"{type(error).__name__}: {error}",
                "Implement `get_config`, or pass a list of experts in place of `num_experts`",
            )
        ) from error


def copy_with_weights(
    layer: keras.layers.Layer, build: Callable[[keras.layers.Layer], object]
) -> keras.layers.Layer:
    """Returns a layer of another's class, config, flags, weights and vocabularies.

    Args:
        layer: A Keras layer or model, which is left as it is. One that is not built gives a built
            copy with fresh weights.
        build: Builds a copy that is not built.

    Raises:
        ValueError: If the copy would compute something else; see `check_same`.
    """
    copy = copy_of(layer)
    if not layer.built:
        check_same(copy, layer)
        build(copy)
        return copy
    if not copy.built:
        build(copy)
    for new, original in zip(flat_layers(copy), flat_layers(layer), strict=False):
        if new.trainable != original.trainable:
            new.trainable = original.trainable
        if hasattr(original, "save_assets") and hasattr(new, "load_assets"):
            with tempfile.TemporaryDirectory() as folder:
                original.save_assets(folder)
                new.load_assets(folder)
    for new, original in zip(copy.variables, layer.variables, strict=True):
        new.assign(ops.copy(original.value))  # JAX deletes arrays of a model that is trained
        new.trainable = original.trainable
    refresh_adapted(copy)
    check_same(copy, layer)
    return copy


def check_same(copy: keras.layers.Layer, original: keras.layers.Layer) -> None:
    """Checks that a copy computes what the original would on the same weights.

    Args:
        copy: What `copy_of` made, built where the original is.
        original: Where the copy's config comes from.

    Raises:
        ValueError: If an attribute that the config does not hold was set on the original.
    """
    left, right = signature(copy), signature(original)
    if left is None or right is None:
        return
    what = differences(left, right)
    if what:
        raise ValueError(
            message(
                "A copy made of an expert's config must compute what the expert computes",
                f"{type(original).__name__} {original.name!r}, whose copy differs in {what[0]}",
                "Return it from `get_config` and take it in `__init__`, or pass a list of experts "
                "without `copy_experts`",
            )
        )


class FreshValues:
    """First values of a template's variables for all experts.

    A random initialiser draws once per expert; the state of a seed generator starts elsewhere for
    each expert, so that dropout differs. The initialisers of Keras' own layers are read from
    their attributes and draw for all experts at once. A variable of which they tell nothing is
    taken from a copy of the template for each expert.

    Args:
        template: A layer that was built from its config.
        num_experts: Number of experts, `e`.
        another: Makes a built copy of the template, given an offset to its integer seeds.
    """

    def __init__(
        self,
        template: keras.layers.Layer,
        num_experts: int,
        another: Callable[[int], keras.layers.Layer],
    ) -> None:
        self.template = template
        self.num_experts = num_experts
        self.another = another
        self.initializers = _initializers(template)
        self._copies: list[list[keras.Variable]] = []

    def __call__(self, position: int) -> Tensor:
        """Returns a tensor `(e, …)` for the variable at one position."""
        variable = self.template.variables[position]
        value = None
        if is_seed(variable):
            steps = _seed_steps(self.num_experts, tuple(variable.shape), variable.dtype)
            return _repeat(variable.value, self.num_experts) + steps
        if id(variable) in self.initializers:
            value = _fresh(variable, self.initializers[id(variable)], self.num_experts)
        if value is None:
            value = stack_many([copy[position].value for copy in self._of_copies()])
        return value

    def _of_copies(self) -> list[list[keras.Variable]]:
        """Returns the variables of as many copies of the template as there are experts."""
        if not self._copies:
            layers = [self.template, *map(self.another, range(1, self.num_experts))]
            self._copies = [layer.variables for layer in layers]
        return self._copies


def _fresh(variable: keras.Variable, initializer: Any, num_experts: int) -> Tensor | None:
    """Returns values `(e, …)` drawn by a known initialiser, or `None` where it does not tell."""
    if initializer is None:
        return _repeat(variable.value, num_experts)
    at_once = _draw_at_once(initializer, (num_experts, *variable.shape), variable.dtype)
    if at_once is not None:
        return at_once
    config = initializer.get_config()
    if "seed" not in config:
        return None
    seed = config["seed"]
    draws = [
        type(initializer).from_config(
            {**config, "seed": seed + expert if isinstance(seed, int) else None}
        )
        for expert in range(num_experts)
    ]
    return stack_many([draw(tuple(variable.shape), dtype=variable.dtype) for draw in draws])


def _initializers(template: keras.layers.Layer) -> dict[int, keras.Initializer | None]:
    """Returns the initialisers of variables of Keras' own layers, by `id` of the variable.

    `None` means an initialiser that gives the same value every time: the template's own value. A
    variable `kernel` was made by the initialiser in the attribute `kernel_initializer` of the
    layer that owns it. Variables of layers that are not Keras' own are left out.
    """
    layers = flat_layers(template)
    others = [layer for layer in layers if not type(layer).__module__.startswith("keras.")]
    left_out = {
        id(value)
        for layer in others
        for value in vars(layer).values()
        if isinstance(value, keras.Variable)
    }
    by_variable: dict[int, keras.Initializer | None] = {}
    for layer in layers:
        if not type(layer).__module__.startswith("keras."):
            continue
        for variable in layer.variables:
            name = variable.name
            names = (f"{name}_initializer", f"{name.removesuffix('_kernel')}_initializer")
            given = next((getattr(layer, n) for n in names if hasattr(layer, n)), None)
            keras_own = type(given).__module__.startswith("keras.")
            if isinstance(given, keras.Initializer) and keras_own and id(variable) not in left_out:
                by_variable[id(variable)] = given if "seed" in given.get_config() else None
    return by_variable


def _repeat(value: Tensor, num_experts: int) -> Tensor:
    return stack_many([value] * num_experts)  # copies: a view of one would be trained as one


def _seed_steps(num_experts: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Returns what keeps the experts' streams of random numbers apart: a large odd step.

    An expert that is a mixture has a stack of seeds `(…, 2)`, which stand such steps apart: the
    next expert's begin behind them.
    """
    numbers = np.arange(num_experts, dtype="int64") * math.prod(shape[:-1])
    steps = numbers * 1_000_003 % (2**31 - 1)
    pairs = np.stack([steps, np.zeros_like(steps)], axis=1)
    return ops.cast(pairs.reshape(num_experts, *(1,) * (len(shape) - 1), 2), dtype)


def _draw_at_once(
    initializer: keras.Initializer, shape: tuple[int, ...], dtype: str
) -> Tensor | None:
    """Returns values for all experts in one draw, or `None` where only one draw each will do.

    A thousand draws take longer than compiling the step. Keras counts leading axes into the fans,
    so that `e` experts drawn as one have a variance `e` times too small.

    Args:
        initializer: Of one of Keras' own classes.
        shape: `(e, …)`.
        dtype: The variable's.
    """
    if len(shape) < 3 or initializer.get_config().get("seed", 0) is not None:
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


def stack_many(values: list[Tensor]) -> Tensor:
    """Stacks tensors, some at a time: XLA is slow to compile one stack of a thousand."""
    parts = [ops.stack(values[i : i + 32]) for i in range(0, len(values), 32)]
    while len(parts) > 1:
        parts = [ops.concatenate(parts[i : i + 32]) for i in range(0, len(parts), 32)]
    return parts[0]


def _of_copy(config: Any, copy: int, seed_offset: int) -> Config | list[Any] | Any:
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
