"""What makes experts alike, so that one call may run them all, and what does not."""

import keras
import numpy as np
import pytest
from keras import ops

import plait
from plait.experts.signature import alike

layers = keras.layers
D = 4


def relu(x):
    return ops.relu(x)


class Scaled(layers.Layer):
    """A user's layer with attributes that its config does not tell."""

    def __init__(self, units=3, **attributes):
        super().__init__()
        self.units = units
        self.dense = layers.Dense(units)
        for name, value in attributes.items():
            setattr(self, name, value)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {"units": self.units}


@keras.saving.register_keras_serializable("test_signature")
class Registered(layers.Layer):
    """Adds one."""

    def call(self, x):
        return x + 1.0


class Net(keras.Model):
    """A user's model with a layer in a list and one in a dict."""

    def __init__(self, activation="tanh", rate=0.5, **attributes):
        super().__init__()
        self.stack = [layers.Dense(5, activation=activation), layers.Dropout(rate)]
        self.heads = {"only": layers.Dense(3)}
        for name, value in attributes.items():
            setattr(self, name, value)

    def call(self, x):
        for layer in self.stack:
            x = layer(x)
        return self.heads["only"](x)


def net(*stack, **kwargs):
    return keras.Sequential([keras.Input((D,)), *stack], **kwargs)


def functional(activation="tanh", merge=layers.Add, swap=False):
    x = keras.Input((D,))
    left, right = layers.Dense(3, activation=activation)(x), layers.Dense(3)(x)
    return keras.Model(x, merge()([right, left] if swap else [left, right]))


def frozen(model, *path):
    layer = model
    for position in path:
        layer = layer.layers[position]
    layer.trainable = False
    return model


def with_variable_frozen(model):
    model.layers[0].kernel.trainable = False
    return model


def with_attribute(model, name, value):
    setattr(model.layers[0], name, value)
    return model


class Same:
    """An object that is equal to another of its number."""

    def __init__(self, number):
        self.number = number

    def __eq__(self, other):
        return self.number == other.number

    def __hash__(self):
        return hash(self.number)


thing = object()
ALIKE = {
    "two of one architecture": lambda: [net(layers.Dense(3)) for _ in "ab"],
    "names": lambda: [net(layers.Dense(3, name=n), name=f"net_{n}") for n in "ab"],
    "initialisers": lambda: [
        net(layers.Dense(3, kernel_initializer=i)) for i in ("zeros", "glorot_uniform")
    ],
    "seeds": lambda: [net(layers.Dropout(0.5, seed=s), layers.Dense(3)) for s in (1, 2)],
    "graphs with other names": lambda: [functional(), functional()],
    "both frozen": lambda: [frozen(net(layers.Dense(3))) for _ in "ab"],
    "a layer frozen in both": lambda: [frozen(net(layers.Dense(3)), 0) for _ in "ab"],
    "models in models": lambda: [net(net(layers.Dense(3)), layers.Dense(2)) for _ in "ab"],
    "a subclassed layer": lambda: [Scaled(rate=0.5, table=np.ones(3)) for _ in "ab"],
    "a subclassed model": lambda: [Net() for _ in "ab"],
    "a subclassed model with a text": lambda: [Net(mode="x", sizes=[1, {"a": 2}]) for _ in "ab"],
    "one function": lambda: [Scaled(function=relu) for _ in "ab"],
    "one object": lambda: [Scaled(thing=thing) for _ in "ab"],
    "equal objects": lambda: [Scaled(thing=Same(1)) for _ in "ab"],
    "equal Keras objects": lambda: [Scaled(thing=keras.regularizers.L2(0.1)) for _ in "ab"],
    "mixtures of a subclass that own it": lambda: [
        plait.Mixture(net(Registered()), "uniform", num_experts=2) for _ in "ab"
    ],
    "bare layers": lambda: [layers.LSTM(3) for _ in "ab"],
}
UNLIKE = {
    "number of units": lambda: [net(layers.Dense(u)) for u in (3, 4)],
    "activation": lambda: [net(layers.Dense(3, activation=a)) for a in ("tanh", "relu")],
    "rate of dropout": lambda: [net(layers.Dropout(r), layers.Dense(3)) for r in (0.1, 0.2)],
    "regulariser": lambda: [
        net(layers.Dense(3, kernel_regularizer=keras.regularizers.L2(r))) for r in (0.1, 0.2)
    ],
    "constraint": lambda: [net(layers.Dense(3, kernel_constraint=c)) for c in (None, "non_neg")],
    "order of layers": lambda: [
        net(layers.ReLU(), layers.Dense(3)),
        net(layers.Dense(3), layers.ReLU()),
    ],
    "wiring of a graph": lambda: [
        functional(merge=layers.Subtract, swap=swap) for swap in (False, True)
    ],
    "activation in a graph": lambda: [functional("tanh"), functional("relu")],
    "dtype policy": lambda: [net(layers.Dense(3, dtype=d)) for d in ("float32", "mixed_bfloat16")],
    "one frozen": lambda: [net(layers.Dense(3)), frozen(net(layers.Dense(3)))],
    "a layer of one frozen": lambda: [net(layers.Dense(3)), frozen(net(layers.Dense(3)), 0)],
    "a layer without variables frozen": lambda: [
        net(layers.Dropout(0.5), layers.Dense(3)),
        frozen(net(layers.Dropout(0.5), layers.Dense(3)), 0),
    ],
    "an inner layer frozen": lambda: [
        net(net(layers.Dense(3))),
        frozen(net(net(layers.Dense(3))), 0, 0),
    ],
    "one variable frozen": lambda: [
        net(layers.Dense(3)),
        with_variable_frozen(net(layers.Dense(3))),
    ],
    "activation set afterwards": lambda: [
        net(layers.Dense(3)),
        with_attribute(net(layers.Dense(3)), "activation", keras.activations.relu),
    ],
    "rate set afterwards": lambda: [
        net(layers.Dropout(0.5), layers.Dense(3)),
        with_attribute(net(layers.Dropout(0.5), layers.Dense(3)), "rate", 0.1),
    ],
    "activity regulariser set afterwards": lambda: [
        net(layers.Dense(3)),
        with_attribute(net(layers.Dense(3)), "activity_regularizer", keras.regularizers.L2(0.1)),
    ],
    "a number of a subclass": lambda: [Scaled(rate=r) for r in (1, 2)],
    "a number and a float": lambda: [Scaled(rate=r) for r in (1, 1.0)],
    "a text of a subclass": lambda: [Net(mode=m) for m in "xy"],
    "an array of a subclass": lambda: [Scaled(table=np.arange(3) + s) for s in (0, 1)],
    "an array's dtype": lambda: [Scaled(table=np.ones(3, d)) for d in ("float32", "int32")],
    "a nested list": lambda: [Net(sizes=[1, {"a": v}]) for v in (2, 3)],
    "a function of a subclass": lambda: [Scaled(function=f) for f in (relu, ops.tanh)],
    "objects of unknown kind": lambda: [Scaled(thing=object()) for _ in "ab"],
    "unequal objects": lambda: [Scaled(thing=Same(v)) for v in (1, 2)],
    "Keras objects": lambda: [Scaled(thing=keras.regularizers.L2(v)) for v in (0.1, 0.2)],
    "a layer within a subclass": lambda: [Net(activation=a) for a in ("tanh", "relu")],
    "a rate within a subclass": lambda: [Net(rate=r) for r in (0.1, 0.2)],
    "a subclass within a model": lambda: [net(Scaled(rate=r)) for r in (1, 2)],
    "classes": lambda: [layers.GRU(3), layers.SimpleRNN(3)],
    "an attribute that one lacks": lambda: [Scaled(), Scaled(rate=1)],
}


def built(experts):
    for expert in experts:
        if not expert.built:
            shape = (2, 5, D) if isinstance(expert, layers.RNN) else (2, D)
            expert(np.zeros(shape, "float32"))
    return experts


@pytest.mark.parametrize("what", ALIKE)
def test_these_do_not_count(what):
    assert alike(built(ALIKE[what]())) == [[0, 1]]


@pytest.mark.parametrize("what", UNLIKE)
def test_these_count(what):
    assert alike(built(UNLIKE[what]())) == [[0], [1]]


def test_values_do_not_count(rng):
    one, other = (net(layers.Dense(3), layers.BatchNormalization()) for _ in "ab")
    for variable in other.variables:
        variable.assign(rng.normal(size=variable.shape))
    assert alike([one, other]) == [[0, 1]]


def test_training_and_prediction_do_not_count(rng):
    """A model that was compiled, trained and asked is as it was."""
    one, other = net(layers.Dense(3)), net(layers.Dense(3))
    nets = [Net(), Net()]
    built(nets)
    for model in (other, nets[1]):
        model.compile("sgd", "mse", run_eagerly=True)
        model.fit(np.ones((4, D), "float32"), np.ones((4, 3), "float32"), verbose=0)
        model.predict(np.ones((4, D), "float32"), verbose=0)
    assert alike([one, other]) == [[0, 1]]
    assert alike(nets) == [[0, 1]]


def test_groups_come_in_the_order_of_their_first_members():
    experts = [net(layers.Dense(u)) for u in (3, 2, 3, 1, 2)]
    assert alike(experts) == [[0, 2], [1, 4], [3]]


def test_experts_with_a_variable_in_common_are_alike_to_none():
    shared, one = layers.Dense(3), net(layers.Dense(3))
    experts = [net(shared), net(shared), one, one, net(layers.Dense(3)), net(layers.Dense(3))]
    assert alike(experts) == [[0], [1], [2], [3], [4, 5]]


class KeepsTensor(Scaled):
    def call(self, x):
        self.last = x
        return self.dense(x)


class KeepsMetric(Scaled):
    def build(self, input_shape):
        self.mean = keras.metrics.Mean()
        super().build(input_shape)


class SavesItself(Scaled):
    def load_own_variables(self, store):
        super().load_own_variables(store)


class HasNoConfig(Scaled):
    def get_config(self):
        raise NotImplementedError("no config")


@pytest.mark.parametrize("kind", [KeepsTensor, KeepsMetric, SavesItself, HasNoConfig])
def test_state_that_a_shared_call_would_lose_keeps_experts_apart(kind):
    assert alike(built([kind(), kind()])) == [[0], [1]]


def test_layers_that_keep_state_between_batches_are_apart():
    experts = [
        keras.Sequential([keras.Input((5, D), batch_size=2), layers.LSTM(3, stateful=True)])
        for _ in "ab"
    ]
    assert alike(experts) == [[0], [1]]
