"""Every bad input is an error that gives the rule, the value received and the remedy."""

import keras
import numpy as np
import pytest
from keras import ops

import plait

layers = keras.layers
D, U = 4, 3


def net(units=U, name=None):
    return keras.Sequential([keras.Input((D,)), layers.Dense(units)], name=name)


def nets(count=2):
    return [net() for _ in range(count)]


@keras.saving.register_keras_serializable("test")
class Labels(layers.Layer):
    """Gives whole numbers, such as labels."""

    def call(self, x):
        return ops.cast(x[..., :U], "int32")

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape[:-1], U), dtype="int32")


class NoConfig(layers.Layer):
    """Has an argument that its config does not tell."""

    def __init__(self, secret):
        super().__init__()
        self.secret = secret
        self.dense = layers.Dense(U)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        return self.dense(x)


def called(make, shape=(2, D)):
    """Makes the mixture and calls it: an error may come as soon as it is known."""

    def run():
        return make()(np.ones(shape, "float32"))

    return run


# what is wrong, how it comes about, the error, what it says
MISTAKES = [
    ("no experts", lambda: plait.Mixture([]), ValueError, r"at least one expert.*experts=\[\]"),
    (
        "experts that read different inputs",
        lambda: plait.Mixture([net(), keras.Sequential([keras.Input((D + 1,)), layers.Dense(U)])]),
        ValueError,
        r"Expert 1 \('sequential.*'\) must take .*shape \(None, 4\).*expert_inputs",
    ),
    ("experts are None", lambda: plait.Mixture(None), ValueError, "experts=None"),
    (
        "an expert is a function",
        lambda: plait.Mixture([net(), np.tanh]),
        TypeError,
        "Expert 1 must be a Keras model or layer.*ufunc",
    ),
    ("a template alone", lambda: plait.Mixture(net(name="one")), ValueError, "'one'.*num_experts"),
    (
        "num_experts is zero",
        lambda: plait.Mixture(net(), num_experts=0),
        ValueError,
        "at least 1. Received: num_experts=0",
    ),
    (
        "num_experts is no integer",
        lambda: plait.Mixture(net(), num_experts=2.0),
        ValueError,
        r"integer.*num_experts=2\.0",
    ),
    (
        "num_experts contradicts the list",
        lambda: plait.Mixture(nets(), num_experts=3),
        ValueError,
        "2 experts and num_experts=3",
    ),
    (
        "one expert's shape differs",
        called(lambda: plait.Mixture([net(name="a"), net(name="b"), net(5, "wide")], "uniform")),
        ValueError,
        r"Expert 2 \('wide'\) returns shape \(None, 5\), but expert 0 \('a'\) returns \(None, 3\)",
    ),
    (
        "one expert's structure differs",
        called(
            lambda: plait.Mixture(
                [
                    net(),
                    keras.Model(x := keras.Input((D,)), [layers.Dense(U)(x)] * 1, name="lists"),
                ]
            )
        ),
        ValueError,
        r"Expert 1 \('lists'\)",
    ),
    (
        "a gate that counts wrongly",
        called(lambda: plait.Mixture(nets(), layers.Dense(3, name="gating"))),
        ValueError,
        r"each of the 2 experts.*'gating' with output shape \(\w+, 3\)",
    ),
    (
        "a gate that gives integers",
        called(lambda: plait.Mixture(nets(U), Labels(name="gating"))),
        TypeError,
        "'gating' with dtype int32",
    ),
    (
        "a gate that gives a list",
        called(
            lambda: plait.Mixture(
                nets(),
                keras.Model(x := keras.Input((D,)), [layers.Dense(2)(x), x], name="gating"),
            )
        ),
        ValueError,
        "'gating' with outputs",
    ),
    (
        "weights of the wrong rank",
        called(
            lambda: plait.Mixture(
                [keras.Sequential([layers.Flatten(), layers.Dense(U)]) for _ in "ab"],
                layers.Dense(2),
            ),
            (2, 5, D),
        ),
        ValueError,
        r"prefix.*\(2, 5, 2\) over outputs of shape \(2, 3\)",
    ),
    (
        "integer outputs",
        called(lambda: plait.Mixture([net(), Labels(name="labels")])),
        TypeError,
        r"Expert 1 \('labels'\) must return floating-point.*int32",
    ),
    (
        "an unknown router",
        lambda: plait.Mixture(nets(), router="topp"),
        ValueError,
        "Received: 'topp'. Use 'topk'",
    ),
    (
        "a router that is none",
        lambda: plait.Mixture(nets(), router=3),
        (TypeError, ValueError),
        "Received: 3",
    ),
    (
        "an unknown gate",
        lambda: plait.Mixture(nets(), gate="unifrom"),
        ValueError,
        "Received: 'unifrom'. Use 'uniform'",
    ),
    ("a gate that is none", lambda: plait.Mixture(nets(), gate=3), TypeError, "Received: 3 of"),
    (
        "an unknown execution",
        lambda: plait.Mixture(nets(), execution="stack"),
        ValueError,
        "Received: 'stack'. Use 'stacked'",
    ),
    (
        "an input key that does not exist",
        lambda: plait.Mixture(
            [layers.Dense(U)] * 2, layers.Dense(2), expert_inputs=["a", "c"], gate_inputs="a"
        )({"a": np.ones((2, D)), "b": np.ones((2, D))}),
        ValueError,
        "expert 1.*'a', 'b'.*Received: 'c'",
    ),
    (
        "an unknown feature size under the default gate",
        lambda: plait.Mixture([layers.Dense(U)] * 2)(keras.Input((None, D))),
        ValueError,
        r"every size of its input but the batch.*\(None, None, 4\)",
    ),
    (
        "a template that cannot be copied",
        called(lambda: plait.Mixture(NoConfig(7), num_experts=2)),
        ValueError,
        "NoConfig.*Implement `get_config`",
    ),
    (
        "more chosen than there are",
        called(lambda: plait.Mixture(nets(), layers.Dense(2), router=plait.routers.TopK(3))),
        ValueError,
        r"\[1, num_experts=2\]. Received: k=3",
    ),
    (
        "an expert out of range",
        lambda: plait.Mixture(nets(), "uniform").expert(2),
        IndexError,
        "experts 0 to 1. Received: i=2",
    ),
    (
        "an expert of a mixture that is not built",
        lambda: plait.Mixture([layers.Dense(U)] * 2, name="fresh").expert(0),
        ValueError,
        "`expert` needs a mixture that is built.*'fresh'",
    ),
]


@pytest.mark.parametrize(
    ("mistake", "error", "match"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES]
)
def test_a_mistake_is_put_into_words(mistake, error, match):
    with pytest.raises(error, match=match):
        mistake()


def test_nothing_to_stack_is_warned_about():
    x = np.ones((2, D), "float32")
    unlike = [net(), keras.Sequential([layers.Dense(5), layers.Dense(U)])]
    with pytest.warns(UserWarning, match="found no experts to stack: its architecture differs"):
        plait.Mixture(unlike, "uniform", execution="stacked")(x)


def test_a_replaced_expert_is_refused():
    mixture = plait.Mixture([net(name=name) for name in "ab"], "uniform", name="mix")
    mixture.compile("sgd", "mse")
    x = np.ones((2, 4), "float32")
    mixture.predict(x, verbose=0)
    mixture.experts[0] = net(name="c")
    for look in (
        mixture,
        mixture.gate_weights,
        mixture.expert_outputs,
        lambda x: mixture.get_config(),
    ):
        with pytest.raises(ValueError, match="'mix', whose `experts` hold other models now"):
            look(x)
