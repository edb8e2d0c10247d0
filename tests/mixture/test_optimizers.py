"""Execution does not change what an optimizer does; where owning the variables does, it is said."""

import warnings

import keras
import numpy as np
import pytest

import plait
from plait.mixture.optimizers import what_differs

layers, optimizers = keras.layers, keras.optimizers
D, U, L = 4, 3, 3
NORM = 1e-5
# Rounding of the gradient is not divided out where an optimizer looks at its sign or at a ratio of
# small numbers: there it is larger in the update.
RATIO = 1e-4


class ByPath(optimizers.SGD):
    """Layers called `slow` learn at a tenth of the rate, as in fine-tuning."""

    def build(self, variables):
        self.rates = [0.1 if "slow" in variable.path else 1.0 for variable in variables]
        super().build(variables)

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(trainable_variables)
        grads = [rate * grad for rate, grad in zip(self.rates, grads, strict=True)]
        return super().apply(grads, trainable_variables)


class ByShape(optimizers.SGD):
    """A user's optimizer that looks at a whole variable: the step has a norm of one."""

    def update_step(self, gradient, variable, learning_rate):
        norm = keras.ops.sqrt(keras.ops.sum(keras.ops.square(gradient)))
        super().update_step(gradient / norm, variable, learning_rate)


def decaying(**excluded):
    def make(experts):
        optimizer = optimizers.AdamW(0.01, weight_decay=0.1)
        given = {
            "var_list": lambda: {"var_list": [experts[0].layers[0].kernel]},
            "var_names": lambda: {"var_names": ["^bias$"]},
        }
        for kind in excluded:
            optimizer.exclude_from_weight_decay(**given[kind]())
        return optimizer

    return make


def plain(name, *args, **kwargs):
    return lambda experts: getattr(optimizers, name)(*args, **kwargs)


def scaled(make):
    return lambda experts: optimizers.LossScaleOptimizer(make(experts), initial_scale=64.0)


# Each optimizer, how far single and shared calls may differ relative to the whole update, and what
# the warning says where a stack of variables is treated otherwise.
TABLE = {
    "SGD": (plain("SGD", 0.1), NORM, None),
    "SGD with momentum": (plain("SGD", 0.1, momentum=0.9, nesterov=True), NORM, None),
    "RMSprop": (plain("RMSprop", 0.01, momentum=0.5, centered=True), RATIO, None),
    "Adam": (plain("Adam", 0.01, amsgrad=True), RATIO, None),
    "AdamW": (plain("AdamW", 0.01, weight_decay=0.1), RATIO, None),
    "Adadelta": (plain("Adadelta", 1.0), RATIO, None),
    "Adagrad": (plain("Adagrad", 0.1), RATIO, None),
    "Adamax": (plain("Adamax", 0.01), RATIO, None),
    "Nadam": (plain("Nadam", 0.01), RATIO, None),
    "Ftrl": (plain("Ftrl", 0.1, l1_regularization_strength=0.01), RATIO, None),
    "Lion": (plain("Lion", 0.01), RATIO, None),
    "ScheduleFreeAdamW": (plain("ScheduleFreeAdamW", 0.01), RATIO, None),
    "Adafactor": (plain("Adafactor", 0.1), RATIO, "The update of Adafactor"),
    "Lamb": (plain("Lamb", 0.1), RATIO, "The update of Lamb"),
    "Muon": (plain("Muon", 0.1), RATIO, "The update of Muon"),
    "clipnorm": (plain("SGD", 0.1, clipnorm=0.1), NORM, "Clipnorm=0.1 of SGD"),
    "clipvalue": (plain("SGD", 0.1, clipvalue=0.05), NORM, None),
    "global_clipnorm": (plain("SGD", 0.1, global_clipnorm=0.1), NORM, None),
    "no decay of names": (decaying(var_names=True), RATIO, None),
    "use_ema": (
        plain("SGD", 0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
        NORM,
        None,
    ),
    "accumulation": (plain("SGD", 0.1, gradient_accumulation_steps=2), NORM, None),
    "loss scaling": (scaled(plain("SGD", 0.1, momentum=0.9)), NORM, None),
    "scaled clipnorm": (scaled(plain("SGD", 0.1, clipnorm=0.1)), NORM, "Clipnorm=0.1 of SGD"),
    "schedule": (
        plain("SGD", optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)),
        NORM,
        None,
    ),
    "MultiOptimizer": (
        lambda experts: optimizers.MultiOptimizer(
            optimizers.OptimizerMap(optimizers.SGD(0.1), {".*bias": optimizers.Adam(0.01)})
        ),
        RATIO,
        "The update of MultiOptimizer",
    ),
    "by path": (lambda experts: ByPath(0.1), NORM, "The update of ByPath"),
    "by shape": (lambda experts: ByShape(0.1), NORM, "The update of ByShape"),
}
NEW = ("MultiOptimizer", "Muon", "ScheduleFreeAdamW")  # not in every Keras that plait runs on
TABLE = {name: row for name, row in TABLE.items() if name not in NEW or hasattr(optimizers, name)}
# What only a list of given models can be asked for: it names variables of single experts.
OF_GIVEN = {
    "no decay of a variable": (decaying(var_list=True), RATIO, None),
}
# Warned about though the numbers agree: nothing says that a class of the caller's is safe.
UNKNOWN_BUT_EQUAL = {"MultiOptimizer", "by path"}
# `auto` runs as one of the others does, so that a few lines are enough.
RUNS = [
    *((name, "stacked") for name in [*TABLE, *OF_GIVEN]),
    *((name, "auto") for name in ("SGD with momentum", "AdamW", "by path", *OF_GIVEN)),
]
COPIES = {"copy_experts": True}


def made(way):
    """A mixture of alike experts, whose layer `slow` comes second, with weights of its own."""
    rng = np.random.default_rng(7)

    def net():
        stack = [layers.Dense(5, activation="tanh"), layers.Dense(U, name="slow")]
        model = keras.Sequential([keras.Input((D,)), *stack])
        for variable in model.variables:
            variable.assign(rng.normal(size=variable.shape))
        return model

    experts = [net() for _ in range(L)]
    return experts, plait.Mixture(experts, "constant", **way)


def four_steps(make, way):
    """The experts' weights before and after, and the texts of the warnings of `compile`."""
    experts, mixture = made(way)
    before = [value for expert in experts for value in expert.get_weights()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Eagerly: an optimizer's rule is the same, and is not compiled for each line of the table.
        mixture.compile(make(experts), "mse", run_eagerly=True)
        mixture.compile(make(experts), "mse", run_eagerly=True)
    rng = np.random.default_rng(5)
    x, y = (rng.normal(size=(16, size)).astype("float32") for size in (D, U))
    mixture.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    after = [value for i in range(L) for value in mixture.expert(i).get_weights()]
    return (
        np.concatenate([v.ravel() for v in before]),
        np.concatenate([v.ravel() for v in after]),
        [str(w.message) for w in caught],
    )


def distance(left, right, before):
    """How far two results are apart, relative to the way that the first has gone."""
    return np.linalg.norm(left - right) / np.linalg.norm(left - before)


@pytest.fixture(scope="module")
def looped():
    """Weights that the experts of a list have after training one by one."""
    known = {}

    def weights(name):
        if name not in known:
            make = {**TABLE, **OF_GIVEN}[name][0]
            before, after, said = four_steps(make, {"execution": "loop"})
            assert not said
            assert np.linalg.norm(after - before) > 1e-3
            known[name] = before, after
        return known[name]

    return weights


@pytest.mark.parametrize(("name", "execution"), RUNS)
def test_given_experts_are_trained_the_same_whichever_way_they_run(name, execution, looped):
    make, tolerance, _ = {**TABLE, **OF_GIVEN}[name]
    before, expected = looped(name)
    _, found, said = four_steps(make, {"execution": execution})
    assert not said
    assert distance(expected, found, before) < tolerance


@pytest.mark.parametrize("name", TABLE)
def test_copies_are_trained_as_given_experts_are_or_compile_says_once_that_they_are_not(
    name, looped
):
    make, tolerance, text = TABLE[name]
    before, expected = looped(name)
    _, found, said = four_steps(make, COPIES)
    apart = distance(expected, found, before)
    if text is None:
        assert not said
        assert apart < tolerance
    else:
        assert len(said) == 1
        assert said[0].startswith(text)
        assert "without `copy_experts`" in said[0]
        assert (apart < tolerance) == (name in UNKNOWN_BUT_EQUAL)
        assert apart < tolerance or apart > 100 * tolerance


@pytest.mark.parametrize("name", TABLE)
def test_a_template_is_warned_of_as_copies_are(name):
    make, _, text = TABLE[name]
    mixture = plait.Mixture(made({})[0][0], "constant", num_experts=L)
    assert (what_differs(make(None)) is None) == (text is None)
    if text is None:
        mixture.compile(make(None), "mse")
    else:
        with pytest.warns(UserWarning, match=text):
            mixture.compile(make(None), "mse")


def test_every_optimizer_of_keras_is_in_the_table():
    """A new one is to be tried before it is said to be safe."""
    known = {"LossScaleOptimizer", *(type(make(None)).__name__ for make, *_ in TABLE.values())}
    classes = {
        name
        for name, value in vars(optimizers).items()
        if isinstance(value, type) and issubclass(value, optimizers.Optimizer)
    }
    assert classes - known == {"Optimizer"}
