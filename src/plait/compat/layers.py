"""Walks over the layers of a model."""

import functools

import keras


@functools.cache
def _functional_class() -> type[keras.Model]:
    """Returns the class of `keras.Model(inputs, outputs)`, which has no public name."""
    x = keras.Input((1,), name="functional_class_input")
    return type(keras.Model(x, keras.layers.Identity(name="functional_class")(x), name="any"))


def is_functional(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a model made of a graph, as `keras.Model(inputs, outputs)` is."""
    return isinstance(layer, _functional_class())


def flat_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns a layer and every layer that it holds, at any depth, each once, parents first."""
    found: dict[int, keras.layers.Layer] = {}
    seen: set[int] = set()

    def visit(value: object) -> None:
        if isinstance(value, keras.layers.Layer):
            if id(value) not in found:
                found[id(value)] = value
                for child in vars(value).values():
                    visit(child)
        elif isinstance(value, (list, tuple, dict)) and id(value) not in seen:
            seen.add(id(value))
            for child in value.values() if isinstance(value, dict) else value:
                visit(child)

    visit(layer)
    return list(found.values())


def refresh_adapted(layer: keras.layers.Layer) -> None:
    """Lets adapted layers compute anew what they keep beside their weights, once these are set."""
    for inner in flat_layers(layer):
        if isinstance(inner, keras.layers.Normalization):
            inner.finalize_state()
