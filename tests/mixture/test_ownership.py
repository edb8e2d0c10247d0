"""Experts that are passed in are the mixture's, at every moment; copies are nobody else's."""

import types

import keras
import numpy as np
import pytest
from tests.recipes import as_numpy, randomize

import plait

layers = keras.layers
D, U, L = 4, 3, 3
WEIGHTS = np.array([0.2, 0.3, 0.5], "float32")
EXECUTIONS = ["loop", "stacked"]
every_execution = pytest.mark.parametrize("execution", EXECUTIONS)
X = np.random.default_rng(1).normal(size=(8, D)).astype("float32")
Y = np.random.default_rng(2).normal(size=(8, U)).astype("float32")


def net(rng, *between):
    stack = [layers.Dense(5, activation="tanh"), *between, layers.Dense(U)]
    return randomize(keras.Sequential([keras.Input((D,)), *stack]), rng)


def nets(*between, seed=3):
    rng = np.random.default_rng(seed)
    return [net(rng, *(make() for make in between)) for _ in range(L)]


def expected(experts, weights=WEIGHTS, x=X):
    """The formula, of what the caller's models give when they are called."""
    return sum(w * as_numpy(e(x)) for w, e in zip(weights, experts, strict=True))


def world(execution):
    """Three models, two mixtures of them, and a functional model around the first."""
    experts = nets()
    mixture = plait.Mixture(experts, list(WEIGHTS), execution=execution)
    x = keras.Input((D,))
    outer = keras.Model(x, layers.Rescaling(2.0)(mixture(x)))
    second = plait.Mixture(experts[::-1], [0.6, 0.3, 0.1], execution=execution)
    for model in [*experts, mixture, outer, second]:
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.optimizer.build(model.trainable_variables)  # as it is once loaded from a file
    return types.SimpleNamespace(experts=experts, mixture=mixture, outer=outer, second=second)


@pytest.fixture(scope="module")
def worlds():
    """A world for each execution, compiled once; what is expected is asked of its experts."""
    return {execution: world(execution) for execution in EXECUTIONS}


def elsewhere(w):
    return nets(seed=int(1e6 * abs(w.experts[1].get_weights()[0][0, 0])))


def loaded(model, file):
    """Loads other weights than the present, which were saved before."""
    model.set_weights([0.7 * value + 0.1 for value in model.get_weights()])
    model.save_weights(file)
    model.set_weights([value / 0.7 for value in model.get_weights()])
    model.load_weights(file)


def halve(variable):
    variable.assign(0.5 * as_numpy(variable.value) + 0.1)


# What a user may do to change the experts' values, by the experts or by what they are part of.
SET = {
    "set_weights": lambda w, _: w.experts[1].set_weights(elsewhere(w)[1].get_weights()),
    "load_weights": lambda w, folder: loaded(w.experts[1], folder / "e.weights.h5"),
    "assign": lambda w, _: halve(w.experts[2].layers[0].kernel),
    "fit of an expert": lambda w, _: w.experts[0].fit(X, Y, verbose=0),
    "train_on_batch of an expert": lambda w, _: w.experts[1].train_on_batch(X, Y),
    "expert(i)": lambda w, _: halve(w.mixture.expert(1).layers[-1].bias),
    "set_weights of the mixture": lambda w, _: w.mixture.set_weights(
        [0.7 * value for value in w.mixture.get_weights()]
    ),
    "load_weights of the mixture": lambda w, folder: loaded(w.mixture, folder / "m.weights.h5"),
    "fit of the mixture": lambda w, _: w.mixture.fit(X, Y, verbose=0),
    "train_on_batch of the mixture": lambda w, _: w.mixture.train_on_batch(X, Y),
    "fit of a model around it": lambda w, _: w.outer.fit(X, Y, verbose=0),
    "fit of another mixture": lambda w, _: w.second.fit(X, Y, verbose=0),
}


@pytest.mark.parametrize("change", SET)
@every_execution
def test_what_changes_the_experts_is_seen_everywhere(execution, change, worlds, tmp_path):
    """By calls, compiled predictions, parts, an outer model and a second mixture."""
    w = worlds[execution]
    before = expected(w.experts)
    SET[change](w, tmp_path)
    wanted = expected(w.experts)
    assert np.abs(wanted - before).max() > 1e-4
    close = {"atol": 1e-5}
    np.testing.assert_allclose(as_numpy(w.mixture(X)), wanted, **close)
    np.testing.assert_allclose(w.mixture.predict(X, verbose=0), wanted, **close)
    np.testing.assert_allclose(w.outer.predict(X, verbose=0), 2 * wanted, **close)
    parts = w.mixture.expert_outputs(X)
    for i, expert in enumerate(w.experts):
        np.testing.assert_allclose(parts[:, i], as_numpy(expert(X)), **close)
        assert w.mixture.expert(i) is expert
    reverse = expected(w.experts[::-1], [0.6, 0.3, 0.1])
    np.testing.assert_allclose(w.second.predict(X, verbose=0), reverse, **close)


@every_execution
def test_what_was_changed_is_what_is_saved(execution, worlds, tmp_path):
    """As a whole and as weights alone, from the mixture and from a model around it."""
    w = worlds[execution]
    w.mixture.predict(X, verbose=0)
    halve(w.experts[0].layers[0].kernel)
    wanted = expected(w.experts)
    w.mixture.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(as_numpy(loaded(X)), wanted, atol=1e-5)
    w.outer.save(tmp_path / "o.keras")
    around = keras.models.load_model(tmp_path / "o.keras")
    np.testing.assert_allclose(as_numpy(around(X)), 2 * wanted, atol=1e-5)
    w.mixture.save_weights(tmp_path / "m.weights.h5")
    fresh = nets(seed=9)
    plait.Mixture(fresh, list(WEIGHTS)).load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_allclose(expected(fresh), wanted, atol=1e-5)


@every_execution
def test_a_callback_sees_the_experts_of_each_epoch(execution, worlds):
    """With a learning rate of zero after the first, they stay what that epoch made of them."""
    w = worlds[execution]
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append([e.get_weights()[0].copy() for e in w.experts])

    w.mixture.fit(X, Y, epochs=2, callbacks=[Look()], verbose=0)
    for i, expert in enumerate(w.experts):
        assert (seen[0][i] != seen[1][i]).any()
        np.testing.assert_array_equal(seen[1][i], expert.get_weights()[0])


@every_execution
def test_the_list_given_is_the_list_kept(execution):
    experts = nets()
    mixture = plait.Mixture(experts, execution=execution)
    assert all(own is given for own, given in zip(mixture.experts, experts, strict=True))
    owned = {id(v) for v in mixture.variables}
    assert all(id(v) in owned for expert in experts for v in expert.variables)


def tune(mixture, steps=2):
    if not mixture.trainable_variables:
        return
    mixture.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    for _ in range(steps):
        mixture.train_on_batch(X, Y)


# Flags that a caller sets, and which variables then must not move.
FREEZE = {
    "an expert": lambda e: setattr(e[1], "trainable", False),
    "a layer of one": lambda e: setattr(e[1].layers[0], "trainable", False),
    "the same layer of each": lambda e: [setattr(m.layers[0], "trainable", False) for m in e],
    "all": lambda e: [setattr(m, "trainable", False) for m in e],
}


@pytest.mark.parametrize("when", ["before", "after", "trained before"])
@pytest.mark.parametrize("what", FREEZE)
@every_execution
def test_frozen_variables_hold_still_whenever_they_are_frozen(execution, what, when):
    """And the others move; released again, all of them do."""
    experts = nets()
    if when == "before":
        FREEZE[what](experts)
    mixture = plait.Mixture(experts, list(WEIGHTS), execution=execution)
    if when == "trained before":
        tune(mixture)
    if when != "before":
        FREEZE[what](experts)
    frozen = {id(v) for e in experts for v in e.non_trainable_variables}
    variables = [v for e in experts for v in e.variables]
    before = [as_numpy(v.value) for v in variables]
    tune(mixture)
    for variable, old in zip(variables, before, strict=True):
        assert (as_numpy(variable.value) == old).all() == (id(variable) in frozen), variable.path
    for layer in [layer for expert in experts for layer in [expert, *expert.layers]]:
        layer.trainable = True  # each: TensorFlow passes nothing on from one that is True
    tune(mixture)
    assert all((as_numpy(v.value) != old).any() for v, old in zip(variables, before, strict=True))


@every_execution
def test_namesakes_that_are_released_later_are_trained_as_those_of_two_names(execution):
    """On PyTorch Keras clears one gradient of a path; those of an earlier step must not add up."""

    def trained(names):
        rng, experts = np.random.default_rng(3), []
        for name in names:
            dense = layers.Dense(U, name="dense")
            experts.append(keras.Sequential([keras.Input((D,)), dense], name=name))
            randomize(experts[-1], rng)
            experts[-1].trainable = False
        mixture = plait.Mixture(experts, [0.4, 0.6], execution=execution)
        for expert in experts:
            expert.trainable = True
        tune(mixture, 3)
        return [value for expert in experts for value in expert.get_weights()]

    for left, right in zip(trained(["net", "net"]), trained(["one", "two"]), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def lora(experts):
    experts[1].layers[0].enable_lora(2)
    halve(experts[1].layers[0].lora_kernel_b)


def lora_everywhere(experts):
    for expert in experts:
        expert.layers[0].enable_lora(2)
        halve(expert.layers[0].lora_kernel_b)


# What changes how an expert computes, not only its values.
REBUILD = {
    "enable_lora on one": lora,
    "enable_lora on each": lora_everywhere,
    "quantize one": lambda e: e[1].quantize("int8"),
    "quantize each": lambda e: [m.quantize("int8") for m in e],
    "another activation": lambda e: setattr(
        e[2].layers[0], "activation", keras.activations.get("relu")
    ),
}


@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.slow), "after"])
@pytest.mark.parametrize("what", REBUILD)
@every_execution
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`:UserWarning")
@pytest.mark.filterwarnings("ignore:execution='stacked' found no experts:UserWarning")
def test_an_expert_that_computes_otherwise_does_so_in_the_mixture(execution, what, when, tmp_path):
    """Also where experts were stacked until then, and where the mixture is saved afterwards."""
    experts = nets()
    if when == "before":
        REBUILD[what](experts)
    mixture = plait.Mixture(experts, list(WEIGHTS), execution=execution)
    if when == "after":
        before = as_numpy(mixture(X))
        REBUILD[what](experts)
        assert np.abs(expected(experts) - before).max() > 1e-4
    wanted = expected(experts)
    np.testing.assert_allclose(as_numpy(mixture(X)), wanted, atol=1e-5)
    assert [mixture.expert(i) for i in range(L)] == experts
    if "quantize" not in what:
        tune(mixture, 1)
        wanted = expected(experts)
        np.testing.assert_allclose(as_numpy(mixture(X)), wanted, atol=1e-5)
    if "activation" not in what and execution == "loop":  # an activation set later is in no config
        mixture.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        np.testing.assert_allclose(as_numpy(loaded(X)), wanted, atol=1e-4)


class Scales(layers.Layer):
    """Multiplies by what its settings say."""

    def __init__(self):
        super().__init__()
        self.settings = {"factor": 1.0}

    def call(self, x):
        return x * self.settings["factor"]

    def get_config(self):
        return {}


@every_execution
def test_a_setting_that_is_changed_in_place_is_seen(execution):
    experts = nets(Scales)
    mixture = plait.Mixture(experts, list(WEIGHTS), execution=execution)
    mixture(X)
    experts[1].layers[1].settings["factor"] = 5.0
    np.testing.assert_allclose(as_numpy(mixture(X)), expected(experts), atol=1e-5)


@every_execution
def test_low_rank_updates_are_trained_as_worked_by_hand(execution):
    """Namesakes too: both experts are called `net`, and their layers `dense`."""
    rng, experts = np.random.default_rng(3), []
    for _ in "ab":
        dense = layers.Dense(U, name="dense")
        experts.append(keras.Sequential([keras.Input((D,)), dense], name="net"))
        randomize(experts[-1], rng)
    kernels, bias = zip(*(expert.get_weights() for expert in experts), strict=True)
    up = [rng.normal(size=(D, 2)).astype("float32") for _ in experts]
    low, bias = [np.zeros((2, U)) for _ in experts], list(bias)
    mixture = plait.Mixture(experts, [0.4, 0.6], execution=execution)
    for expert, a in zip(experts, up, strict=True):
        expert.layers[0].enable_lora(2)
        expert.layers[0].lora_kernel_a.assign(a)
    tune(mixture, 3)
    w = [0.4, 0.6]
    for _ in range(3):  # by hand: d loss / d out = 2 (out - y) / (b u)
        out = sum(w[i] * (X @ (kernels[i] + up[i] @ low[i]) + bias[i]) for i in range(2))
        upstream = 2 * (out - Y) / Y.size
        for i in range(2):
            to_kernel = w[i] * X.T @ upstream
            to_up, to_low = to_kernel @ low[i].T, up[i].T @ to_kernel
            bias[i] = bias[i] - 0.1 * w[i] * upstream.sum(0)
            up[i], low[i] = up[i] - 0.1 * to_up, low[i] - 0.1 * to_low
    for i, expert in enumerate(experts):
        dense = expert.layers[0]
        np.testing.assert_allclose(as_numpy(dense.lora_kernel_b), low[i], atol=1e-5)
        np.testing.assert_allclose(as_numpy(dense.lora_kernel_a), up[i], atol=1e-5)


@every_execution
def test_an_expert_given_twice_has_one_set_of_variables(execution):
    """Its gradient is the sum of both places."""
    one, other, third = nets()
    weights = [*WEIGHTS, 0.0]
    mixture = plait.Mixture([one, other, one, third], weights, execution=execution)
    np.testing.assert_allclose(as_numpy(mixture(X)), expected([one, other, one]), atol=1e-5)
    assert mixture.expert(0) is mixture.expert(2) is one
    assert len(mixture.variables) == 3 * len(one.variables)
    twin, pair = nets()[:2]
    same = plait.Mixture([twin, pair], [0.7, 0.3], execution="loop")
    tune(mixture)
    tune(same)
    for left, right in zip(one.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_the_experts_a_copy_is_made_of_never_move(tmp_path):
    experts = nets(layers.BatchNormalization)
    before = [value for expert in experts for value in expert.get_weights()]
    mixture = plait.Mixture(experts, list(WEIGHTS), copy_experts=True)
    wanted = expected(experts)
    np.testing.assert_allclose(as_numpy(mixture(X)), wanted, atol=1e-5)
    tune(mixture)
    moved = as_numpy(mixture(X))
    assert np.abs(moved - wanted).max() > 1e-3
    mixture.expert(1).set_weights([0 * value for value in mixture.expert(1).get_weights()])
    mixture.save_weights(tmp_path / "m.weights.h5")
    mixture.set_weights([0 * value for value in mixture.get_weights()])
    mixture.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_allclose(as_numpy(mixture(X)), moved, atol=1e-5)
    after = [value for expert in experts for value in expert.get_weights()]
    for left, right in zip(before, after, strict=True):
        np.testing.assert_array_equal(left, right)
    for expert in experts:
        expert.set_weights([0 * value for value in expert.get_weights()])
    np.testing.assert_allclose(as_numpy(mixture(X)), moved, atol=1e-5)


OWNED = {
    "loop": {"execution": "loop"},
    "stacked": {"execution": "stacked"},
    "copies": {"copy_experts": True},
    "template": {"num_experts": L},
}


def statistics(mixture):
    """Moving means of every expert."""
    return np.stack(
        [
            np.array(layer.moving_mean)
            for i in range(L)
            for layer in mixture.expert(i).layers
            if isinstance(layer, layers.BatchNormalization)
        ]
    )


@pytest.mark.parametrize("frozen", ["before", "after", "not"])
@pytest.mark.parametrize("way", OWNED)
def test_frozen_batch_norm_holds_still(way, frozen):
    """Frozen by its layer before, or by the whole mixture after it was made."""
    experts = nets(layers.BatchNormalization)
    if frozen == "before":
        for expert in experts:
            expert.layers[1].trainable = False
    given = experts[0] if way == "template" else experts
    mixture = plait.Mixture(given, list(WEIGHTS), **OWNED[way])
    if frozen == "after":
        mixture.trainable = False
    before = statistics(mixture)
    mixture(X, training=True)
    assert (statistics(mixture) == before).all() == (frozen != "not")
    if frozen == "after":
        mixture.trainable = True
        mixture(X, training=True)
        assert (statistics(mixture) != before).any(axis=-1).all()


@pytest.mark.parametrize("way", ["copies", "template"])
def test_frozen_experts_of_a_stack_are_released_with_the_mixture(way):
    experts = nets()
    for expert in experts:
        expert.layers[0].trainable = False
    given = experts[0] if way == "template" else experts
    mixture = plait.Mixture(given, list(WEIGHTS), **OWNED[way])
    assert len(mixture.trainable_variables) == 2
    tune(mixture)
    for flag in (False, True):  # TensorFlow passes nothing on where the flag is True already
        mixture.trainable = flag
    before = [[value.copy() for value in mixture.expert(i).get_weights()] for i in range(L)]
    tune(mixture)
    for i in range(L):
        for old, new in zip(before[i], mixture.expert(i).get_weights(), strict=True):
            assert (old != new).any()


@pytest.mark.parametrize("way", ["copies", "template"])
def test_what_changes_single_layers_is_refused_by_a_stack_and_changes_nothing(way):
    experts = nets()
    given = experts[0] if way == "template" else experts
    mixture = plait.Mixture(given, list(WEIGHTS), **OWNED[way])
    before, names = mixture.get_weights(), [v.path for v in mixture.variables]
    wanted = as_numpy(mixture(X))
    with pytest.raises(ValueError, match=r"`quantize` changes.*without `copy_experts`"):
        mixture.quantize("int8")
    stack = next(layer for layer in mixture.layers if "net" in layer.name or "seq" in layer.name)
    with pytest.raises(ValueError, match=r"`enable_lora` changes.*without `copy_experts`"):
        stack.enable_lora(2)
    assert [v.path for v in mixture.variables] == names
    for left, right in zip(before, mixture.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(as_numpy(mixture(X)), wanted)


@keras.saving.register_keras_serializable("test")
class Failing(layers.Layer):
    """Passes its input on, unless `error` is set."""

    error = None

    def call(self, x):
        if Failing.error is not None:
            raise Failing.error
        return 1.0 * x

    def compute_output_shape(self, input_shape):
        return input_shape


def how_it_runs(mixture):
    return [(group.positions, group.runner.vectorized) for group in mixture.state.bank.groups(True)]


# `vmap` in the text: an error that is not about vectorising is not taken for one.
ERRORS = [MemoryError("no memory"), ZeroDivisionError("in vmap"), ValueError("a bug in vmap")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("way", OWNED)
def test_a_call_that_fails_changes_nothing_for_the_next(way, error, monkeypatch, recwarn):
    experts = nets(Failing)
    given = experts[0] if way == "template" else experts
    mixture = plait.Mixture(given, list(WEIGHTS), **OWNED[way])
    wanted = as_numpy(mixture(X))
    before = [
        (positions, runner.vectorized) for positions, runner in mixture.state.bank.groups(True)
    ]
    monkeypatch.setattr(Failing, "error", error)
    with pytest.raises(Exception, match=str(error)):  # TensorFlow wraps some in one of its own
        mixture(X[1:])  # of another shape: what was compiled for the first would not call it
    monkeypatch.undo()
    np.testing.assert_array_equal(as_numpy(mixture(X)), wanted)
    after = [
        (positions, runner.vectorized) for positions, runner in mixture.state.bank.groups(True)
    ]
    assert after == before
    assert not [w for w in recwarn if "__array__" not in str(w.message)]


@pytest.mark.parametrize("way", OWNED)
def test_the_summary_shows_experts_with_shapes_and_counts_and_no_helper(way):
    experts = nets()
    for number, expert in enumerate(experts):
        expert.name = f"net_{number}"
    given = experts[0] if way == "template" else experts
    mixture = plait.Mixture(given, router=plait.routers.Softmax(name="softmax"), **OWNED[way])
    mixture.predict(X, verbose=0)
    mixture.expert_outputs(X)
    lines = []
    mixture.summary(print_fn=lambda text, **_: lines.append(text))
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in "\n".join(lines).splitlines()
        if line.startswith("│")
    ]
    count = experts[0].count_params()
    names = [row[0].split(" (")[0] for row in rows]
    shape, many = f"(None, {U})", f"{L * count}"
    shown = dict(zip(names, (row[1:] for row in rows), strict=True))
    assert shown.pop("gate") == [f"(None, {L})", str(L * (D + 1))]
    assert shown.pop("softmax")[0] == f"(None, {L})"
    if way in ("loop", "stacked"):
        assert shown == {f"net_{i}": [shape, str(count)] for i in range(L)}
    else:
        assert shown == {f"{L} × net_0": [shape, many]}  # noqa: RUF001


def test_copies_of_unlike_experts_share_no_arrays_with_them(rng):
    """Keras on JAX deletes the arrays of a model that it trains or predicts with."""
    experts = [
        keras.Sequential([keras.Input((3,)), *map(keras.layers.Dense, widths)])
        for widths in ([2], [5, 2])
    ]
    mixture = plait.Mixture(experts, copy_experts=True)
    mixture.compile("sgd", "mse")
    x = rng.normal(size=(4, 3)).astype("float32")
    before = [as_numpy(expert(x)) for expert in experts]
    mixture.predict(x, verbose=0)
    taken = mixture.expert(0)
    mixture.fit(x, before[0], verbose=0)
    for left, expert in zip(before, [taken, experts[1]], strict=True):
        np.testing.assert_allclose(as_numpy(expert(x)), left, atol=1e-6)
    np.testing.assert_allclose(as_numpy(experts[0](x)), before[0], atol=1e-6)
