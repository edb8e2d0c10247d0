"""A mixture is a Keras model in every respect."""

import importlib

import keras
import numpy as np
import pytest
from tests.recipes import as_numpy, gate_weights, merged

import plait

layers = keras.layers
D, U = 4, 3
EXECUTIONS = ["loop", "stacked", "sparse"]
every_execution = pytest.mark.parametrize("execution", EXECUTIONS)


def net(name=None):
    stack = [layers.Dense(5, activation="tanh"), layers.Dense(U, activation="softmax")]
    return keras.Sequential([keras.Input((D,)), *stack], name=name)


def gate_net(count=3):
    return keras.Sequential([keras.Input((D,)), layers.Dense(count)])


def mixture_of(execution, experts=None, gate=None, **options):
    router = "softmax"
    if execution == "sparse":
        execution, router = "auto", plait.routers.TopK(2)
    return plait.Mixture(
        experts or [net() for _ in range(3)],
        gate or gate_net(),
        router=router,
        execution=execution,
        **options,
    )


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(17)
    x = rng.normal(size=(32, D)).astype("float32")
    return x, np.eye(U, dtype="float32")[x[:, :U].argmax(-1)]


@every_execution
def test_fit_lowers_the_loss_and_evaluate_and_predict_agree_with_it(execution, data):
    x, y = data
    mixture = mixture_of(execution)
    mixture.compile(keras.optimizers.Adam(0.05), "categorical_crossentropy", metrics=["accuracy"])
    history = mixture.fit(x, y, batch_size=16, epochs=8, validation_data=(x, y), verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    found = mixture.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["loss"], history["val_loss"][-1], rtol=1e-4)
    probabilities = mixture.predict(x, verbose=0)
    loss = -np.log((probabilities * y).sum(-1)).mean()
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-4)
    accuracy = (probabilities.argmax(-1) == y.argmax(-1)).mean()
    np.testing.assert_allclose(found["accuracy"], accuracy, rtol=1e-4)


@every_execution
def test_the_models_of_the_caller_hold_the_trained_weights(execution, data, tmp_path):
    """After fit and after load_weights, as `expert(i)` does."""
    x, y = data
    experts, gate = [net() for _ in range(3)], gate_net()
    mixture = mixture_of(execution, experts, gate)
    mixture.compile("adam", "mse")
    mixture.fit(x, y, verbose=0)
    mixture.save_weights(tmp_path / "first.weights.h5")
    first = mixture.predict(x, verbose=0)
    mixture.fit(x, y, verbose=0)

    def by_hand():
        weights = gate_weights(gate(x), 2 if execution == "sparse" else None)
        return as_numpy(merged(weights, [expert(x) for expert in experts]))

    np.testing.assert_allclose(mixture.predict(x, verbose=0), by_hand(), atol=1e-5)
    for number, expert in enumerate(experts):
        given = mixture.expert(number)
        for left, right in zip(given.get_weights(), expert.get_weights(), strict=True):
            np.testing.assert_array_equal(left, right)
    mixture.load_weights(tmp_path / "first.weights.h5")
    np.testing.assert_allclose(mixture.predict(x, verbose=0), first, atol=1e-6)
    np.testing.assert_allclose(by_hand(), first, atol=1e-5)


def test_the_summary_names_every_expert(capsys):
    experts = [net("sharp"), net("blunt"), layers.Dense(U, name="odd")]
    mixture = plait.Mixture(experts, gate_net(), router="softmax")
    mixture.summary(line_length=160)
    shown = capsys.readouterr().out
    for name in ("sharp", "blunt", "odd"):
        assert name in shown
    total = sum(int(np.prod(v.shape)) for e in experts for v in e.variables) + 3 * (D + 1)
    assert f"Trainable params: {total}" in shown


@every_execution
def test_callbacks_checkpoint_and_stop(execution, data, tmp_path):
    x, y = data
    mixture = mixture_of(execution)
    mixture.compile(keras.optimizers.SGD(0.0), "mse")
    path = tmp_path / "best.keras"
    history = mixture.fit(
        x,
        y,
        epochs=5,
        validation_data=(x, y),
        verbose=0,
        callbacks=[
            keras.callbacks.ModelCheckpoint(path, save_best_only=True),
            keras.callbacks.EarlyStopping(patience=1, min_delta=0.1, restore_best_weights=True),
        ],
    )
    assert len(history.history["loss"]) == 2
    loaded = keras.saving.load_model(path)
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), mixture.predict(x, verbose=0), atol=1e-6
    )


def test_sample_and_class_weights_weigh_the_loss(data):
    x, y = data
    mixture = mixture_of("stacked")
    mixture.compile(keras.optimizers.SGD(0.0), "categorical_crossentropy")
    losses = -np.log((mixture.predict(x, verbose=0) * y).sum(-1))
    sample = np.linspace(0.0, 2.0, len(x)).astype("float32")
    found = mixture.fit(x, y, batch_size=32, sample_weight=sample, verbose=0).history["loss"]
    np.testing.assert_allclose(found, [(losses * sample).mean()], rtol=1e-4)
    by_class = {0: 0.0, 1: 1.0, 2: 3.0}
    found = mixture.fit(x, y, batch_size=32, class_weight=by_class, verbose=0).history["loss"]
    sample = np.array([by_class[number] for number in y.argmax(-1)])
    np.testing.assert_allclose(found, [(losses * sample).mean()], rtol=1e-4)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.x[8 * i : 8 * i + 8], self.y[8 * i : 8 * i + 8]


def tf_data(x, y):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


def torch_loader(x, y):
    torch = pytest.importorskip("torch")
    data = importlib.import_module("torch.utils.data")
    return data.DataLoader(data.TensorDataset(torch.tensor(x), torch.tensor(y)), batch_size=8)


def generator(x, y):
    for i in [0, 1, 2, 3] * 2:  # Keras draws one batch more than it trains on
        yield x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8]


@pytest.mark.parametrize("source", [Batches, tf_data, torch_loader, generator])
@pytest.mark.parametrize("execution", [pytest.param("stacked", marks=pytest.mark.slow), "sparse"])
def test_data_of_any_source_is_fitted(source, execution, data):
    x, y = data
    mixture = mixture_of(execution)
    mixture.compile(keras.optimizers.SGD(0.0), "mse")
    expected = ((mixture.predict(x, verbose=0) - y) ** 2).mean()
    found = mixture.fit(source(x, y), steps_per_epoch=4, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(found, [expected], rtol=1e-4)


@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize("execution", ["loop", "stacked"])
def test_compiled_or_not_the_numbers_are_the_same(execution, jit_compile, data):
    x, y = data
    if keras.config.backend() == "torch":
        jit_compile = False  # Keras hands True to TorchDynamo, which needs a C++ toolchain
    mixture = mixture_of(execution)
    before = as_numpy(mixture(x))
    mixture.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
    np.testing.assert_allclose(mixture.predict(x, verbose=0), before, atol=1e-5)
    found = mixture.fit(x, y, batch_size=32, verbose=0).history["loss"]
    np.testing.assert_allclose(found, [((before - y) ** 2).mean()], rtol=1e-4)


def test_a_sparse_mixture_says_before_it_is_built_whether_it_runs_under_xla():
    """A model around it is compiled, and asks, before anything is built."""
    stack = [keras.layers.Dense(3) for _ in "ab"]
    unbuilt = plait.Mixture(stack, keras.layers.Dense(2), router=plait.routers.TopK(1))
    assert unbuilt.supports_jit == (keras.config.backend() in ("jax", "numpy"))
    dense = plait.Mixture(stack, keras.layers.Dense(2), router="softmax")
    assert dense.supports_jit == (keras.config.backend() != "torch")


@pytest.mark.parametrize("eagerly", [True, False])
def test_a_sparse_mixture_runs_eagerly_and_compiled(eagerly, data):
    x, y = data
    mixture = mixture_of("sparse")
    before = as_numpy(mixture(x))
    mixture.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=eagerly)
    np.testing.assert_allclose(mixture.predict(x, verbose=0), before, atol=1e-5)
    found = mixture.fit(x, y, batch_size=32, verbose=0).history["loss"]
    np.testing.assert_allclose(found, [((before - y) ** 2).mean()], rtol=1e-4)


@every_execution
def test_training_on_single_batches_counts_up(execution, data):
    x, y = data
    mixture = mixture_of(execution)
    mixture.compile("adam", "mse")
    losses = [float(mixture.train_on_batch(x, y)) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert float(mixture.test_on_batch(x, y)) < losses[0]
    assert mixture.predict_on_batch(x).shape == (32, U)


@every_execution
def test_a_member_of_functional_and_sequential_models_trains_with_them(execution, data):
    x, y = data
    inner = mixture_of(execution)
    inputs = keras.Input((D,))
    hidden = layers.Dense(D, kernel_initializer="identity")(inputs)
    functional = keras.Model(inputs, inner(hidden))
    sequential = keras.Sequential([keras.Input((D,)), functional, layers.Dense(U)])
    assert functional.output_shape == (None, U)
    np.testing.assert_allclose(functional.predict(x, verbose=0), as_numpy(inner(x)), atol=1e-5)
    before = [inner.expert(i).get_weights()[0] for i in range(3)]
    sequential.compile("adam", "mse")
    losses = sequential.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all((inner.expert(i).get_weights()[0] != before[i]).any() for i in range(3))
    names = [v.path for v in sequential.trainable_variables]
    assert len(set(names)) == len(names)


@every_execution
def test_a_clone_has_the_same_form_and_weights_of_its_own(execution, data):
    x, _ = data
    mixture = mixture_of(execution)
    clone = keras.models.clone_model(mixture)
    clone(x)
    assert clone.get_config()["execution"] == mixture.get_config()["execution"]
    assert (clone.expert(0).get_weights()[0] != mixture.expert(0).get_weights()[0]).any()
    clone.set_weights(mixture.get_weights())
    np.testing.assert_allclose(as_numpy(clone(x)), as_numpy(mixture(x)), atol=1e-6)


@pytest.mark.parametrize("built", [True, False])
def test_the_config_reads_the_same_before_and_after_building(built, data):
    def expert():
        return net() if built else keras.Sequential([layers.Dense(U)])

    x, y = data
    experts, gate = [expert() for _ in range(2)], layers.Dense(2)
    router = plait.routers.Softmax(0.7)
    mixture = plait.Mixture(
        experts, gate, router=router, execution="loop", name="mine", expert_inputs=None
    )
    before = mixture.get_config()
    mixture(x)
    mixture.compile("sgd", "mse")
    mixture.fit(x, y, verbose=0)
    after = mixture.get_config()
    for key in ("name", "execution", "num_experts", "expert_inputs", "gate_inputs"):
        assert before[key] == after[key]
    assert before["router"]["config"] == after["router"]["config"]
    assert len(after["experts"]) == 2
    again = plait.Mixture.from_config(after)
    assert again.num_experts == 2
    assert again.router.get_config()["temperature"] == 0.7
    assert again(x).shape == (32, U)


def test_weights_are_counted_once_and_set_back(data):
    x, _ = data
    mixture = mixture_of("stacked")
    ids = [id(v) for v in mixture.weights]
    assert len(set(ids)) == len(ids)
    size = 3 * (D * 5 + 5 + 5 * U + U) + 3 * (D + 1)
    assert sum(int(np.prod(v.shape)) for v in mixture.trainable_variables) == size
    before = as_numpy(mixture(x))
    weights = mixture.get_weights()
    for variable in mixture.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    np.testing.assert_allclose(as_numpy(mixture(x)), np.full((32, U), 1 / U), atol=1e-6)
    mixture.set_weights(weights)
    np.testing.assert_allclose(as_numpy(mixture(x)), before, atol=1e-6)


def test_the_global_mixed_policy_trains_to_finite_weights(data):
    x, y = data
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixture = mixture_of("stacked")
        mixture.compile("adam", "mse")
        losses = mixture.fit(x, y, epochs=3, verbose=0).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert losses[-1] < losses[0]
    assert {v.dtype for v in mixture.trainable_variables} == {"float32"}
    assert keras.backend.standardize_dtype(mixture(x).dtype) == "bfloat16"
    weights = mixture.gate_weights(x)
    assert weights.dtype == "float32"
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)


def test_sizes_of_batch_and_steps_stay_symbolic():
    mixture = plait.Mixture([layers.Dense(U) for _ in "ab"], layers.Dense(2), router="softmax")
    out = mixture(keras.Input((None, D)))
    assert tuple(out.shape) == (None, None, U)
    assert mixture.compute_output_shape((None, 7, D)) == (None, 7, U)


def test_numbers_about_an_expert_come_in_batches(data):
    x, y = data
    mixture = mixture_of("stacked")
    small = mixture.gate_weights(x, batch_size=5)
    np.testing.assert_allclose(small, mixture.gate_weights(x), atol=1e-6)
    outputs = mixture.expert_outputs(x, batch_size=5)
    for i in range(3):
        np.testing.assert_allclose(outputs[:, i], as_numpy(mixture.expert(i)(x)), atol=1e-5)
    weights = mixture.gate_weights(x).astype("float64")
    joint = weights * (outputs * y[:, None, :]).sum(-1)
    posterior = joint / joint.sum(-1, keepdims=True)
    mixture.compile("sgd", "categorical_crossentropy")
    np.testing.assert_allclose(mixture.responsibilities(x, y), posterior, atol=1e-5)
