"""A stopped training resumes exactly: the same weights as one that was never stopped."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from tests.training import resuming

import plait


class StopError(Exception):
    """Stands for whatever stops a training."""


class Interrupt(keras.callbacks.Callback):
    """Stops the training after the epoch of the backup."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise StopError


def assert_equal_states(found, expected):
    """All variables agree, to the last bit but for what the backend's threads reorder."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def names(model):
    return [v.path for v in (*model.variables, *model.optimizer.variables)]


def test_the_test_sees_everything_that_changes():
    """Seeds of noise and dropout, the router's bias and the learned scales are compared."""
    model = resuming.mixture()
    before = dict(zip(names(model), resuming.state(model), strict=False))
    model.fit(np.ones((4, 4)), np.ones((4, 1)), verbose=0)
    after = dict(zip(names(model), resuming.state(model), strict=False))
    changed = " ".join(name for name in after if not np.array_equal(before.get(name), after[name]))
    for part in ("seed_generator_state", "bias", "log_scale"):
        assert part in changed, changed


@pytest.mark.parametrize("epoch", [0, 2])
def test_resumes_exactly(tmp_path, epoch):
    whole = resuming.mixture()
    resuming.train(whole, tmp_path / "whole")
    with pytest.raises(StopError):
        resuming.train(resuming.mixture(), tmp_path / "stopped", [Interrupt(epoch)])
    resumed = resuming.mixture(seed=11)
    resuming.train(resumed, tmp_path / "stopped")
    assert_equal_states(resuming.state(resumed), resuming.state(whole))


@pytest.mark.slow
def test_resumes_after_a_kill(tmp_path):
    """The process dies in the middle, another one takes over with other random numbers."""
    root = Path(__file__).parents[2]

    def run(*arguments):
        command = [sys.executable, "-m", "tests.training.resuming", str(tmp_path), *arguments]
        return subprocess.run(command, cwd=root, env=dict(os.environ), check=False).returncode

    assert run("1") == 7
    assert not (tmp_path / "weights.npz").exists()
    assert run() == 0
    whole = resuming.mixture()
    resuming.train(whole, tmp_path / "whole")
    with np.load(tmp_path / "weights.npz") as file:
        assert_equal_states([file[name] for name in file.files], resuming.state(whole))


def test_experts_in_a_loop_resume(tmp_path):
    """Also under a Gumbel router without a seed.

    Dropout has a seed here: without one Keras draws it, on PyTorch, from a generator of PyTorch's
    that belongs to no model, and no backup holds. The mixture owns the experts: of experts that
    are shared Keras saves no seed states.
    """

    def make(seed):
        keras.utils.set_random_seed(seed)
        experts = [
            keras.Sequential(
                [
                    keras.Input((4,)),
                    keras.layers.Dropout(0.4, seed=seed + offset),
                    keras.layers.Dense(1),
                ]
            )
            for offset in range(2)
        ]
        model = plait.Mixture(
            experts, router=plait.routers.Gumbel(), execution="loop", copy_experts=True
        )
        model.compile("adam", "mse")
        return model

    whole = make(1)
    resuming.train(whole, tmp_path / "whole")
    with pytest.raises(StopError):
        resuming.train(make(1), tmp_path / "stopped", [Interrupt(1)])
    resumed = make(2)
    resuming.train(resumed, tmp_path / "stopped")
    assert_equal_states(resuming.state(resumed), resuming.state(whole))
