"""Upcycling: layers of a trained model become mixtures that compute the same at the start."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import tree

from plait import routers
from plait.compat import is_functional, refresh_adapted
from plait.errors import choose_from, message
from plait.experts.initialization import copy_of
from plait.mixture import Mixture
from plait.mixture.specs import takes_single_rows
from plait.typing import Config, Nested


def _is_graph(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.Sequential) or is_functional(layer)


Spec: type[Any] = keras.KerasTensor


class Upcycled(NamedTuple):
    """What `upcycle` gives.

    Attributes:
        model: The new model; it shares no weights with the given one, and is not compiled.
        difference: Largest absolute difference between the outputs of the two.
    """

    model: keras.Model
    difference: float


def upcycle(
    model: keras.Model,
    layers: str | Sequence[str] | None = None,
    num_experts: int = 4,
    router: routers.Router | str | Config | None = None,
    *,
    noise: float = 0.0,
    seed: int | None = None,
    x: Nested = None,
) -> Upcycled:
    """Turns layers of a trained model into mixtures of copies of themselves.

    Every expert starts as a copy of the layer, and a new linear gate on the layer's input weighs
    each step of a sequence. Where the weights sum to one, the mixture computes what the layer did:
    `Σ_l w_l(x) · f(x) = f(x)`. Training goes on from there (Komatsuzaki et al. 2022).

    Equal experts under a dense router get equal gradients up to their weights, so that they become
    different only slowly; `noise` makes them different at the start, and the model's output with
    them.

    Args:
        model: A trained functional or Sequential model; it is left as it is.
        layers: Name of a layer, or a list of names: `Dense` layers, nested models such as
            feed-forward blocks, or any other layer with one input and one output. Layers of nested
            models are found too. `None` takes every `Dense` layer that is not the model's last.
        num_experts: Number of copies, `e`.
        router: As in `Mixture`. `None`: the gate's output is the weights, so the gate ends in a
            softmax. `plait.routers.TopK(2)` runs two copies for each row. Routers whose weights do
            not sum to one, such as `TopK(1)` or any with a capacity, do not keep the function.
        noise: Standard deviation of the noise on each copy's kernels, relative to the standard
            deviation of the kernel itself. Vectors, such as biases, stay as they are.
        seed: Seed of the noise.
        x: Data `(b, …)` to compare the two models on, as for `predict`; `None` draws 16 examples of
            standard normal numbers for inputs of floating type and known shape.

    Returns:
        An `Upcycled`: the new model, and the largest difference between the two outputs.

    Raises:
        ValueError: If a layer does not exist, has several inputs, or cannot be copied; if
            `noise` is negative; if no inputs can be drawn.
        TypeError: If the model is neither functional nor Sequential.

    Example:
    >>> import keras, plait
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(1)]
    ... )
    >>> upcycled = plait.training.upcycle(model, "hidden", num_experts=3)
    >>> upcycled.model.get_layer("hidden").num_experts, upcycled.difference < 1e-5
    (3, True)

    References:
        Komatsuzaki et al. (2022), Sparse upcycling: training mixture-of-experts from dense
        checkpoints.
    """
    _check(model, num_experts, noise)
    names = _chosen(model, layers)
    rng = np.random.default_rng(seed)
    rule = routers.get(router)

    def cloned(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name in names:
            return _mixture_of(layer, num_experts, rule, noise, rng)
        if _is_graph(layer) and names & {inner.name for inner in _layers(layer)}:
            return keras.models.clone_model(layer, clone_function=cloned)
        return copy_of(layer)

    new = keras.models.clone_model(model, clone_function=cloned)
    _carry_over(model, new, names)
    data = _samples(model) if x is None else x
    return Upcycled(new, _difference(model, new, data))


def _check(model: keras.layers.Layer, num_experts: int, noise: float) -> None:
    if not _is_graph(model):
        raise TypeError(
            message(
                "`upcycle` takes a functional or Sequential Keras model, whose layers it can see",
                f"{model!r} of type {type(model).__name__}",
                "For a model class of your own, use plait.Mixture where it makes its layers",
            )
        )
    if not model.built:
        raise ValueError(
            message(
                "`upcycle` needs a model that is built",
                f"{model.name!r}, which has seen no input yet",
                "Train it first",
            )
        )
    if not isinstance(num_experts, int) or num_experts < 1:
        raise ValueError(
            message(
                "`num_experts` of upcycle must be an integer of at least 1",
                f"num_experts={num_experts!r}",
                "Use num_experts=4",
            )
        )
    if not 0 <= noise < float("inf"):
        raise ValueError(
            message(
                "`noise` of upcycle must be a number of at least 0",
                f"noise={noise!r}",
                "Use noise=0.0 to keep the function exactly",
            )
        )


def _layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of a model and of the models nested in it."""
    found: list[keras.layers.Layer] = []
    for layer in model.layers:
        found.append(layer)
        if _is_graph(layer):
            found += _layers(layer)
    return found


def _chosen(model: keras.Model, layers: str | Sequence[str] | None) -> set[str]:
    """Returns the names of the layers to turn into mixtures."""
    known = [layer.name for layer in _layers(model)]
    if layers is None:
        dense = [layer.name for layer in _layers(model) if isinstance(layer, keras.layers.Dense)]
        names = dense[:-1]
    else:
        names = [layers] if isinstance(layers, str) else list(layers)
    for name in names:
        if name not in known:
            raise ValueError(choose_from("layers", name, known))
    if not names:
        raise ValueError(
            message(
                "`upcycle` needs a layer to turn into a mixture",
                f"layers={layers!r} for {model.name!r} with layers {', '.join(map(repr, known))}",
                "Name one or more of them",
            )
        )
    return set(names)


def _mixture_of(
    layer: keras.layers.Layer,
    num_experts: int,
    rule: routers.Router | None,
    noise: float,
    rng: np.random.Generator,
) -> Mixture:
    """Returns a mixture of copies of a layer."""
    spec = _input_of(layer)
    after = tuple(layer.compute_output_spec(spec).shape)
    # Weights per step where the layer keeps the steps, else per example.
    by_step = after[:-1] == tuple(spec.shape)[:-1]
    scores = "linear" if rule is not None and rule.from_logits else "softmax"
    gate = keras.layers.Dense(num_experts, activation=scores) if by_step else None
    by_rows = rule is not None and rule.sparse and by_step
    experts = []
    for offset in range(num_experts):
        expert = _copy(layer, offset, spec, by_rows)
        _set_weights(expert, [_noisy(value, noise, rng) for value in layer.get_weights()])
        experts.append(expert)
    # Owned by the mixture, experts of one architecture are one stack of variables and one call.
    return Mixture(experts, gate, router=_another(rule), copy_experts=True, name=layer.name)


def _another(router: routers.Router | None) -> routers.Router | None:
    """Returns a router like the given one, under a name of its own."""
    if router is None:
        return None
    config = {key: value for key, value in router.get_config().items() if key != "name"}
    return type(router).from_config(config)


def _input_of(layer: keras.layers.Layer) -> keras.KerasTensor:
    """Returns the symbolic input of a layer.

    Raises:
        ValueError: If the layer has several inputs.
    """
    try:
        spec = layer.input
    except (AttributeError, ValueError):
        spec = None
    if isinstance(spec, (list, tuple)):  # Keras counts a mask as an input
        numbers = [one for one in spec if one.dtype != "bool"]
        spec = numbers[0] if len(numbers) == 1 else spec
    if not isinstance(spec, Spec):
        raise ValueError(
            message(
                "A layer to upcycle must have one input",
                f"{layer.name!r} of type {type(layer).__name__}, which has several or none",
                "Name other layers",
            )
        )
    return Spec(spec.shape, spec.dtype)


def _copy(
    layer: keras.layers.Layer, offset: int, spec: keras.KerasTensor, by_rows: bool
) -> keras.layers.Layer:
    """Returns a built copy; one that takes single rows where they are routed and it can."""
    row = Spec((None, *spec.shape[-1:]), spec.dtype)
    if by_rows and isinstance(layer, keras.Sequential) and len(spec.shape) > 2:
        parts = [copy_of(part, offset) for part in layer.layers]
        # Not a model: the mixture would build early, for single rows instead of sequences.
        expert = keras.layers.Pipeline(parts, name=layer.name)
        if takes_single_rows(expert, row):
            expert(row)
            return expert
    if by_rows and is_functional(layer) and len(spec.shape) > 2:
        one = keras.models.clone_model(
            layer,
            input_tensors=keras.Input(spec.shape[-1:], dtype=spec.dtype),
            clone_function=lambda part: copy_of(part, offset),
        )
        expert = keras.layers.Pipeline([one], name=layer.name)
        expert(row)
        return expert
    expert = copy_of(layer, offset)
    if not expert.built:
        expert(spec)
    return expert


def _noisy(value: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    if noise == 0 or value.ndim < 2:
        return value
    return value + noise * value.std() * rng.standard_normal(value.shape).astype(value.dtype)


def _carry_over(old: keras.Model, new: keras.Model, names: set[str]) -> None:
    """Gives the layers that were not turned into mixtures the weights they had."""
    for layer in old.layers:
        if layer.name in names or isinstance(layer, keras.layers.InputLayer):
            continue
        copy = new.get_layer(layer.name)
        if _is_graph(layer):
            _carry_over(layer, copy, names)
        else:
            _set_weights(copy, layer.get_weights())


def _set_weights(layer: keras.layers.Layer, values: list[np.ndarray]) -> None:
    """Sets all weights, and recomputes the constants that adapted layers make of theirs."""
    layer.set_weights(values)
    refresh_adapted(layer)


def _samples(model: keras.Model) -> Nested:
    """Returns 16 examples of standard normal numbers, in the structure of the model's input."""
    rng = np.random.default_rng(0)

    def draw(spec: keras.KerasTensor) -> np.ndarray:
        shape = tuple(spec.shape)[1:]
        if "float" not in spec.dtype or None in shape:
            raise ValueError(
                message(
                    "`upcycle` draws only inputs of floating type and known shape",
                    f"an input of dtype {spec.dtype} and shape {tuple(spec.shape)}",
                    "Pass `x`, some data for the model",
                )
            )
        return rng.standard_normal((16, *shape)).astype(spec.dtype)

    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return tree.map_structure(draw, inputs)


def _difference(old: keras.Model, new: keras.Model, x: Nested) -> float:
    pairs = zip(*(tree.flatten(model.predict(x, verbose=0)) for model in (old, new)), strict=True)
    return max(float(np.max(np.abs(a - b))) for a, b in pairs)
