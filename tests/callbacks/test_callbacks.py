"""The balance monitor and the temperature schedule, in real runs of fit."""

import warnings

import keras
import numpy as np
import pytest

import plait
from plait.callbacks import BalanceMonitor, TemperatureSchedule


@pytest.fixture
def data(rng):
    x = rng.normal(size=(32, 3)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def mixture(**arguments):
    arguments = {"name": "moe", **arguments}
    mix = plait.Mixture([keras.layers.Dense(1) for _ in range(3)], **arguments)
    mix.compile(keras.optimizers.SGD(0.01), "mse")
    return mix


def collapsed(mix, x):
    """Makes the gate choose expert 0, whatever the input."""
    mix(x)
    kernel, bias = mix.gate.get_weights()
    mix.gate.set_weights([0 * kernel, bias + np.array([20, 0, 0], "float32")])
    return mix


def test_the_history_holds_usage_entropy_and_dead_experts(data):
    x, y = data
    mix = mixture()
    history = mix.fit(x, y, epochs=2, verbose=0, callbacks=[BalanceMonitor(x)]).history
    weights = mix.gate_weights(x)
    for expert in range(3):
        assert history[f"moe/usage_{expert}"][1] == pytest.approx(
            weights[:, expert].mean(), rel=1e-4
        )
    entropy = -(weights * np.log(weights)).sum(axis=1).mean()
    assert history["moe/entropy"][1] == pytest.approx(entropy, rel=1e-4)
    assert history["moe/dead"] == [0, 0]


def test_callbacks_that_come_later_see_the_numbers(data, tmp_path):
    x, y = data
    path = tmp_path / "log.csv"
    callbacks = [BalanceMonitor(x), keras.callbacks.CSVLogger(path)]
    mixture().fit(x, y, verbose=0, callbacks=callbacks)
    assert "moe/entropy" in path.read_text().splitlines()[0]


def test_a_collapse_is_warned_of_once_and_says_what_to_do(data):
    x, y = data
    mix = collapsed(mixture(), x)
    said = r"Experts \[1, 2\] of 3 in 'moe' .* after epoch 2.*load_balance"
    with pytest.warns(UserWarning, match=said) as w:
        history = mix.fit(x, y, epochs=4, verbose=0, callbacks=[BalanceMonitor(x, patience=2)])
    assert sum("hardly used" in str(each.message) for each in w) == 1
    assert history.history["moe/dead"] == [2] * 4


def test_a_model_without_a_mixture_is_named(data):
    x, y = data
    model = keras.Sequential([keras.layers.Dense(1)], name="plain")
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match=r"the model 'plain' of type Sequential"):
        model.fit(x, y, verbose=0, callbacks=[BalanceMonitor(x)])


def test_watching_changes_nothing_about_training(data):
    x, y = data
    weights = []
    for callbacks in ([], [BalanceMonitor(x)]):
        keras.utils.set_random_seed(0)
        mix = mixture()
        mix.fit(x, y, epochs=3, verbose=0, callbacks=callbacks)
        weights.append(mix.get_weights())
    for plain, watched in zip(*weights, strict=True):
        np.testing.assert_allclose(plain, watched, atol=1e-6)


def test_a_temperature_is_lowered_epoch_by_epoch_and_saved(data, tmp_path):
    x, y = data
    mix = mixture(router=plait.routers.Softmax())
    cool = TemperatureSchedule(4.0, 1.0, epochs=3)
    history = mix.fit(x, y, epochs=4, verbose=0, callbacks=[cool]).history
    assert history["temperature"] == pytest.approx([4, 2, 1, 1])
    mix.router.temperature = 0.25
    mix.save(tmp_path / "mix.keras")
    again = keras.saving.load_model(tmp_path / "mix.keras")
    assert again.router.temperature == 0.25
    np.testing.assert_allclose(again.predict(x, verbose=0), mix.predict(x, verbose=0), atol=1e-6)


def test_the_temperature_acts_inside_the_compiled_step(data):
    """The loss of an epoch at learning rate 0 is that of the temperature set before it."""
    x, y = data
    mix = plait.Mixture([keras.layers.Dense(1) for _ in range(3)], router=plait.routers.Softmax())
    mix.compile(keras.optimizers.SGD(0.0), "mse")
    cool = TemperatureSchedule(schedule=lambda epoch: [10.0, 0.1][epoch])
    found = mix.fit(x, y, epochs=2, verbose=0, callbacks=[cool]).history["loss"]
    for loss, temperature in zip(found, [10.0, 0.1], strict=True):
        mix.router.temperature = temperature
        assert mix.evaluate(x, y, verbose=0) == pytest.approx(loss, rel=1e-4)
    assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_a_router_inside_a_model_is_found_and_one_can_be_given(data):
    x, y = data
    mix = mixture(router=plait.routers.Softmax())
    model = keras.Sequential([keras.Input((3,)), mix])
    model.compile("sgd", "mse")
    for callback in (
        TemperatureSchedule(2.0, 2.0, epochs=1),
        TemperatureSchedule(3.0, 3.0, epochs=1, router=mix.router),
    ):
        history = model.fit(x, y, verbose=0, callbacks=[callback]).history
        assert history["temperature"] == [callback.schedule(0)]


def test_resuming_gives_the_weights_of_an_uninterrupted_run(data, tmp_path):
    """BackupAndRestore, with noise, a moving bias and a running balance term in the router."""
    x, y = data

    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def made():
        keras.utils.set_random_seed(0)
        router = plait.routers.TopK(2, noise=0.5, bias_update_rate=0.01, load_balance=0.1, seed=1)
        mix = plait.Mixture([keras.layers.Dense(1) for _ in range(3)], router=router)
        mix.compile(keras.optimizers.Adam(0.01), "mse")
        mix.build((None, 3))
        return mix

    fit = {"epochs": 4, "shuffle": False, "verbose": 0}
    whole = made()
    whole.fit(x, y, **fit)
    with pytest.raises(KeyboardInterrupt), warnings.catch_warnings():
        made().fit(
            x, y, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "run"), Kill()], **fit
        )
    resumed = made()
    resumed.fit(x, y, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "run")], **fit)
    for left, right in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda x: BalanceMonitor(x, patience=0), "patience=0"),
        (lambda x: TemperatureSchedule(0.0), "start=0.0"),
        (lambda x: TemperatureSchedule(epochs=0), "epochs=0"),
        (
            lambda x: mixture(router="top_k").fit(
                x, x[:, :1], verbose=0, callbacks=[TemperatureSchedule()]
            ),
            "which has none within its layers",
        ),
    ],
)
def test_a_wrong_argument_is_named(make, match, data):
    with pytest.raises(ValueError, match=match):
        make(data[0])
