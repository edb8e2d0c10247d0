"""One set of experts, a gate for each task: MMoE, CGC, PLE."""

import typing

import keras
import numpy as np
import pytest
from keras import ops
from tests.gradients import value_and_gradients
from tests.recipes import as_numpy, gradients, randomize

import plait
from plait.routers import TopK

D, U = 4, 3
TASKS = ("clicks", "likes")


def net(rng, *hidden, name=None):
    stack = [keras.layers.Dense(units, activation="tanh") for units in hidden]
    layers = [keras.Input((D,)), *stack, keras.layers.Dense(U)]
    return randomize(keras.Sequential(layers, name=name), rng)


def alike(rng, count, **arguments):
    return [net(rng, 5, **arguments) for _ in range(count)]


def unlike(rng, count, **arguments):
    return [net(rng, *[5] * number, **arguments) for number in range(count)]


def dense(rng, units, size=D, **arguments):
    return randomize(keras.Sequential([keras.Input((size,)), keras.layers.Dense(units)]), rng)


def multi(rng, experts, router, *, private=None, towers=True, **arguments):
    """A mixture of two tasks whose gates and towers are not as they were initialised."""
    own = {task: len((private or {}).get(task, [])) for task in TASKS}
    return plait.MultiGateMixture(
        experts,
        tasks={task: dense(rng, 2, U) for task in TASKS} if towers else list(TASKS),
        gates={task: dense(rng, len(experts) + own[task]) for task in TASKS},
        private_experts=private or 0,
        router=router,
        **arguments,
    )


def numpy_weights(scores, k):
    order = np.argsort(-scores, axis=-1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    np.put_along_axis(weights, order[:, k:], 0.0, axis=-1)
    return weights / weights.sum(-1, keepdims=True)


def numpy_dense(layer, x):
    kernel, bias = [as_numpy(v.value).astype("float64") for v in layer.variables]
    return x @ kernel + bias


def numpy_net(model, x):
    *before, last = model.layers
    for layer in before:
        x = np.tanh(numpy_dense(layer, x))
    return numpy_dense(last, x)


def numpy_task(experts, gate, tower, x, k):
    weights = numpy_weights(numpy_dense(gate, x), k)
    blend = np.einsum("be,beu->bu", weights, np.stack([numpy_net(e, x) for e in experts], 1))
    return blend if tower is None else numpy_dense(tower, blend)


@pytest.mark.parametrize(
    ("kind", "private", "k", "copied"),
    [
        (alike, False, None, True),
        (alike, False, 2, False),
        (unlike, True, None, False),
        (unlike, False, 1, False),
        (unlike, True, 2, True),
    ],
)
def test_each_output_is_the_formula(kind, private, k, copied, rng):
    """Also where the chosen experts of the tasks overlap, and fill more slots than there are."""
    experts = kind(rng, 3)
    own = {task: kind(rng, 2) for task in TASKS} if private else None
    router = "softmax" if k is None else TopK(k, renormalize=k > 1 or None)
    mix = multi(rng, experts, router, private=own, copy_experts=copied)
    x = rng.normal(size=(7, D)).astype("float32")
    found = mix.predict(x, verbose=0)
    for task in TASKS:
        seen = [*experts, *(own[task] if private else [])]
        gate, tower = mix.gates[task], mix.towers[task]
        if k == 1:
            scores = numpy_dense(gate, x)
            weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            weights = np.where(scores == scores.max(-1, keepdims=True), weights, 0.0)
            outputs = np.stack([numpy_net(expert, x) for expert in seen], 1)
            expected = numpy_dense(tower, np.einsum("be,beu->bu", weights, outputs))
        else:
            expected = numpy_task(seen, gate, tower, x, len(seen) if k is None else k)
        np.testing.assert_allclose(found[task], expected, atol=1e-5)


def two_mixtures(mix, experts, private, router):
    """What people write: one mixture a task, over the same experts."""
    x = keras.Input((D,))
    outputs = {}
    for task in TASKS:
        rule = TopK(2) if router == "top2" else "softmax"
        seen = [*experts, *private.get(task, [])]
        blend = plait.Mixture(seen, mix.gates[task], router=rule, execution="loop")(x)
        outputs[task] = mix.towers[task](blend)
    return keras.Model(x, outputs)


@pytest.mark.parametrize(
    ("kind", "private", "router"),
    [(alike, True, "softmax"), (alike, False, "top2"), (unlike, True, "top2")],
)
def test_gradients_equal_those_of_one_mixture_a_task(kind, private, router, rng):
    experts = kind(rng, 3)
    own = {task: kind(rng, 1) for task in TASKS} if private else {}
    mix = multi(rng, experts, TopK(2) if router == "top2" else router, private=own)
    twice = two_mixtures(mix, experts, own, router)
    x = rng.normal(size=(6, D)).astype("float32")
    upstream = {task: rng.normal(size=(6, 2)).astype("float32") for task in TASKS}
    variables = {v.path + str(id(v)): v for v in mix.trainable_variables}.values()

    def through(model):
        def total(x):
            y = model(x, training=True)
            return sum(ops.sum(ops.multiply(y[task], upstream[task])) for task in TASKS)

        return gradients(total, variables, [x], compiled=True)

    value, found, to_x = through(mix)
    expected_value, expected, expected_to_x = through(twice)
    np.testing.assert_allclose(value, expected_value, rtol=1e-4)
    for left, right in zip([*found, *to_x], [*expected, *expected_to_x], strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("router", ["softmax", "top2"])
def test_training_equals_that_of_one_mixture_a_task(router, rng):
    x = rng.normal(size=(32, D)).astype("float32")
    y = {task: rng.normal(size=(32, 2)).astype("float32") for task in TASKS}
    weight = {task: (rng.random(32) > 0.4).astype("float32") for task in TASKS}
    trained = []
    for build in (lambda mix, *rest: mix, two_mixtures):
        fresh = np.random.default_rng(5)
        experts, own = alike(fresh, 3), {"likes": alike(fresh, 1)}
        mix = multi(fresh, experts, TopK(2) if router == "top2" else router, private=own)
        model = build(mix, experts, own, router)
        model.compile(
            keras.optimizers.Adam(0.01),
            loss=dict.fromkeys(TASKS, "mse"),
            loss_weights={"clicks": 1.0, "likes": 0.3},
        )
        history = model.fit(
            x, y, sample_weight=weight, batch_size=8, epochs=1, verbose=0, shuffle=False
        )
        assert {"clicks_loss", "likes_loss"} <= set(history.history)
        trained.append([as_numpy(v.value) for v in mix.trainable_variables])
    for left, right in zip(*trained, strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


def test_a_label_of_weight_zero_moves_nothing(rng):
    """A row without a label for one task trains the other task alone."""
    x = rng.normal(size=(8, D)).astype("float32")
    weight = {"clicks": np.ones(8), "likes": np.array([1, 1, 1, 1, 0, 0, 0, 0])}
    trained = []
    for missing in (0.0, 1e6):
        fresh = np.random.default_rng(5)
        mix = multi(fresh, alike(fresh, 3), "softmax")
        mix.compile("sgd", dict.fromkeys(TASKS, "mse"))
        y = {task: np.ones((8, 2), "float32") for task in TASKS}
        y["likes"][4:] = missing
        mix.fit(x, y, sample_weight=weight, epochs=2, verbose=0)
        trained.append([as_numpy(v.value) for v in mix.trainable_variables])
    for left, right in zip(*trained, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-7)


@keras.saving.register_keras_serializable("test_multi_gate")
class Broken(keras.layers.Layer):
    """NaN for every row, in value and gradient."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(D, U), initializer="ones")

    def call(self, x):
        return ops.log(ops.matmul(x, self.w) * 0.0 - 1.0)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], U)


@pytest.mark.parametrize("router", ["softmax", "top2"])
def test_a_broken_expert_of_one_task_leaves_the_other_alone(router, rng):
    own = {"clicks": [Broken()], "likes": alike(rng, 1)}
    mix = multi(rng, alike(rng, 2), TopK(2) if router == "top2" else router, private=own)
    mix.gates["clicks"].layers[-1].bias.assign([0.0, 0.0, 50.0])  # under top-2 it is chosen
    x = rng.normal(size=(6, D)).astype("float32")

    def likes(x):
        return ops.sum(mix(x, training=True)["likes"])

    value, found = value_and_gradients(likes, [x])
    assert np.isfinite(value)
    assert np.isfinite(found[0]).all()
    assert np.isnan(as_numpy(mix(x))["clicks"]).all()


def test_what_one_task_chose_is_not_seen_by_another(rng):
    """Under a sparse router also among shared experts."""
    experts = [*alike(rng, 2), Broken()]
    mix = multi(rng, experts, TopK(1))
    mix.gates["clicks"].layers[-1].bias.assign([0.0, 0.0, 50.0])
    mix.gates["likes"].layers[-1].bias.assign([0.0, 0.0, -50.0])
    x = rng.normal(size=(6, D)).astype("float32")
    found = as_numpy(mix(x, training=True))
    assert np.isnan(found["clicks"]).all()
    assert np.isfinite(found["likes"]).all()


@keras.saving.register_keras_serializable("test_multi_gate")
class Rows(keras.layers.Layer):
    """Its input, scaled; notes how many rows it has run on."""

    ran: typing.ClassVar = []

    def __init__(self, number, **kwargs):
        super().__init__(**kwargs)
        self.number = number

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        self.ran.append((self.number, x.shape[0]))
        return x[..., :U] * self.scale

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], U)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="others run padded segments")
def test_an_expert_that_two_tasks_chose_runs_once(rng):
    experts = [Rows(number) for number in range(4)]
    mix = multi(rng, experts, TopK(1))
    for task in TASKS:
        mix.gates[task].layers[-1].bias.assign([50.0, 0.0, 0.0, 0.0])
    mix(np.ones((2, D), "float32"))
    Rows.ran.clear()
    mix(rng.normal(size=(9, D)).astype("float32"))
    assert [(number, rows) for number, rows in Rows.ran if rows] == [(0, 9)]


@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_a_capacity_holds_for_each_task(factor, rng):
    """What a task drops has weight zero there; what it keeps is run, whatever the others keep."""
    experts = alike(rng, 4)
    mix = multi(rng, experts, TopK(2, capacity_factor=factor), towers=False)
    for task in TASKS:
        mix.gates[task].layers[-1].bias.assign([3.0, 2.0, 0.0, 0.0])
    x = rng.normal(size=(12, D)).astype("float32")
    weights, outputs = mix.gate_weights(x), mix.expert_outputs(x)
    loads = (weights > 0).sum(axis=0)
    assert loads.max() <= min(12, np.ceil(factor * 12 * 2 / 4))
    assert (factor == 8.0) == bool((loads.sum(axis=-1) == 24).all())
    found = as_numpy(mix(x))
    for number, task in enumerate(TASKS):
        expected = np.einsum("be,beu->bu", weights[:, number], outputs)
        np.testing.assert_allclose(found[task], expected, atol=1e-5)


def test_weights_are_shown_by_task(rng):
    own = {"clicks": alike(rng, 1), "likes": alike(rng, 2)}
    mix = multi(rng, alike(rng, 2), "softmax", private=own)
    x = rng.normal(size=(5, D)).astype("float32")
    weights = mix.gate_weights(x)
    assert weights.shape == (5, 2, 5)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)
    assert (weights[:, 0, 3:] == 0).all()
    assert (weights[:, 1, 2] == 0).all()
    expected = numpy_weights(numpy_dense(mix.gates["likes"], x), 4)
    np.testing.assert_allclose(weights[:, 1, [0, 1, 3, 4]], expected, atol=1e-6)
    assert mix.expert_outputs(x).shape == (5, 5, U)


def test_responsibilities_are_bayes_rule_by_task(rng):
    mix = multi(rng, alike(rng, 3), "softmax")
    mix.compile("sgd", {"clicks": "mse", "likes": "mse"})
    x = rng.normal(size=(5, D)).astype("float32")
    y = {"likes": rng.normal(size=(5, 2)).astype("float32")}
    found = mix.responsibilities(x, y)
    assert set(found) == {"likes"}
    outputs = mix.expert_outputs(x)
    seen = np.stack([numpy_dense(mix.towers["likes"], outputs[:, e]) for e in range(3)], 1)
    posterior = mix.gate_weights(x)[:, 1] * np.exp(-((seen - y["likes"][:, None]) ** 2).sum(-1))
    posterior /= posterior.sum(-1, keepdims=True)
    np.testing.assert_allclose(found["likes"], posterior, atol=1e-5)
    with pytest.raises(ValueError, match=r"a key of y.*'lixes'.*Use 'likes'"):
        mix.responsibilities(x, {"lixes": y["likes"]})
    with pytest.raises(ValueError, match="dict by task"):
        mix.responsibilities(x, y["likes"])


VARIANTS = {
    "template": lambda rng: {
        "experts": keras.layers.Dense(U),
        "num_experts": 3,
        "tasks": list(TASKS),
        "router": TopK(2, noise=0.1),
    },
    "cgc": lambda rng: {
        "experts": unlike(rng, 2),
        "private_experts": {"likes": unlike(rng, 2)},
        "tasks": {"clicks": keras.layers.Dense(1), "likes": None},
        "gates": {"clicks": "constant", "likes": keras.layers.Dense(4, activation="softmax")},
    },
    "ple": lambda rng: {
        "experts": keras.layers.Dense(U),
        "num_experts": 2,
        "private_experts": 1,
        "tasks": list(TASKS),
        "shared_output": True,
        "router": {"clicks": "sparsemax", "likes": "softmax"},
    },
    "copied": lambda rng: {
        "experts": alike(rng, 2),
        "copy_experts": True,
        "tasks": list(TASKS),
        "gates": [0.3, 0.7],
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_gives_the_same_numbers(variant, rng, tmp_path):
    mix = plait.MultiGateMixture(**VARIANTS[variant](rng), name="mmoe")
    x = rng.normal(size=(6, D)).astype("float32")
    mix(x)
    for variable in mix.trainable_variables:
        variable.assign(0.5 * rng.normal(size=variable.shape))
    mix.compile("adam", dict.fromkeys(mix.task_names, "mse"))
    mix.fit(x, {task: np.ones_like(y) for task, y in as_numpy(mix(x)).items()}, verbose=0)
    expected = mix.predict(x, verbose=0)
    mix.save(tmp_path / "mix.keras")
    loaded = keras.saving.load_model(tmp_path / "mix.keras")
    assert loaded.task_names == mix.task_names
    for task, output in loaded.predict(x, verbose=0).items():
        np.testing.assert_allclose(output, expected[task], atol=1e-6)
    mix.save_weights(tmp_path / "w.weights.h5")
    again = plait.MultiGateMixture.from_config(mix.get_config())
    again(x)
    again.load_weights(tmp_path / "w.weights.h5")
    for task, output in again.predict(x, verbose=0).items():
        np.testing.assert_allclose(output, expected[task], atol=1e-6)


def test_layers_that_tasks_share_are_shared_again_in_a_file(rng, tmp_path):
    tower = dense(rng, 2, U)
    mix = plait.MultiGateMixture(alike(rng, 2), tasks=dict.fromkeys(TASKS, tower))
    mix.save(tmp_path / "mix.keras")
    loaded = keras.saving.load_model(tmp_path / "mix.keras")
    assert loaded.towers["clicks"] is loaded.towers["likes"]


def test_the_callers_models_are_the_experts(rng):
    experts = [net(rng, 5, name="net") for _ in range(3)]
    mix, x = multi(rng, experts, "softmax"), np.ones((2, D), "float32")
    before = as_numpy(mix(x))
    randomize(experts[1], rng)
    after = as_numpy(mix(x))
    assert all(abs(before[task] - after[task]).max() > 1e-3 for task in TASKS)
    assert mix.expert(1) is experts[1]
    assert [expert.name for expert in experts] == ["net"] * 3
    variables = [id(v) for v in mix.trainable_variables]
    assert all(id(v) in variables for expert in experts for v in expert.trainable_variables)


def test_copies_leave_the_callers_models_alone(rng):
    experts = alike(rng, 2)
    before = [as_numpy(v.value) for expert in experts for v in expert.variables]
    mix = multi(rng, experts, "softmax", copy_experts=True)
    mix.compile("sgd", dict.fromkeys(TASKS, "mse"))
    y = {task: np.ones((8, 2), "float32") for task in TASKS}
    mix.fit(np.ones((8, D), "float32"), y, verbose=0)
    after = [as_numpy(v.value) for expert in experts for v in expert.variables]
    for left, right in zip(before, after, strict=True):
        np.testing.assert_array_equal(left, right)
    assert abs(as_numpy(mix.expert(0).variables[0].value) - after[0]).max() > 0


def test_levels_are_progressive_layered_extraction(rng, tmp_path):
    """The shared experts of a level read what the shared gate of the last level gave."""
    expert = keras.layers.Dense(U, activation="tanh")
    first = plait.MultiGateMixture(
        expert,
        num_experts=2,
        private_experts=1,
        tasks=TASKS,
        shared_output=True,
        name="level_1",
    )
    second = plait.MultiGateMixture(
        expert,
        num_experts=1,
        private_experts=2,
        tasks={task: keras.layers.Dense(1) for task in TASKS},
        expert_inputs={"shared": "shared", "clicks": "clicks", "likes": "likes"},
        gate_inputs={"clicks": "clicks", "likes": "likes"},
        name="level_2",
    )
    inputs = keras.Input((D,))
    ple = keras.Model(inputs, second(first(inputs)))
    for variable in ple.trainable_variables:
        variable.assign(0.5 * rng.normal(size=variable.shape))
    x = rng.normal(size=(5, D)).astype("float32")
    middle = as_numpy(first(x))
    weights = first.gate_weights(x)
    assert weights.shape == (5, 3, 4)
    np.testing.assert_allclose(
        middle["shared"], np.einsum("be,beu->bu", weights[:, 2], first.expert_outputs(x)), atol=1e-5
    )
    parts = [middle["shared"], *[middle["clicks"]] * 2, *[middle["likes"]] * 2]
    outputs = np.stack([as_numpy(second.expert(i)(part)) for i, part in enumerate(parts)], 1)
    weights = second.gate_weights(middle)
    found = as_numpy(ple(x))
    for number, task in enumerate(TASKS):
        blend = np.einsum("be,beu->bu", weights[:, number], outputs)
        expected = numpy_dense(second.towers[task], blend)
        np.testing.assert_allclose(found[task], expected, atol=1e-5)
    ple.compile("adam", dict.fromkeys(TASKS, "mse"))
    y = {task: np.ones((5, 1), "float32") for task in TASKS}
    assert np.isfinite(ple.fit(x, y, verbose=0).history["loss"][0])
    ple.save(tmp_path / "ple.keras")
    loaded = as_numpy(keras.saving.load_model(tmp_path / "ple.keras")(x))
    for task, output in as_numpy(ple(x)).items():
        np.testing.assert_allclose(loaded[task], output, atol=1e-6)


@pytest.mark.parametrize("router", ["softmax", TopK(2)], ids=["softmax", "top2"])
def test_steps_are_routed_and_their_masks_kept(router, rng):
    mix = plait.MultiGateMixture(
        keras.layers.Dense(U),
        num_experts=3,
        tasks=list(TASKS),
        gates={task: keras.layers.Dense(3) for task in TASKS},
        router=router,
    )
    steps = keras.Sequential([keras.layers.Masking(), mix])
    x = rng.normal(size=(2, 5, D)).astype("float32")
    x[:, 3:] = 0
    y = steps(x)
    assert tuple(y["likes"].shape) == (2, 5, U)
    assert mix.gate_weights(x).shape == (2, 5, 2, 3)
    weights, outputs = mix.gate_weights(x), mix.expert_outputs(x)
    for number, task in enumerate(TASKS):
        expected = np.einsum("bte,bteu->btu", weights[:, :, number], outputs)
        np.testing.assert_allclose(as_numpy(y)[task], expected, atol=1e-5)
        mask = plait.compat.masks_of(y[task])[0]
        np.testing.assert_array_equal(as_numpy(mask)[0], [1, 1, 1, 0, 0])


def test_a_dtype_policy_holds(rng):
    mix = plait.MultiGateMixture(
        keras.layers.Dense(U, dtype="mixed_bfloat16"),
        num_experts=2,
        tasks=list(TASKS),
        dtype="mixed_bfloat16",
    )
    y = mix(np.ones((2, D), "float32"))
    spec = mix.compute_output_spec(keras.KerasTensor((None, D)))
    for task in TASKS:
        assert keras.backend.standardize_dtype(y[task].dtype) == spec[task].dtype == "bfloat16"
        assert spec[task].shape == (None, U)


def test_no_rows_give_no_rows(rng):
    y = multi(rng, alike(rng, 2), "softmax")(np.ones((0, D), "float32"))
    assert {task: tuple(output.shape) for task, output in y.items()} == dict.fromkeys(TASKS, (0, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"tasks": []}, ValueError, r"at least one task.*tasks=\[\]"),
        ({"tasks": ["a", "a"]}, ValueError, "must differ.*'a', 'a'"),
        ({"tasks": [1]}, TypeError, "must be a string.*1.*Use '1'"),
        ({"tasks": ["a/b"]}, ValueError, "'a/b'"),
        ({"tasks": ["shared"]}, ValueError, "be 'shared'.*Received: 'shared'"),
        ({"tasks": {"a": 3}}, TypeError, "tower of task 'a'.*3 of type int"),
        ({"private_experts": -1}, ValueError, "private_experts=-1"),
        ({"private_experts": 1}, ValueError, "needs a template.*a list of 2 experts"),
        ({"private_experts": {"c": []}}, ValueError, "a key of private_experts.*'c'"),
        ({"gates": keras.layers.Dense(2)}, TypeError, "gate of its own.*gates={'a': layer"),
        ({"gates": {"c": None}}, ValueError, "a key of gates.*'c'"),
        ({"router": {"c": None}}, ValueError, "a key of router.*'c'"),
        ({"gate_inputs": {"c": 0}}, ValueError, "a key of gate_inputs.*'c'"),
        ({"expert_inputs": {"c": 0}}, ValueError, "a key of expert_inputs.*'c'"),
        ({"experts": [keras.layers.Dense(2), 5]}, TypeError, "Expert 1"),
    ],
)
def test_bad_arguments_are_named(arguments, error, said):
    experts = [keras.layers.Dense(U), keras.layers.Dense(U)]
    with pytest.raises(error, match=said):
        plait.MultiGateMixture(**{"experts": experts, "tasks": ["a", "b"], **arguments})


def test_a_template_and_lists_of_private_experts_do_not_mix():
    with pytest.raises(ValueError, match=r"a dict with the keys \['a'\]"):
        plait.MultiGateMixture(
            keras.layers.Dense(U),
            num_experts=2,
            tasks=["a"],
            private_experts={"a": [keras.layers.Dense(U)]},
        )


def test_gates_that_route_other_axes_are_named(rng):
    mix = plait.MultiGateMixture(
        [keras.layers.Dense(U)] * 2, tasks=["a", "b"], gates={"b": keras.layers.Dense(2)}
    )
    with pytest.raises(ValueError, match=r"\(None, 5, 2\) for 'b' and \(None, 2\) for 'a'"):
        mix.build((None, 5, D))


def test_an_objective_of_parts_is_refused(rng):
    mix = multi(rng, alike(rng, 2), "softmax")
    with pytest.raises(ValueError, match="MixtureNLL"):
        mix.compile("sgd", {"clicks": plait.losses.MixtureNLL("gaussian"), "likes": "mse"})
