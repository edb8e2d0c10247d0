"""Experts of a template are trained the same, one by one or in one call."""

import keras
import numpy as np
import pytest
from tests.experts.templates import TEMPLATES, gate_for, input_of

import plait

L, STEPS, BATCH = 3, 4, 3
DRAWS = ["dropout"]
# Where each step is compiled, a few kinds of layers stand for the rest.
FEW = ["dense", "conv1d", "batch_norm", "gru", "attention"]
CHOSEN = [
    template
    for template in TEMPLATES
    if template.__name__ not in DRAWS
    and (keras.config.backend() == "torch" or template.__name__ in FEW)
]


@pytest.mark.parametrize("template", CHOSEN, ids=lambda t: t.__name__)
def test_a_template_is_trained_the_same_in_a_loop(template, rng):
    """Four steps from one start: weights and moving statistics of all experts and of the gate."""
    one = template()
    x = input_of(one, rng, STEPS * BATCH)
    start, results = None, []
    for execution in ("loop", "auto"):
        gate = gate_for(x, L)
        mixture = plait.Mixture(one, gate, num_experts=L, router="softmax", execution=execution)
        y = 0.5 * np.ones(np.shape(mixture(x[:BATCH])), "float32")
        start = mixture.get_weights() if start is None else start
        mixture.set_weights(start)
        mixture.compile(keras.optimizers.SGD(0.1, momentum=0.5), "mse")
        y = np.repeat(y[:1], len(x), axis=0)
        mixture.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
        results.append(mixture.get_weights())
    moved = sum(np.abs(new - old).max() > 1e-5 for old, new in zip(start, results[0], strict=True))
    assert moved > 2
    for left, right in zip(*results, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
