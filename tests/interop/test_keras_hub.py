"""A KerasHub model keeps every number when its experts run sparsely."""

import importlib.util
import warnings

import keras
import numpy as np
import pytest
from keras import ops
from tests.gradients import value_and_gradients

from plait.compat import flat_layers
from plait.interop.keras_hub import sparsify

hub = pytest.importorskip("keras_hub").models

SIZE = {
    "vocabulary_size": 20,
    "num_layers": 1,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 16,
    "intermediate_dim": 24,
}
QWEN = SIZE | {"moe_intermediate_dim": 12, "num_experts": 6, "top_k": 3}
# Family, arguments of its backbone, and whether its training has a load-balance loss.
FAMILIES = {
    "Mixtral": ("Mixtral", SIZE | {"num_experts": 4, "top_k": 2}, True),
    "QwenMoe": ("QwenMoe", QWEN | {"shared_expert_intermediate_dim": 20}, True),
    "Qwen3Moe": ("Qwen3Moe", QWEN | {"head_dim": 8, "norm_top_k_prob": True}, True),
    "Qwen3Moe, some layers dense": (
        "Qwen3Moe",
        QWEN | {"head_dim": 8, "decoder_sparse_step": 2, "num_layers": 2},
        True,
    ),
    "GptOss": ("GptOss", SIZE | {"num_experts": 4, "top_k": 2, "head_dim": 8}, False),
}
SLOW = ["QwenMoe", "Qwen3Moe, some layers dense"]
family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FAMILIES]
)


def make(family, rng, **changes):
    """A task model with random weights that spread the routing."""
    name, arguments, _ = FAMILIES[family]
    backbone = getattr(hub, f"{name}Backbone")(**(arguments | changes))
    model = getattr(hub, f"{name}CausalLM")(backbone=backbone, preprocessor=None)
    for variable in model.weights:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    return model


def twins(family, rng, **changes):
    """Two models of equal weights, the second sparse."""
    dense = make(family, rng, **changes)
    sparse = make(family, rng, **changes)
    sparse.set_weights(dense.get_weights())
    assert sparsify(sparse) is sparse
    return dense, sparse


def tokens(rng):
    """Two sequences, one of them padded."""
    mask = np.ones((2, 7), "int32")
    mask[1, 4:] = 0
    return {"token_ids": rng.integers(1, 20, (2, 7)).astype("int32"), "padding_mask": mask}


def logits(model, x):
    return ops.convert_to_numpy(model(x))


@family
def test_logits_are_equal(family, rng):
    dense, sparse = twins(family, rng)
    x = tokens(rng)
    np.testing.assert_allclose(logits(sparse, x), logits(dense, x), atol=1e-5)


@family
def test_gradients_and_training_losses_are_equal(family, rng):
    """Of the logits and the load-balance loss together, to every weight."""
    x, results = tokens(rng), []
    cotangent = ops.convert_to_tensor(rng.normal(size=(2, 7, 20)).astype("float32"))
    for model in twins(family, rng):
        told = []

        def loss(*values, model=model, told=told):
            state = [variable.value for variable in model.non_trainable_variables]
            outputs, _, losses = model.stateless_call(
                list(values), state, x, training=True, return_losses=True
            )
            told.append(len(losses))
            return ops.sum(outputs * cotangent) + 100 * sum(losses)

        values = [ops.convert_to_numpy(v.value) for v in model.trainable_variables]
        results.append((*value_and_gradients(loss, values, compiled=True), told[-1]))
    (expected, slopes, terms), (value, ours, our_terms) = results
    assert (our_terms > 0) == (terms > 0) == FAMILIES[family][2]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for slope, own in zip(slopes, ours, strict=True):
        np.testing.assert_allclose(own, slope, atol=1e-4 * max(1, np.abs(slope).max()))


@family
def test_training_takes_the_same_step(family, rng):
    dense, sparse = twins(family, rng)
    x, y = tokens(rng), rng.integers(0, 20, (2, 7))
    losses = []
    for model in (dense, sparse):
        model.compile(optimizer=keras.optimizers.SGD(0.1), weighted_metrics=[])
        losses.append(model.train_on_batch(x, y))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    for own, theirs in zip(sparse.get_weights(), dense.get_weights(), strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-4)


@family
def test_generation_is_equal(family, rng):
    """With the cache, also where the dense generation had been compiled."""
    model = make(family, rng)
    model.compile(sampler="greedy")
    prompt = {"token_ids": rng.integers(1, 20, (2, 9)).astype("int32")}
    prompt["padding_mask"] = np.tile(np.arange(9) < 4, (2, 1)).astype("int32")
    expected = model.generate(dict(prompt), stop_token_ids=None)
    sparsify(model)
    generated = model.generate(dict(prompt), stop_token_ids=None)
    np.testing.assert_array_equal(generated["token_ids"], expected["token_ids"])


@family
def test_a_saved_model_is_an_ordinary_one(family, rng, tmp_path):
    """It loads as KerasHub's own, gives the same numbers, and may be sparsified again."""
    _, sparse = twins(family, rng)
    x = tokens(rng)
    sparse.save(tmp_path / "model.keras")
    sparse.save_weights(tmp_path / "model.weights.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # KerasHub's tasks are not compiled as they were
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(sparse)
    np.testing.assert_allclose(logits(loaded, x), logits(sparse, x), atol=1e-5)
    fresh = sparsify(make(family, rng))
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(logits(fresh, x), logits(sparse, x), atol=1e-5)
    np.testing.assert_allclose(logits(sparsify(loaded), x), logits(sparse, x), atol=1e-5)


def test_experts_that_nobody_chose_do_not_run(rng):
    """Their weights may be infinite."""
    _, sparse = twins("GptOss", rng)
    for variable in sparse.weights:
        values = ops.convert_to_numpy(variable.value).copy()
        if variable.path.endswith("router_dense/bias"):
            values[-1] = -1e9
        elif variable.name == "down_proj":
            values[-1] = np.inf
        variable.assign(values)
    assert np.isfinite(logits(sparse, tokens(rng))).all()


def test_a_backbone_inside_another_model(rng):
    dense, sparse = twins("Mixtral", rng)
    x = tokens(rng)
    outputs = []
    for model in (dense, sparse):
        inputs = {name: keras.Input((7,), dtype="int32", name=name) for name in x}
        outer = keras.Model(inputs, ops.mean(model.backbone(inputs), axis=1))
        outputs.append(logits(outer, x))
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)
    assert sparsify(outer) is outer


def test_half_precision(rng):
    """The routing is finer than KerasHub's, the rest is rounded alike."""
    dense, sparse = twins("Qwen3Moe", rng, dtype="mixed_bfloat16")
    x = tokens(rng)
    assert sparse(x).dtype == dense(x).dtype
    exact = make("Qwen3Moe", rng)
    exact.set_weights(dense.get_weights())
    error = np.abs(logits(sparse, x).astype("float32") - logits(exact, x)).mean()
    assert error < 0.05 * np.abs(logits(exact, x)).mean()


def test_a_model_without_such_experts_is_refused():
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)], name="plain")
    with pytest.raises(ValueError, match="'plain' of type Sequential, which has none"):
        sparsify(plain)


def test_without_keras_hub_the_extra_is_named(monkeypatch, rng):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install plait\[hub\]"):
        sparsify(keras.Sequential())


def test_noise_that_keras_hub_cannot_draw_is_refused(rng):
    _, sparse = twins("Mixtral", rng, router_jitter_noise=0.1)
    assert np.isfinite(logits(sparse, tokens(rng))).all()
    with pytest.raises(ValueError, match=r"router_jitter_noise=0\.1"):
        sparse(tokens(rng), training=True)


def test_where_outputs_differ_two_experts_tied(rng):
    """A rounding of the layer before decides between experts whose scores agree to 7 digits.

    Experts 0 and 1 of the last layer score alike. Tokens for which either is the second of two
    chosen experts may get another expert than before; all others keep their logits.
    """
    dense, sparse = twins("Mixtral", rng, num_layers=2, vocabulary_size=400)
    router = next(
        variable
        for variable in reversed(dense.weights)
        if variable.path.endswith("sparse_feedforward_gate_dense/kernel")
    )
    kernel = ops.convert_to_numpy(router.value).copy()
    kernel[:, 1] = kernel[:, 0] * (1 + rng.normal(0, 2e-7, len(kernel)))
    router.assign(kernel)
    sparse.set_weights(dense.get_weights())
    x = {"token_ids": rng.integers(1, 400, (8, 64)).astype("int32")}
    x["padding_mask"] = np.ones((8, 64), "int32")
    block = [b for b in flat_layers(dense) if type(b).__name__ == "MixtralSparseMoeBlock"][-1]
    told, call = [], block.call
    block.call = lambda *args, **kwargs: told.append(call(*args, **kwargs)) or told[-1]
    expected = logits(dense, x)
    scores = ops.convert_to_numpy(told[-1][1]).reshape(8, 64, 4)
    second, third = np.sort(scores, axis=-1)[..., [-2, -3]].transpose(2, 0, 1)
    tied = second - third < 1e-5 * np.abs(scores).max(axis=-1)
    differ = np.abs(logits(sparse, x) - expected).max(axis=-1) > 1e-3
    assert differ.any()
    assert not (differ & ~tied).any()
