"""The one table of expert templates: name, a built model, its input."""

import keras
import numpy as np
import pytest

layers = keras.layers


def _sequential(shape, *stack, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *stack])


def dense():
    return _sequential((6,), layers.Dense(5, activation="tanh"), layers.Dense(4))


def conv1d():
    return _sequential((7, 3), layers.Conv1D(4, 3, padding="causal", activation="tanh"))


def conv2d():
    return _sequential((6, 6, 2), layers.Conv2D(3, 3, strides=2, padding="same"))


def depthwise_conv2d():
    return _sequential((5, 5, 2), layers.DepthwiseConv2D(3, depth_multiplier=2))


def separable_conv2d():
    return _sequential((5, 5, 2), layers.SeparableConv2D(3, 3, activation="tanh"))


def pooling():
    return _sequential(
        (8, 8, 2),
        layers.Conv2D(3, 3, padding="same"),
        layers.AveragePooling2D(2),
        layers.MaxPooling2D(2),
        layers.GlobalAveragePooling2D(),
    )


def batch_norm():
    return _sequential((6,), layers.Dense(5), layers.BatchNormalization(), layers.Dense(4))


def layer_norm():
    return _sequential((6,), layers.Dense(5), layers.LayerNormalization(), layers.Dense(4))


def dropout():
    return _sequential((6,), layers.Dense(5), layers.Dropout(0.5), layers.Dense(4))


def embedding():
    return _sequential(
        (4,), layers.Embedding(9, 3), layers.Flatten(), layers.Dense(4), dtype="int32"
    )


def gru():
    return _sequential((5, 3), layers.GRU(4))


def lstm():
    return _sequential((5, 3), layers.LSTM(4, return_sequences=True))


def attention():
    x = keras.Input((5, 6))
    return keras.Model(x, layers.MultiHeadAttention(num_heads=2, key_dim=3)(x, x))


def residual():
    x = keras.Input((6,))
    hidden = layers.Dense(6, activation="tanh")(x)
    hidden = layers.Add()([x, layers.Dense(6)(hidden)])
    return keras.Model(x, layers.Concatenate()([hidden, layers.Dense(2)(hidden)]))


@keras.saving.register_keras_serializable("test")
class Subclassed(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = layers.Dense(5, activation="tanh")
        self.second = layers.Dense(units)

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build((input_shape[0], 5))

    def call(self, x):
        return self.second(self.first(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def subclassed():
    model = Subclassed(4)
    model.build((None, 6))
    return model


def nested():
    inner = _sequential((5,), layers.Dense(5, activation="tanh"), layers.Dense(3))
    return _sequential((6,), layers.Dense(5), inner, layers.Dense(4))


def keras_hub():
    hub = pytest.importorskip("keras_hub")
    return _sequential((5, 6), hub.layers.TransformerEncoder(intermediate_dim=7, num_heads=2))


TEMPLATES = [
    dense,
    conv1d,
    conv2d,
    depthwise_conv2d,
    separable_conv2d,
    pooling,
    batch_norm,
    layer_norm,
    dropout,
    embedding,
    gru,
    lstm,
    attention,
    residual,
    subclassed,
    nested,
    keras_hub,
]


def input_of(template, rng, size=5):
    """A batch that a template takes."""
    inputs = getattr(template, "inputs", None) or [keras.KerasTensor((None, 6))]
    shape = (size, *inputs[0].shape[1:])
    if inputs[0].dtype == "int32":
        return rng.integers(0, 9, shape).astype("int32")
    return rng.normal(size=shape).astype("float32")


def gate_for(x, num_experts):
    """A gate that gives logits, one set for each example."""
    shape, dtype = x.shape[1:], str(x.dtype)
    gate = [layers.Flatten(), layers.Rescaling(0.3), layers.Dense(num_experts)]
    return keras.Sequential([keras.Input(shape, dtype=dtype), *gate])


def is_float(x):
    return np.issubdtype(x.dtype, np.floating)
